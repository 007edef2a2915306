"""Which active triplets train the network, by epoch."""

from collections.abc import Callable, Mapping

from margin_jax.choices import check_choice
from margin_jax.losses.tile import MININGS


def mining_schedule(kinds: str | Mapping[int, str]) -> Callable[[int], str]:
    """A function from the epoch, counted from 1, to the kind of triplets to train on.

    The kind is static, so each kind compiles once. Triplets are counted regardless of the kind, so
    margin schedules do not notice a change.

    Args:
        kinds: one kind for all epochs ("all"), or the first epoch of each: ``{1: "all", 11:
            "semihard", 21: "hard"}``, or the same as text, ``"all,11:semihard,21:hard"``.

    Raises:
        ValueError: an unknown kind, epochs that do not increase, or no kind for epoch 1; the
            function raises it for an epoch below 1.

    Example:
        >>> import margin_jax as mj
        >>> mining = mj.mining_schedule("all,11:semihard")
        >>> mining(1), mining(10), mining(11)
        ('all', 'all', 'semihard')

    References:
        The filters of the code released with `arXiv 2603.26389
        <https://arxiv.org/abs/2603.26389>`_: "hard" there is "all" here, "superhard" is "hard".
    """
    starts = mining_starts(kinds)

    def mining(epoch: int) -> str:
        if epoch < 1:
            raise ValueError(f"epochs of mining are counted from 1; got {epoch}")
        return [kind for start, kind in starts.items() if start <= epoch][-1]

    return mining


def mining_starts(kinds: str | Mapping[int, str]) -> dict[int, str]:
    """The first epoch of each kind, in rising order, from 1.

    Raises:
        ValueError: as :func:`mining_schedule`.
    """
    first_epochs = _parse(kinds) if isinstance(kinds, str) else list(kinds.items())
    starts = [start for start, _ in first_epochs]
    if starts[:1] != [1] or starts != sorted(set(starts)):
        raise ValueError(
            "mining must give the kind of triplets from epoch 1 on, by increasing epochs; got "
            f"{kinds!r}"
        )
    for _, kind in first_epochs:
        check_choice("mining", kind, MININGS)
    return dict(first_epochs)


def _parse(text: str) -> list[tuple[int, str]]:
    parts = []
    for part in text.split(","):
        start, colon, kind = part.strip().rpartition(":")
        try:
            parts.append((int(start) if colon else 1, kind))
        except ValueError:
            raise ValueError(
                f"mining is a kind, or kinds by first epoch like all,11:semihard; got {text!r}"
            ) from None
    return parts
