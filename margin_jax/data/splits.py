"""Identity-disjoint splits: nobody who is tested was seen in training."""

from typing import NamedTuple

import numpy as np

FRACTIONS = (0.4, 0.1, 0.5)
_BLOCK = 10


class Split(NamedTuple):
    """Sorted indices of identities, int[...] each, disjoint and complete."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_identities(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Split:
    """A seeded 40 / 10 / 50 % split of the identities, stratified by their number of images.

    Groups (identities that must stay together) are sorted by images per identity, the largest
    first, those of one size in random order, and dealt out in runs of ten: in each run four go to
    training, one to validation and five to the test, at random. So every part gets its share of
    large and of small identities (the protocol released with arXiv 2603.26389).

    Args:
        labels: int[images], in ``[0, identities)``.
        groups: int[identities].
        seed: another seed, another split.
        fractions: of the identities in training, validation and test; they sum to 1.

    Raises:
        ValueError: if a part would have fewer than two identities, or `fractions` do not sum to 1.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be positive and sum to 1; got {fractions}")
    rng = np.random.default_rng(seed)
    images = np.bincount(labels, minlength=len(groups))
    names, group_of = np.unique(groups, return_inverse=True)
    identities = np.bincount(group_of)
    mean_images = np.bincount(group_of, weights=images) / identities

    order = rng.permutation(len(names))
    order = order[np.lexsort((-identities[order], -mean_images[order]))]
    part_of = np.empty(len(names), int)
    part_of[order] = _deal(len(names), fractions, rng)

    split = Split(*(np.flatnonzero(part_of[group_of] == part) for part in range(3)))
    if min(len(part) for part in split) < 2:
        raise ValueError(
            f"a {'/'.join(f'{f:.0%}' for f in fractions)} split needs at least two identities in "
            f"each part; got {len(split.train)}, {len(split.validation)} and {len(split.test)} "
            f"from {len(groups)} identities"
            + (f" in {len(names)} groups" if len(names) < len(groups) else "")
        )
    return split


def _deal(n: int, fractions: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """int[n]: parts in proportion, over all and in each run of ten, in random order in a run."""
    share = np.array(fractions)
    dealt = np.zeros(len(share))
    parts = np.empty(n, int)
    for i in range(n):
        parts[i] = np.argmax(share * (i + 1) - dealt)
        dealt[parts[i]] += 1
    for start in range(0, n, _BLOCK):
        run = slice(start, start + _BLOCK)
        parts[run] = rng.permutation(parts[run])
    return parts
