"""Verification: are two images of the same identity? Decided by a threshold on their distance.

Rule for ties: a pair is called the same if its distance is **at most** the threshold. Pairs at one
distance are therefore decided together: the ROC has one point for each distinct distance, and its
area counts a tie between a same and a different pair as one half.

Errors have the names of ISO/IEC 19795: a *false match* is a different pair that is called the same,
a *false non-match* a same pair that is not. FMR and FNMR are their shares of the pairs of a kind.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from margin_jax.evaluation.intervals import FEWEST, Intervals, bootstrap_intervals
from margin_jax.evaluation.roc import equal_error_rate, roc
from margin_jax.evaluation.tables import certainty, table

FPRS = (1e-2, 1e-3)
# A rate measured on fewer false matches than this says little.
_ENOUGH = 10


@dataclass(frozen=True)
class VerificationReport:
    """How well distances separate same from different pairs.

    Attributes:
        auc: area under the ROC, in [0, 1].
        eer: equal error rate, FPR = 1 − TPR, on the linearly interpolated ROC.
        threshold: a distance, chosen on other pairs; pairs at most this far apart count as same.
        accuracy: share of pairs classified correctly at `threshold`.
        fmr: false match rate at `threshold`: share of the different pairs that count as same.
        fnmr: false non-match rate at `threshold`: share of the same pairs that count as different.
        tpr_at_fpr: for each of 0.01 and 0.001 the highest TPR at any threshold with at most that
            FPR.
        same, different: numbers of pairs.
        warnings: results that are based on too few pairs.
        fpr, tpr, thresholds: the ROC, from (0, 0) to (1, 1); thresholds are distances.
        intervals: 95 % confidence intervals, by a bootstrap over identities; None if identities are
            not known or too few.
    """

    auc: float
    eer: float
    threshold: float
    accuracy: float
    fmr: float
    fnmr: float
    tpr_at_fpr: dict[float, float]
    same: int
    different: int
    warnings: tuple[str, ...]
    fpr: np.ndarray = field(repr=False, compare=False)
    tpr: np.ndarray = field(repr=False, compare=False)
    thresholds: np.ndarray = field(repr=False, compare=False)
    intervals: Intervals | None = None

    def to_json(self) -> dict[str, Any]:
        """All results except the curve, ready for ``json.dumps``."""
        return {
            "auc": self.auc,
            "eer": self.eer,
            "threshold": self.threshold,
            "accuracy": self.accuracy,
            "fmr": self.fmr,
            "fnmr": self.fnmr,
            "tpr_at_fpr": {f"{fpr:g}": tpr for fpr, tpr in self.tpr_at_fpr.items()},
            "same_pairs": self.same,
            "different_pairs": self.different,
            "intervals": None if self.intervals is None else self.intervals.to_json(),
            "warnings": list(self.warnings),
        }

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        said = self.to_json()
        notes = [f"note: {warning}" for warning in self.warnings]
        return "\n\n".join([table([("verification", said)]), *certainty(said), *notes])


def choose_threshold(distances: np.ndarray, same: np.ndarray, fmr: float | None = None) -> float:
    """A threshold: pairs at most this far apart count as same.

    By default that of the ROC point nearest to (0, 1), or the smallest one in a tie. With `fmr`,
    the largest of the distances at which the false match rate of these pairs is at most `fmr`; if
    even the smallest distance exceeds it, the number just below, at which no pair matches.

    Choose it on validation pairs, and pass it to :func:`verification_report` for test pairs. On
    their identities the false match rate will differ; the report contains it.

    A rate is refused if it would be based on fewer than ten false matches. If different pairs were
    independent, ten would give the rate a standard error of about a third. Doddington's "rule of
    30" (ISO/IEC 19795-1), ± 30 % with 90 % confidence, would need 30, and the "rule of 3" could not
    distinguish the rate from 0. Pairs are not independent, so rely on the intervals of the report.

    Args:
        distances: float[pairs].
        same: bool[pairs].
        fmr: a false match rate, above 0 and below 1.

    Raises:
        ValueError: as :func:`verification_report`; for an `fmr` out of range, or one that needs
            more different pairs.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> distances = np.array([0.1, 0.3, 0.5, 0.4, 0.9, 1.0])
        >>> mj.choose_threshold(distances, np.array([True, True, True, False, False, False]))
        0.3
    """
    fpr, tpr, thresholds = roc(distances, same)
    # Not the first point: there nothing is called the same, at a threshold of minus infinity.
    fpr, tpr, thresholds = fpr[1:], tpr[1:], thresholds[1:]
    if fmr is not None:
        check_fmr(fmr, int(np.count_nonzero(~np.asarray(same))))
        within = int(np.count_nonzero(fpr <= fmr))
        return float(thresholds[within - 1] if within else np.nextafter(thresholds[0], -np.inf))
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
    fpr, tpr, thresholds = roc(distances, same)
    n_same = np.count_nonzero(same)
    right = tpr * n_same + (1 - fpr) * (len(np.asarray(same)) - n_same)
    return float(thresholds[1 + int(np.argmax(np.round(right[1:])))])  # rounded to whole pairs


def check_fmr(fmr: float, different: int) -> None:
    """Refuses a false match rate that so many different pairs cannot show.

    Raises:
        ValueError: for such a rate, with how many pairs it needs; for a rate that is none.
    """
    if different < (needed := different_pairs_for(fmr)):
        raise ValueError(
            f"fmr needs at least {needed:,} different pairs for a threshold at {fmr:g}, so that "
            f"{_ENOUGH} match falsely; got {different:,}"
        )


def different_pairs_for(fmr: float) -> int:
    """How many different pairs a false match rate needs, that it be made of ten false matches.

    Raises:
        ValueError: for a rate that is none.
    """
    if not 0 < fmr < 1:
        raise ValueError(f"fmr must be above 0 and below 1; got {fmr}")
    return int(np.ceil(_ENOUGH / fmr * (1 - 1e-12)))  # 10 / 0.003 times 0.003 may be above 10


def verification_report(
    distances: np.ndarray,
    same: np.ndarray,
    *,
    threshold: float,
    identities: np.ndarray | None = None,
) -> VerificationReport:
    """AUC, EER, errors at `threshold`, TPR at low FPR, and the ROC.

    Args:
        distances: float[pairs], smaller for more similar pairs.
        same: bool[pairs].
        threshold: chosen on other pairs, by :func:`choose_threshold`.
        identities: [pairs, 2], the identities of the two images of each pair. With them the report
            has 95 % intervals by a bootstrap over identities: identities are drawn with replacement
            1,000 times (always the same draws); a same pair is weighted by how often its identity
            was drawn, a different pair by the product of both numbers; the interval is from the
            2.5th to the 97.5th percentile. Intervals tend to be too wide, by up to √3 where
            identities are in few different pairs. With fewer than 40 identities they are somewhat
            too narrow, and with fewer than ten there are none.

    Raises:
        ValueError: shapes that differ, a distance that is not finite, a threshold that is NaN,
            pairs of one kind only, or identities that are not those of such pairs.
        TypeError: if `same` is not boolean.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> distances = np.array([0.1, 0.4, 0.35, 0.8])
        >>> same = np.array([True, True, False, False])
        >>> report = mj.verification_report(distances, same, threshold=0.5)
        >>> report.auc, report.accuracy
        (0.75, 0.75)

    References:
        Snijders and Borgatti 1999, "Non-parametric standard errors and tests for network
        statistics" (the vertex bootstrap). Bolle et al. 2004, "Error analysis of pattern
        recognition systems: the subsets bootstrap". Owen 2007, "The pigeonhole bootstrap",
        `arXiv 0712.1111 <https://arxiv.org/abs/0712.1111>`_ (how wide it is).
    """
    check_threshold(threshold)
    curve = roc(distances, same)
    # Not float32: numpy would round the threshold to compare it.
    distances, same = np.asarray(distances, np.float64), np.asarray(same)
    called = distances <= threshold
    report = report_from_roc(
        *curve,
        threshold=threshold,
        false_matches=int(np.count_nonzero(called & ~same)),
        false_non_matches=int(np.count_nonzero(~called & same)),
        same=int(np.count_nonzero(same)),
        different=int(np.count_nonzero(~same)),
    )
    if identities is None:
        return report
    found = bootstrap_intervals(distances, same, identities, threshold=float(threshold), fprs=FPRS)
    return with_intervals(report, found)


def with_intervals(report: VerificationReport, found: Intervals | None) -> VerificationReport:
    """The report with its intervals, or with a warning that there are none."""
    few = f"no intervals: they need {FEWEST} identities in same and in different pairs"
    warnings = report.warnings if found else (*report.warnings, few)
    return dataclasses.replace(report, intervals=found, warnings=warnings)


def report_from_roc(
    fpr: np.ndarray,
    tpr: np.ndarray,
    thresholds: np.ndarray,
    *,
    threshold: float,
    false_matches: int,
    false_non_matches: int,
    same: int,
    different: int,
) -> VerificationReport:
    """The figures of a ROC, and of the errors at `threshold`, which are counted."""
    warnings = tuple(
        f"TPR at FPR {rate:g} needs {_ENOUGH / rate:,.0f} different pairs to say much; "
        f"got {different:,}"
        for rate in FPRS
        if different * rate < _ENOUGH
    )
    return VerificationReport(
        auc=float(np.trapezoid(tpr, fpr)),
        eer=equal_error_rate(fpr, tpr),
        threshold=float(threshold),
        accuracy=(same + different - false_matches - false_non_matches) / (same + different),
        fmr=false_matches / different,
        fnmr=false_non_matches / same,
        tpr_at_fpr={rate: float(np.max(tpr[fpr <= rate])) for rate in FPRS},
        same=same,
        different=different,
        warnings=warnings,
        fpr=fpr,
        tpr=tpr,
        thresholds=thresholds,
    )


def at_most(threshold: float) -> np.float32:
    """The largest float32 that is at most `threshold`; no distance lies between the two.

    Nor is it one that a processor may take for 0, as the number just below 0 is.
    """
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
    if float(nearest) > threshold:
        nearest = np.float32(np.nextafter(nearest, np.float32(-np.inf)))
    least = np.finfo(np.float32).smallest_normal
    return -least if -least < nearest < 0 else nearest


def check_threshold(threshold: float) -> None:
    """Raises ValueError for NaN, TypeError for what is no number."""
    if isinstance(threshold, str) or np.ndim(threshold) or threshold is None:
        raise TypeError(f"threshold must be a distance; got {threshold!r:.80}")
    if not threshold == threshold:
        raise ValueError("threshold must be a distance; got NaN")
