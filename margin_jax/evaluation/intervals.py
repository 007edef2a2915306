"""Intervals of verification figures, by a bootstrap over identities.

Pairs are not independent: one person is in many of them, and a person who looks like others has
many false matches. So identities are drawn with replacement, as often as there are, and not pairs.
With ``c_i`` for how often identity i came:

* a same pair of i weighs ``c_i``: a person who came twice is two people with such pairs;
* a different pair of i and j weighs ``c_i · c_j``;
* what two copies of one person would make together is no pair.

It is the vertex bootstrap of networks (Snijders and Borgatti 1999), and, of the same pairs alone,
the subset bootstrap of biometrics (Bolle, Ratha and Pankanti 2004; for each client Poh and Bengio
2007). The subset bootstrap of different pairs, which draws one of their two identities, is too
narrow (Li et al. 2009). This one is never much too narrow, but too wide where an identity is in few
different pairs, by up to √3 where it is in one alone (Owen 2007, "The pigeonhole bootstrap").
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
COVERS = 0.95
# Of fewer identities in pairs of either kind an interval would be far too narrow.
FEWEST = 10
# Weights that are made at a time.
_BLOCK = 2**18

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of the results in a :class:`VerificationReport`.

    Attributes:
        auc, eer, fmr, fnmr: the lower and the upper end of each.
        tpr_at_fpr: likewise, for each FPR.
        identities: the number of resampled identities.
    """

    auc: Interval
    eer: Interval
    fmr: Interval
    fnmr: Interval
    tpr_at_fpr: dict[float, Interval]
    identities: int

    def to_json(self) -> dict[str, Any]:
        """The results, ready for ``json.dumps``."""
        return {
            **{name: list(getattr(self, name)) for name in ("auc", "eer", "fmr", "fnmr")},
            "tpr_at_fpr": {f"{fpr:g}": list(ends) for fpr, ends in self.tpr_at_fpr.items()},
            "identities": self.identities,
        }


def bootstrap_intervals(
    distances: np.ndarray,
    same: np.ndarray,
    identities: np.ndarray,
    *,
    threshold: float,
    fprs: tuple[float, ...],
    figures: tuple[float, ...] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals | None:
    """Where 95 % of the figures of resampled identities are (percentiles).

    None where fewer than ten identities are in pairs of one kind.

    Args:
        distances: float[pairs], finite.
        same: bool[pairs], of both kinds.
        identities: [pairs, 2], whose the two images of a pair are: one of a same pair, two of a
            different one.
        threshold: at which FMR and FNMR are.
        fprs: at which TPR is.
        figures: AUC, EER, FMR, FNMR and TPR at each FPR of a larger set, of which these pairs are
            a sample: intervals then lie about those, and not about the figures of the sample.
        resamples: how often identities are drawn.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: identities of another shape, or that are not those of such pairs.

    References:
        Snijders and Borgatti 1999, "Non-parametric standard errors and tests for network
        statistics", Connections 22(2). Bolle, Ratha and Pankanti 2004, "Error analysis of pattern
        recognition systems: the subsets bootstrap", Computer Vision and Image Understanding 93(1).
        Poh and Bengio 2007, "Estimating the confidence interval of expected performance curve in
        biometric authentication using joint bootstrap". Li et al. 2009, "Second-level partition
        for estimating FAR confidence intervals in biometric systems". Owen 2007, "The pigeonhole
        bootstrap", `arXiv 0712.1111 <https://arxiv.org/abs/0712.1111>`_.
    """
    order = np.argsort(distances, kind="stable")
    same = np.asarray(same)[order]
    members = _members(identities, same.shape, order)
    if np.any((members[:, 0] == members[:, 1]) != same):
        raise ValueError("identities must be one of a same pair, and two of a different one")
    count = 1 + int(np.max(members))
    if min(len(np.unique(members[kind])) for kind in (same, ~same)) < FEWEST:
        return None
    pairs = _Sorted(np.asarray(distances, np.float64)[order], same, members, threshold)
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK // len(same))
    found = []
    for start in range(0, resamples, size):
        drawn = rng.integers(count, size=(min(size, resamples - start), count))
        drawn += count * np.arange(len(drawn))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        found.append(pairs.figures(weights, fprs))
    values = np.concatenate(found)
    values = values[np.isfinite(values).all(axis=1)]  # else pairs of one kind were drawn alone
    if figures is not None:
        values += np.asarray(figures) - pairs.figures(np.ones((1, count), int), fprs)
        values = np.clip(values, 0, 1)
    tail = (1 - COVERS) / 2
    auc, eer, fmr, fnmr, *tprs = (
        (float(low), float(high)) for low, high in np.quantile(values, (tail, 1 - tail), axis=0).T
    )
    return Intervals(auc, eer, fmr, fnmr, dict(zip(fprs, tprs, strict=True)), count)


def _members(identities: np.ndarray, pairs: tuple[int, ...], order: np.ndarray) -> np.ndarray:
    """int[pairs, 2]: identities from 0 on, each of them there."""
    identities = np.asarray(identities)
    if identities.shape != (*pairs, 2):
        raise ValueError(f"identities must have shape {(*pairs, 2)}; got {identities.shape}")
    _, members = np.unique(identities, return_inverse=True)
    sorted_: np.ndarray = members.reshape(-1, 2)[order]
    return sorted_


class _Sorted:
    """Pairs in the order of their distances: the figures of any weights are sums over them."""

    def __init__(
        self, distances: np.ndarray, same: np.ndarray, members: np.ndarray, threshold: float
    ) -> None:
        near, far = distances[same], distances[~same]
        # In one piece each: `np.take` with such indices is five times as fast as `[:, indices]`.
        self._same = members[same, 0].copy()
        self._first, self._second = members[~same].T.copy()
        # How many different pairs are nearer than a same pair, and how many at most as far; and
        # how many same pairs are nearer than a different one.
        self._before = np.searchsorted(far, near, "left")
        self._upto = np.searchsorted(far, near, "right")
        self._nearer = np.append(np.searchsorted(near, far, "left"), len(near))
        # Of both kinds, those at most at each distance there is: the points of the ROC.
        points = np.append(-np.inf, distances[np.append(np.diff(distances) > 0, True)])
        self._points = np.searchsorted(near, points, "right"), np.searchsorted(far, points, "right")
        self._called = (
            np.searchsorted(near, threshold, "right"),
            np.searchsorted(far, threshold, "right"),
        )

    def figures(self, counts: np.ndarray, fprs: tuple[float, ...]) -> np.ndarray:
        """float64[n, 4 + fprs]: AUC, EER, FMR, FNMR, TPR at each FPR, of int[n, identities]."""
        weights = np.take(counts, self._same, axis=1)
        different = np.take(counts, self._first, axis=1) * np.take(counts, self._second, axis=1)
        true, false = _upto(weights), _upto(different)
        rows, s, d = np.arange(len(counts)), true[:, -1], false[:, -1]
        with np.errstate(invalid="ignore"):  # 0 / 0, where there are no pairs of a kind
            # Before a same pair are those different ones that are nearer, and half of its ties.
            nearer = np.take(false, self._before, axis=1) + np.take(false, self._upto, axis=1)
            before = np.sum(weights * nearer, axis=1)
            found = [1 - before / (2.0 * s * d), self._equal_error_rate(true, false)]
            found += [false[:, self._called[1]] / d, 1 - true[:, self._called[0]] / s]
            for rate in fprs:
                # The nearest different pair that may not be called the same, and what is nearer.
                # A whole number, else `searchsorted` would convert all sums; 0.07 · 100 is over 7.
                most = (rate * d * (1 + 1e-12)).astype(np.int64)
                allowed = [
                    np.searchsorted(*one, "right") - 1 for one in zip(false, most, strict=True)
                ]
                found.append(true[rows, self._nearer[allowed]] / s)
        return np.stack(found, axis=1)

    def _equal_error_rate(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        """As that of :func:`verification_report`; the crossing is found by halving."""
        rows, s, d = np.arange(len(true)), true[:, -1], false[:, -1]

        def at(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x = false[rows, self._points[1][point]] / d
            return x, x + true[rows, self._points[0][point]] / s - 1

        before, after = np.zeros_like(rows), np.full_like(rows, len(self._points[0]) - 1)
        while np.any(after - before > 1):
            middle = (before + after) // 2
            crossed = at(middle)[1] >= 0
            before, after = np.where(crossed, before, middle), np.where(crossed, middle, after)
        (x, below), (x_after, above) = at(before), at(after)
        found: np.ndarray = x - below / (above - below) * (x_after - x)
        return found


def _upto(weights: np.ndarray) -> np.ndarray:
    """int64[n, pairs + 1]: sums of the first so many, from none on."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), np.int64)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
