"""Verification pairs: two images each, of the same identity or of different ones.

Pairs are drawn as evenly over identities as their images allow, in the manner of LFW's official
pairs. An identity with n images has n(n − 1)/2 same pairs, so among *all* the same pairs of a tenth
of LFW's people one man can have 61 % of them, and a figure would be about him.
"""

from typing import NamedTuple

import numpy as np

# An identity gives at most so many times the average of all.
_DOMINATION = 10


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
        rows: int64[pairs, 2], indices of images.
        same: bool[pairs].
    """

    rows: np.ndarray
    same: np.ndarray


def sample_pairs(labels: np.ndarray, count: int, *, seed: int) -> Pairs:
    """`count` distinct pairs, half of them same; fewer if there are not as many.

    Same pairs: every identity gives equally many, or all it has if those are fewer; and none gives
    more than ten times the average, so a long-tailed set can have fewer pairs than asked for.
    Different pairs: two identities at random, and a random image of each.

    Args:
        labels: int[images].
        count: how many pairs at most; both halves always have the same size.
        seed: the same seed gives the same pairs.

    Raises:
        ValueError: if there is no same or no different pair.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    n_same = sizes * (sizes - 1) // 2
    n_different = len(labels) * (len(labels) - 1) // 2 - n_same.sum()
    if n_same.sum() == 0 or n_different == 0:
        raise ValueError(
            f"verification needs pairs of both kinds; got {n_same.sum()} of the same identity and "
            f"{n_different} of different ones"
        )
    room = _without_domination(np.minimum(n_same, count))
    half = min(count // 2, int(room.sum()), int(n_different))
    same = [
        order[start + pair_of(np.sort(rng.choice(n, quota, replace=False)), size)]
        for start, size, n, quota in zip(starts, sizes, n_same, _fill(room, half, rng), strict=True)
        if quota
    ]
    different = _different(labels, order, starts, sizes, half, bool(n_different <= 8 * count), rng)
    return Pairs(np.concatenate([*same, different]), np.repeat([True, False], half))


def different_pairs(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """int[pairs, 2]: up to `count` different pairs, drawn as :func:`sample_pairs` draws its own.

    There are more of them than of same pairs, and a false match rate needs many.

    Args:
        labels: int[images].
        count: how many at most.
        seed: the same seed gives the same pairs.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    there = (len(labels) ** 2 - int(np.sum(sizes**2))) // 2
    rng = np.random.default_rng(seed)
    return _different(labels, order, starts, sizes, min(count, there), there <= 8 * count, rng)


def hard_pairs(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> Pairs | None:
    """Pairs within groups of several identities: the different ones are the likes of É and Ë.

    Both halves are drawn uniformly over all such pairs. None if there are none.

    Args:
        labels: int[images].
        groups: int[images], the group of each image's identity.
        count: how many pairs at most; both halves have the same size.
        seed: the same seed gives the same pairs.
    """
    rng = np.random.default_rng(seed)
    names, group_of, images = np.unique(groups, return_inverse=True, return_counts=True)
    one = np.unique(labels, return_index=True)[1]  # an image of each identity
    several = np.bincount(group_of[one], minlength=len(names)) > 1
    # Pairs are counted in the order of groups and then of images, and none of them is listed.
    by_group = np.argsort(group_of, kind="stable")
    by_group = by_group[several[group_of[by_group]]]
    place = np.full(len(labels), -1)
    place[by_group] = np.arange(len(by_group))
    by_label = by_group[np.argsort(labels[by_group], kind="stable")]
    _, sizes = np.unique(labels[by_label], return_counts=True)
    after = np.empty(len(labels), int)  # where in `by_label` those after an image begin
    after[by_label] = np.arange(1, len(by_label) + 1)
    alike = np.empty(len(labels), int)  # how many there are after it of its own identity
    alike[by_label] = np.repeat(np.cumsum(sizes), sizes) - after[by_label]
    ends = np.repeat(np.cumsum(images[several]), images[several])
    alike = alike[by_group]
    other = ends - 1 - np.arange(len(by_group)) - alike
    half = min(count // 2, int(alike.sum()), int(other.sum()))
    if half == 0:
        return None

    def draw(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of images in `by_group`, and which of the pairs that begin with each."""
        upto = np.cumsum(pairs)
        drawn = rng.choice(int(upto[-1]), half, replace=False)
        first = np.searchsorted(upto, drawn, side="right")
        return first, drawn - (upto - pairs)[first]

    first, nth = draw(alike)
    same = np.stack([by_group[first], by_label[after[by_group[first]] + nth]], axis=1)
    first, nth = draw(other)
    # Of its own identity `low` come before the one that is sought: found by halving.
    own, low, high = after[by_group[first]], np.zeros(half, int), alike[first]
    while np.any(low < high):
        middle = (low + high) // 2
        between = place[by_label[np.minimum(own + middle, len(by_label) - 1)]] - first - 1 - middle
        before = (low < high) & (between <= nth)
        low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
    different = np.stack([by_group[first], by_group[first + 1 + nth + low]], axis=1)
    return Pairs(np.concatenate([same, different]), np.repeat([True, False], half))


def _without_domination(room: np.ndarray) -> np.ndarray:
    """At most the greatest level that is within `_DOMINATION` times the average below it."""
    above = np.count_nonzero(room) - np.cumsum(np.bincount(room[room > 0]))
    total = np.cumsum(above)  # sum(min(room, level)) for the levels from 1
    level = 1 + np.arange(len(total))
    fair = level * np.count_nonzero(room) <= _DOMINATION * total
    capped: np.ndarray = np.minimum(room, level[fair][-1])
    return capped


def _fill(room: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Integers that sum to `total`, at most `room`, and else as equal as can be."""
    above = len(room) - np.cumsum(np.bincount(room))  # how many have room above each level
    level = 1 + int(np.searchsorted(np.cumsum(above), total))
    filled: np.ndarray = np.minimum(room, level)
    full = rng.permutation(np.flatnonzero(room >= level))
    filled[full[: filled.sum() - total]] -= 1
    return filled


def pair_of(index: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """int[..., 2]: the pairs (i, j), i < j < n, in the order of i, then j."""
    side = 2 * n - 1
    i = ((side - np.sqrt(side**2 - 8.0 * index)) / 2).astype(int)
    j = index - i * (side - i) // 2 + i + 1
    return np.stack([i, j], axis=-1)


def _different(
    labels: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    count: int,
    few: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """So many distinct ones."""
    if few:
        return _different_of_few(labels, order, starts, sizes, count, rng)
    drawn: np.ndarray = order[_different_of_many(starts, sizes, count, rng)]
    return drawn


def _different_of_few(
    labels: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    half: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """All different pairs weighed so that identities count alike, and drawn without replacement."""
    # Of an identity with all that come after it: never a same pair, of which there may be billions.
    products = [
        np.stack(np.meshgrid(order[start:end], order[end:], indexing="ij"), axis=-1).reshape(-1, 2)
        for start, end in zip(starts, starts + sizes, strict=True)
    ]
    pairs = np.sort(np.concatenate(products), axis=1)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    images = np.bincount(labels)[labels]
    weights = -np.log(images[pairs]).sum(axis=1)
    # The largest of log-weight plus Gumbel noise are a draw without replacement.
    kept = np.argsort(-(weights + rng.gumbel(size=len(pairs))))[:half]
    drawn: np.ndarray = pairs[np.sort(kept)]
    return drawn


def _different_of_many(
    starts: np.ndarray, sizes: np.ndarray, half: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws until there are enough distinct pairs, of positions in the order of the labels."""
    n, codes = int(sizes.sum()), np.empty(0, int)
    while len(codes) < half:
        of = rng.integers(len(sizes), size=(half, 2))
        of = of[of[:, 0] != of[:, 1]]
        pairs = np.sort(starts[of] + rng.integers(sizes[of]), axis=1)
        codes = np.union1d(codes, pairs[:, 0] * n + pairs[:, 1])
    codes = np.sort(rng.choice(codes, half, replace=False))
    return np.stack(np.divmod(codes, n), axis=1)
