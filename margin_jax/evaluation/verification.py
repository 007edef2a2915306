"""Verification: are two images of the same identity? Decided by a threshold on their distance.

Rule for ties: a pair is called the same if its distance is **at most** the threshold. Pairs at one
distance are therefore decided together: the ROC has one point for each distinct distance, and its
area counts a tie between a same and a different pair as one half.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from margin_jax.evaluation.tables import table

FPRS = (1e-2, 1e-3)
# A rate measured on fewer false matches than this says little.
_ENOUGH = 10


@dataclass(frozen=True)
class VerificationReport:
    """How well distances tell same from different pairs.

    Attributes:
        auc: area under the ROC, in [0, 1].
        eer: equal error rate: where the ROC, its points joined by lines, has FPR = 1 − TPR.
        threshold: a distance, chosen on other pairs; at most it means "same".
        accuracy: share of the pairs decided rightly at `threshold`.
        tpr_at_fpr: for each of 0.01 and 0.001 the highest TPR of a threshold with at most that FPR.
        same, different: numbers of pairs.
        warnings: figures that rest on too few pairs.
        fpr, tpr, thresholds: the ROC, from (0, 0) to (1, 1); a threshold is a distance.
    """

    auc: float
    eer: float
    threshold: float
    accuracy: float
    tpr_at_fpr: dict[float, float]
    same: int
    different: int
    warnings: tuple[str, ...]
    fpr: np.ndarray = field(repr=False)
    tpr: np.ndarray = field(repr=False)
    thresholds: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The figures without the curve, ready for ``json.dumps``."""
        return {
            "auc": self.auc,
            "eer": self.eer,
            "threshold": self.threshold,
            "accuracy": self.accuracy,
            "tpr_at_fpr": {f"{fpr:g}": tpr for fpr, tpr in self.tpr_at_fpr.items()},
            "same_pairs": self.same,
            "different_pairs": self.different,
            "warnings": list(self.warnings),
        }

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        notes = [f"note: {warning}" for warning in self.warnings]
        return "\n\n".join([table([("verification", self.to_json())]), *notes])


def choose_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The distance at the ROC point nearest to (0, 1); the smallest one if several are as near.

    Use it on validation pairs, and give the result to :func:`verification_report` on test pairs.

    Args:
        distances: float[pairs].
        same: bool[pairs].

    Raises:
        ValueError: as :func:`verification_report`.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> distances = np.array([0.1, 0.3, 0.5, 0.4, 0.9, 1.0])
        >>> mj.choose_threshold(distances, np.array([True, True, True, False, False, False]))
        0.3
    """
    fpr, tpr, thresholds = _roc(distances, same)
    # Not the first point: there nothing is called the same, at a threshold of minus infinity.
    fpr, tpr, thresholds = fpr[1:], tpr[1:], thresholds[1:]
    squared = fpr**2 + (1 - tpr) ** 2
    n_same = int(np.count_nonzero(same))
    n_different = len(same) - n_same
    missed, false = np.rint((1 - tpr) * n_same), np.rint(fpr * n_different)

    def exact(point: int) -> int:
        """Comparable without rounding, so that as near is as near."""
        return (int(false[point]) * n_same) ** 2 + (int(missed[point]) * n_different) ** 2

    candidates = np.flatnonzero(squared <= squared.min() + 1e-12).tolist()
    return float(thresholds[min(candidates, key=exact)])


def most_accurate_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The distance at which most of these pairs are decided rightly; the smallest if several are.

    Args:
        distances: float[pairs].
        same: bool[pairs].

    Raises:
        ValueError: as :func:`verification_report`.
    """
    fpr, tpr, thresholds = _roc(distances, same)
    n_same = np.count_nonzero(same)
    right = tpr * n_same + (1 - fpr) * (len(np.asarray(same)) - n_same)
    return float(thresholds[1 + int(np.argmax(np.round(right[1:])))])  # rounded to whole pairs


def verification_report(
    distances: np.ndarray, same: np.ndarray, *, threshold: float
) -> VerificationReport:
    """AUC, EER, accuracy at `threshold`, TPR at low FPR, and the ROC itself.

    Args:
        distances: float[pairs], small for pairs that look the same.
        same: bool[pairs].
        threshold: chosen on other pairs, by :func:`choose_threshold`.

    Raises:
        ValueError: shapes that differ, a distance that is not finite, a threshold that is NaN, or
            pairs of one kind only.
        TypeError: if `same` is not boolean.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> distances = np.array([0.1, 0.4, 0.35, 0.8])
        >>> same = np.array([True, True, False, False])
        >>> report = mj.verification_report(distances, same, threshold=0.5)
        >>> report.auc, report.accuracy
        (0.75, 0.75)
    """
    check_threshold(threshold)
    roc = _roc(distances, same)
    # Not float32: numpy would round the threshold to compare it.
    distances, same = np.asarray(distances, np.float64), np.asarray(same)
    n_same = int(np.count_nonzero(same))
    right = int(np.count_nonzero((distances <= threshold) == same))
    return report_from_roc(
        *roc, threshold=threshold, right=right, same=n_same, different=len(same) - n_same
    )


def report_from_roc(
    fpr: np.ndarray,
    tpr: np.ndarray,
    thresholds: np.ndarray,
    *,
    threshold: float,
    right: int,
    same: int,
    different: int,
) -> VerificationReport:
    """The figures of a ROC, where `right` of all pairs are decided rightly at `threshold`."""
    warnings = tuple(
        f"TPR at FPR {rate:g} needs {_ENOUGH / rate:,.0f} different pairs to say much; "
        f"got {different:,}"
        for rate in FPRS
        if different * rate < _ENOUGH
    )
    return VerificationReport(
        auc=float(np.trapezoid(tpr, fpr)),
        eer=_equal_error_rate(fpr, tpr),
        threshold=float(threshold),
        accuracy=right / (same + different),
        tpr_at_fpr={rate: float(np.max(tpr[fpr <= rate])) for rate in FPRS},
        same=same,
        different=different,
        warnings=warnings,
        fpr=fpr,
        tpr=tpr,
        thresholds=thresholds,
    )


def check_threshold(threshold: float) -> None:
    """Raises ValueError for NaN."""
    if not threshold == threshold:
        raise ValueError("threshold must be a distance; got NaN")


def check_finite(bad: int, pairs: int) -> None:
    """Raises ValueError if the distances of some, `bad`, pairs are not finite."""
    if bad:
        raise ValueError(f"distances must be finite; {bad} of {pairs} are not")


def check_kinds(same: int, pairs: int) -> None:
    """Raises ValueError if all pairs are of one kind."""
    if same in (0, pairs):
        raise ValueError(f"verification needs same and different pairs; got {same} same of {pairs}")


def _roc(distances: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FPR, TPR and threshold at every distance there is, after that at which none is the same."""
    distances, same = np.asarray(distances, np.float64), np.asarray(same)
    if distances.ndim != 1 or distances.shape != same.shape:
        raise ValueError(
            f"distances and same must be one-dimensional and of one length; "
            f"got shapes {distances.shape} and {same.shape}"
        )
    if same.dtype != np.bool_:
        raise TypeError(f"same must be boolean; got {same.dtype}")
    check_finite(int(np.count_nonzero(~np.isfinite(distances))), len(distances))
    check_kinds(int(np.count_nonzero(same)), len(same))
    order = np.argsort(distances, kind="stable")
    distances = distances[order]
    last = np.append(np.flatnonzero(np.diff(distances)), len(order) - 1)  # of equal distances
    true = np.append(0, np.cumsum(same[order])[last])
    false = np.append(0, 1 + last) - true
    return false / false[-1], true / true[-1], np.append(-np.inf, distances[last])


def _equal_error_rate(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """Where FPR − (1 − TPR), which rises from −1 to 1 along the ROC, crosses 0."""
    excess = fpr - (1 - tpr)
    after = int(np.argmax(excess >= 0))
    before = after - 1
    part = -excess[before] / (excess[after] - excess[before])
    return float(fpr[before] + part * (fpr[after] - fpr[before]))
