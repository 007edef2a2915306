"""Pairs for a threshold that is chosen for a false match rate."""

import numpy as np

from margin_jax.data.pairs import Pairs, different_pairs
from margin_jax.evaluation.verification import check_fmr, different_pairs_for

# As many different pairs are drawn, or as many as the rate needs.
_DRAWN = 50_000


def threshold_pairs(
    saved: Pairs, labels: np.ndarray, fmr: float, *, seed: int, advice: str = "more identities"
) -> Pairs:
    """Pairs that can show a false match rate.

    Those that there are, or, if their different ones are too few, the same pairs among them with
    more different ones: small identities have few same pairs, and so few pairs are drawn in all.

    Args:
        saved: pairs of rows of `labels`.
        labels: int[examples].
        fmr: the rate, at least 1e-6, which needs ten million pairs, and below 1.
        seed: of those that are drawn.
        advice: what would help if there are too few.

    Raises:
        ValueError: if there are not as many; with how many are needed.
    """
    needed = different_pairs_for(fmr)
    if fmr < 1e-6:
        raise ValueError(f"fmr must be at least 1e-06; got {fmr}")
    if np.count_nonzero(~saved.same) >= needed:
        return saved
    different = different_pairs(labels, max(_DRAWN, needed), seed=seed)
    try:
        check_fmr(fmr, len(different))
    except ValueError as error:
        people = len(np.unique(labels))
        raise ValueError(
            f"{error} of {people:,} identities: choose a larger rate, or {advice}"
        ) from None
    same = saved.rows[saved.same]
    return Pairs(
        np.concatenate([same, different]), np.repeat([True, False], [len(same), len(different)])
    )
