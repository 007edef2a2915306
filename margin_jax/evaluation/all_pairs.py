"""Verification of all pairs: every image of a set with every other, n(n − 1)/2 of them.

Few pairs are held in memory and ranked. More, the 1.8 billion of 60,000 images, are counted in
bins: two distances share a bin if their float32 have one sign, one exponent and the same first 13
bits of the mantissa. A bin is no wider than 1/8192 of its distances, whatever their range.
"""

import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.data.pairs import pair_of
from margin_jax.evaluation.embedding import pair_distances
from margin_jax.evaluation.intervals import bootstrap_intervals
from margin_jax.evaluation.retrieval import check_embeddings
from margin_jax.evaluation.roc import check_finite, check_kinds
from margin_jax.evaluation.verification import (
    FPRS,
    VerificationReport,
    at_most,
    check_threshold,
    report_from_roc,
    verification_report,
    with_intervals,
)
from margin_jax.losses.distances import DistanceFn, get_distance, origin

EXACT_UP_TO = 2**22
# Pairs of either kind that intervals are made of.
_SOME = 10**5
# Images along one side of a tile of distances.
_SIDE = 2**10
# The last bits of a float32, which bins do not look at; the bin that begins at 0, half of them all.
_REST = 10
_ZERO = 2 ** (31 - _REST)


def all_pairs_report(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    threshold: float,
    distance: str | DistanceFn = "euclidean",
    exact_up_to: int = EXACT_UP_TO,
    intervals: bool = False,
) -> VerificationReport:
    """Verification of every pair of images, in bounded memory.

    Up to `exact_up_to` pairs, this is the :func:`verification_report` of all pairs. With more
    pairs, distances are binned: the accuracy is still exact, but the ROC only has points at the
    upper edges of bins that hold a pair (these points are exact), and pairs in the same bin count
    as ties:

    * AUC is off by at most ``Σ_b same_b · different_b / (2 · S · D)``, with ``same_b`` of the S
      same and ``different_b`` of the D different pairs in bin b.
    * TPR at an FPR is never too high, and too low by less than the share of same pairs in one bin.

    Args:
        embeddings: float[n, dim].
        labels: int[n].
        threshold: chosen on other pairs, by :func:`choose_threshold`.
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`; the first of its two arguments
            is the image with the lower index.
        exact_up_to: a number of pairs; each takes about 60 bytes, and each different distance adds
            a point to the ROC.
        intervals: also compute the 95 % intervals of :func:`verification_report`. If there are more
            than 100,000 same (or different) pairs, they come from 100,000 evenly drawn ones (always
            the same), shifted to the results of all pairs; they are then a little too wide.

    Raises:
        ValueError: shapes that do not fit, embeddings or distances that are not finite, a threshold
            that is NaN, or only same or only different pairs.
        TypeError: for a threshold that is no number.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> x = np.array([[0.0], [1.0], [5.0], [7.0]])
        >>> report = mj.all_pairs_report(x, np.array([0, 0, 1, 1]), threshold=1.5)
        >>> report.same, report.different, report.accuracy
        (2, 4, 0.8333333333333334)
    """
    check_threshold(threshold)
    x, y = check_embeddings(embeddings, labels)
    metric = get_distance(distance)
    report = _report(x, y, metric, threshold, exact_up_to)
    if not intervals:
        return report
    rows = _some_pairs(y)
    found = bootstrap_intervals(
        pair_distances(x, rows, metric),
        y[rows[:, 0]] == y[rows[:, 1]],
        y[rows],
        threshold=threshold,
        fprs=FPRS,
        figures=(report.auc, report.eer, report.fmr, report.fnmr, *report.tpr_at_fpr.values()),
    )
    return with_intervals(report, found)


def _report(
    x: np.ndarray, y: np.ndarray, metric: DistanceFn, threshold: float, exact_up_to: int
) -> VerificationReport:
    """Without intervals."""
    _, dense, sizes = np.unique(y, return_inverse=True, return_counts=True)
    pairs = len(y) * (len(y) - 1) // 2
    same = int(np.sum(sizes * (sizes - 1) // 2))
    check_kinds(same, pairs)
    tiles = _tiles(metric, x, dense)
    if pairs <= exact_up_to:
        distances, matches = _listed(tiles)
        return verification_report(distances, matches, threshold=threshold)

    counts, errors, bad = _count(tiles, at_most(threshold))
    check_finite(bad, pairs)
    bins = np.flatnonzero(counts.any(axis=1))
    rates = np.cumsum(counts[bins], axis=0) / (pairs - same, same)
    fpr, tpr = np.concatenate([np.zeros((1, 2)), rates]).T
    thresholds = np.concatenate([[-np.inf], _upper_edges(bins)])
    return report_from_roc(
        fpr,
        tpr,
        thresholds,
        threshold=threshold,
        false_matches=errors[0],
        false_non_matches=errors[1],
        same=same,
        different=pairs - same,
    )


def all_distances(
    embeddings: np.ndarray, labels: np.ndarray, distance: str | DistanceFn
) -> tuple[np.ndarray, np.ndarray]:
    """float32[pairs] and bool[pairs]: the distance of every two images, and if they are the same.

    Args:
        embeddings, labels, distance: as of :func:`all_pairs_report`.
    """
    return _listed(_tiles(get_distance(distance), embeddings, np.unique_inverse(labels)[1]))


def _listed(tiles: Iterable[tuple[Array, Array, Array]]) -> tuple[np.ndarray, np.ndarray]:
    chunks = [(d[pair], s[pair]) for d, s, pair in (map(np.asarray, tile) for tile in tiles)]
    distances, same = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return distances, same


def _some_pairs(labels: np.ndarray) -> np.ndarray:
    """int[pairs, 2]: up to `_SOME` of all same pairs, and as many different ones, each alike."""
    rng = np.random.default_rng(0)
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    upto = np.cumsum(sizes * (sizes - 1) // 2)
    drawn = _distinct(rng, int(upto[-1]))
    of = np.searchsorted(upto, drawn, side="right")
    within = drawn - np.append(0, upto)[of]
    same = starts[of][:, None] + pair_of(within, sizes[of])
    # Different pairs in the order of labels: those of an image with all that come after its own.
    after = len(labels) - np.repeat(starts + sizes, sizes)
    upto = np.cumsum(after)
    drawn = _distinct(rng, int(upto[-1]))
    first = np.searchsorted(upto, drawn, side="right")
    second = len(labels) - (upto[first] - drawn)
    # The lower index first, as in the report: a distance may depend on it.
    return np.sort(order[np.concatenate([same, np.stack([first, second], axis=1)])], axis=1)


def _distinct(rng: np.random.Generator, count: int) -> np.ndarray:
    """Up to `_SOME` of the numbers below `count`, each as likely, sorted."""
    if count <= 4 * _SOME:
        return np.sort(rng.choice(count, min(_SOME, count), replace=False))
    # `choice` makes a list of them all, which may be billions; of so many few come twice.
    drawn = np.unique(rng.integers(count, size=2 * _SOME))
    return np.sort(rng.choice(drawn, _SOME, replace=False))


def _count(
    tiles: Iterable[tuple[Array, Array, Array]], threshold: np.float32
) -> tuple[np.ndarray, list[int], int]:
    """int64[bins, 2] different and same pairs; those decided wrongly; those not finite."""
    counts = np.zeros(2 * 2 * _ZERO, np.int64)
    errors, bad = np.zeros(2, np.int64), 0
    for tile in tiles:
        codes, tile_errors, tile_bad = _binned(*tile, threshold)
        found = np.asarray(codes).ravel()
        found = found[found >= 0]
        lowest = found.min()  # a tile fills few of the bins: only those between its ends are made
        counted = np.bincount(found - lowest)
        counts[lowest : lowest + len(counted)] += counted
        errors += np.asarray(tile_errors)
        bad += int(tile_bad)
    return counts.reshape(-1, 2), errors.tolist(), bad


def _tiles(
    metric: DistanceFn, x: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[Array, Array, Array]]:
    """Squares of one shape, and so one compilation, that cover the pairs of i < j."""
    vectors, names = x - origin(metric, x), jnp.asarray(labels)
    side = min(len(x), _SIDE)
    for top in range(0, len(x) - 1, side):  # the last image alone makes no pair
        for left in range(top, len(x), side):
            yield _tile(metric, vectors, names, top, left, side)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _tile(
    metric: DistanceFn, x: Array, labels: Array, top: int, left: int, side: int
) -> tuple[Array, Array, Array]:
    """[side, side]: float32 distances, whether labels are the same, whether it is a pair i < j."""
    i, j = top + jnp.arange(side), left + jnp.arange(side)
    rows, columns = jnp.minimum(i, len(x) - 1), jnp.minimum(j, len(x) - 1)
    distances = metric(x[rows], x[columns]).astype(jnp.float32)
    same = labels[rows][:, None] == labels[columns][None, :]
    return distances, same, (i[:, None] < j[None, :]) & (j < len(x))[None, :]


@jax.jit
def _binned(
    distances: Array, same: Array, pair: Array, threshold: np.float32
) -> tuple[Array, Array, Array]:
    """``2 · bin + same``, or −1 for no pair; false matches and non-matches; how many not finite."""
    bits = jax.lax.bitcast_convert_type(distances, jnp.int32)
    size = bits & 0x7FFFFFFF  # without its sign; rises with the absolute value
    ordered = jnp.where(distances < 0, ~size, size)  # −0 is 0
    codes = 2 * ((ordered >> _REST) + _ZERO) + same.astype(jnp.int32)
    called = distances <= threshold
    wrong = jnp.stack([pair & called & ~same, pair & ~called & same])
    bad = pair & ~jnp.isfinite(distances)
    errors = jnp.count_nonzero(wrong, axis=(1, 2))
    return jnp.where(pair, codes, -1), errors, jnp.count_nonzero(bad)


def _upper_edges(bins: np.ndarray) -> np.ndarray:
    """float64[bins]: the largest float32 of each."""
    ordered = ((bins - _ZERO + 1) << _REST) - 1
    size = np.where(ordered < 0, ~ordered, ordered).astype(np.int32)
    edges: np.ndarray = np.copysign(size.view(np.float32).astype(np.float64), ordered)
    return edges
