"""Verification pairs: two images each, of the same identity or of different ones."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
        rows: int64[pairs, 2], indices of images.
        same: bool[pairs].
    """

    rows: np.ndarray
    same: np.ndarray


def sample_pairs(labels: np.ndarray, count: int, *, seed: int) -> Pairs:
    """`count` different pairs, half of them same, drawn uniformly; fewer if there are not as many.

    Args:
        labels: int[images].
        count: how many pairs at most; both halves always have the same size.
        seed: the same seed gives the same pairs.

    Raises:
        ValueError: if there is no same or no different pair.
    """
    rng = np.random.default_rng(seed)
    return _balanced(_same(labels, count, rng), _different(labels, count, rng), count, rng)


def hard_pairs(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> Pairs | None:
    """As :func:`sample_pairs`, with only images whose group holds several identities.

    Different pairs are those within one group, such as É and Ë; None if there are none.

    Args:
        labels: int[images].
        groups: int[images], the group of each image's identity.
        count: how many pairs at most.
        seed: the same seed gives the same pairs.
    """
    rng = np.random.default_rng(seed)
    same, different = [], []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(np.unique(labels[rows])) > 1:
            pairs = rows[_all(len(rows))]
            alike = labels[pairs[:, 0]] == labels[pairs[:, 1]]
            same.append(pairs[alike])
            different.append(pairs[~alike])
    if not same:
        return None
    return _balanced(np.concatenate(same), np.concatenate(different), count, rng)


def _balanced(
    same: np.ndarray, different: np.ndarray, count: int, rng: np.random.Generator
) -> Pairs:
    half = min(count // 2, len(same), len(different))
    if half == 0:
        raise ValueError(
            f"verification needs pairs of both kinds; got {len(same)} of the same identity and "
            f"{len(different)} of different ones"
        )
    rows = [pairs[np.sort(rng.permutation(len(pairs))[:half])] for pairs in (same, different)]
    return Pairs(np.concatenate(rows), np.repeat([True, False], half))


def _all(n: int) -> np.ndarray:
    return np.stack(np.triu_indices(n, 1), axis=1)


def _same(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if np.sum(sizes * (sizes - 1) // 2) <= 8 * count:
        return np.concatenate([rows[_all(len(rows))] for rows in np.split(order, starts[1:])])

    def propose(n: int) -> np.ndarray:
        of = rng.choice(len(sizes), n, p=sizes * (sizes - 1) / np.sum(sizes * (sizes - 1)))
        first = rng.integers(sizes[of])
        second = (first + rng.integers(1, sizes[of])) % sizes[of]
        return order[starts[of, None] + np.stack([first, second], axis=1)]

    return _distinct(propose, count, len(labels))


def _different(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    n = len(labels)
    if n * (n - 1) // 2 <= 8 * count:
        pairs = _all(n)
        return pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]

    def propose(size: int) -> np.ndarray:
        pairs = rng.integers(n, size=(size, 2))
        return pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]

    return _distinct(propose, count, n)


def _distinct(propose: Callable[[int], np.ndarray], count: int, n: int) -> np.ndarray:
    """Distinct unordered pairs of `n` images, at least count / 2 unless proposals run dry."""
    codes = np.empty(0, np.int64)
    for _ in range(1000):  # each round but in degenerate sets finds most of what is missing
        pairs = np.sort(propose(count), axis=1)
        codes = np.union1d(codes, pairs[:, 0] * n + pairs[:, 1])
        if len(codes) >= count // 2:
            break
    return np.stack(np.divmod(codes, n), axis=1)
