"""The PK sampler: batches of P identities with K images each, a pure function of seed and epoch."""

from dataclasses import dataclass

import numpy as np

from margin_jax.choices import check_choice

SMALL_IDENTITIES = ("drop", "repeat", "error")


@dataclass(frozen=True)
class Coverage:
    """How much of a split one epoch sees.

    Attributes:
        images: images of the split.
        used: different images in the epoch's batches.
        small: images left out because their identity has fewer than K of them.
        left: images left over when fewer than P identities had K images left.
    """

    images: int
    used: int
    small: int
    left: int


def pk_batches(
    labels: np.ndarray,
    identities_per_batch: int,
    images_per_identity: int,
    *,
    seed: int,
    epoch: int,
    small_identities: str = "drop",
) -> tuple[np.ndarray, Coverage]:
    """The batches of one epoch, drawn without replacement: an image is used at most once.

    Each batch takes P identities at random among those with at least K unused images, and K random
    images of each. The epoch ends when fewer than P such identities remain, as in the code
    released with arXiv 2603.26389. On long-tailed sets that leaves many images out of an epoch
    (other ones in the next); the :class:`Coverage` says how many.

    Args:
        labels: int[images].
        identities_per_batch: P, at least 2.
        images_per_identity: K, at least 2.
        seed, epoch: the same pair gives the same batches.
        small_identities: what to do with identities of fewer than K images: "drop" them, "repeat"
            their images (they then appear once an epoch), or raise an "error".

    Returns:
        ``(batches, coverage)``: int[steps, P·K], rows of `labels`, K of one identity in a row.

    Raises:
        ValueError: if not even one batch can be made, or by the policy "error".
    """
    p, k = identities_per_batch, images_per_identity
    check_choice("small_identities", small_identities, SMALL_IDENTITIES)
    if p < 2 or k < 2:
        raise ValueError(
            f"triplets need at least 2 identities of 2 images in a batch; "
            f"got identities_per_batch {p}, images_per_identity {k}"
        )
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts = np.unique(labels[order], return_index=True)
    queues = np.split(order, starts[1:])

    is_small = [len(queue) < k for queue in queues]
    small = 0
    if any(is_small):
        if small_identities == "error":
            raise ValueError(
                f"{sum(is_small)} of {len(queues)} identities have fewer than {k} images "
                f"(the smallest has {min(map(len, queues))})"
            )
        if small_identities == "repeat":
            queues = [np.resize(queue, max(k, len(queue))) for queue in queues]
        else:
            small = sum(len(queue) for queue in queues if len(queue) < k)
    # Cut into groups of K beforehand: what is drawn from an identity is then its next group.
    groups = [queue[: len(queue) // k * k].reshape(-1, k) for queue in queues if len(queue) >= k]
    if len(groups) < p:
        raise ValueError(
            f"a batch needs {p} identities with at least {k} images; "
            f"got {len(groups)} of {len(queues)} identities"
        )

    remaining = np.array([len(group) for group in groups])
    batches = []
    while np.count_nonzero(remaining) >= p:
        chosen = rng.choice(np.flatnonzero(remaining), p, replace=False)
        remaining[chosen] -= 1
        batches.append(np.concatenate([groups[i][remaining[i]] for i in chosen]))
    plan = np.stack(batches)
    used = len(np.unique(plan))
    return plan, Coverage(len(labels), used, small, len(labels) - used - small)
