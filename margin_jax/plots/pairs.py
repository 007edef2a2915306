"""What a threshold makes of pairs: their distances, the ROC, the DET curve."""

from typing import TYPE_CHECKING

import numpy as np

from margin_jax.evaluation.verification import VerificationReport
from margin_jax.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    legend,
    plain_figure,
    styles,
)

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure

# Ticks of probit axes.
_RATES = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999)


def plot_distances(distances: np.ndarray, same: np.ndarray, threshold: float) -> "Figure":
    """Distances of same and of different test pairs, and the threshold between them.

    Args:
        distances: float[pairs], as from ``run.distances``.
        same: bool[pairs].
        threshold: such as ``run.threshold``.
    """
    figure, (axes,) = plain_figure()
    bins = np.linspace(0.0, float(np.max(distances)), 61).tolist()
    for kind, colour, name in ((same, BLUE, "same"), (~same, ORANGE, "different")):
        axes.hist(
            distances[kind],
            bins,
            density=True,
            alpha=0.6,
            color=colour,
            label=f"{name} identity ({np.count_nonzero(kind):,} pairs)",
        )
    axes.axvline(threshold, color="black", ls="--", label=f"threshold {threshold:.3f}")
    axes.set_xlim(left=0)
    axes.set_xlabel("distance")
    axes.set_ylabel("density")
    axes.set_title("Distances of test pairs")
    legend(figure)
    return figure


def plot_roc(reports: dict[str, VerificationReport]) -> "Figure":
    """ROC curves by name, the false positive rate on a logarithmic axis.

    A dot marks the threshold. Chance, a straight line otherwise, is a curve on such an axis.
    """
    figure, (axes,) = plain_figure()
    lowest = min(1 / report.different for report in reports.values())
    for (style, colour), (name, report) in zip(styles(), reports.items(), strict=False):
        # Of no false match at the edge, since a logarithm has no 0.
        axes.scatter(max(report.fmr, lowest), 1 - report.fnmr, color=colour, clip_on=False)
        axes.plot(
            report.fpr,
            report.tpr,
            style,
            color=colour,
            label=f"{name}: AUC {report.auc:.4f}, EER {report.eer:.1%}",
        )
    chance = np.geomspace(lowest, 1, 200)
    axes.plot(chance, chance, color=GREY, ls=":", label="chance")
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false positive rate (on a logarithmic axis chance is a curve)")
    axes.set_ylabel("true positive rate")
    axes.set_title("ROC on test pairs; dots: the threshold")
    legend(figure)
    return figure


def plot_det(reports: dict[str, VerificationReport]) -> "Figure":
    """DET curves by name: false non-match rate over false match rate, both on probit axes.

    There normal distances give straight lines, and the rare errors have room. A dot marks the
    threshold. (Martin et al. 1997, "The DET curve in assessment of detection task performance".)
    """
    from scipy.special import ndtr, ndtri  # slow to import

    figure, (axes,) = plain_figure()
    lowest = min(1 / min(report.different, report.same) for report in reports.values())
    edge = (max(min(lowest, 0.01), 1e-5), 0.5)  # beyond half, a threshold is of no use
    least, most = 0.01, edge[1]
    for (style, colour), (name, report) in zip(styles(), reports.items(), strict=False):
        fmr, fnmr = (np.clip(rate, 1e-9, 1 - 1e-9) for rate in (report.fpr, 1 - report.tpr))
        label = f"{name}: FMR {report.fmr:.2%}, FNMR {report.fnmr:.2%}"
        axes.plot(fmr, fnmr, style, color=colour, label=label)
        at = float(np.clip(report.fmr, *edge)), float(np.clip(report.fnmr, edge[0], 1 - edge[0]))
        axes.scatter(*at, color=colour, clip_on=False)
        within = fnmr[(fmr >= edge[0]) & (fmr <= edge[1])]
        least, most = np.min([least, at[1], *within]), np.max([most, at[1], *within])
    axes.plot(chance := np.linspace(*edge, 200), 1 - chance, color=GREY, ls=":", label="chance")
    upright = (max(float(least), edge[0]), min(float(most), 1 - edge[0]))
    axes.set_xscale("function", functions=(ndtri, ndtr))
    axes.set_yscale("function", functions=(ndtri, ndtr))
    for axis, (low, high) in ((axes.xaxis, edge), (axes.yaxis, upright)):
        shown = [rate for rate in _RATES if low <= rate <= high]
        axis.set_ticks(shown, [f"{100 * rate:g} %" for rate in shown])
        axis.set_ticks([], minor=True)
    axes.set_xlim(*edge)
    axes.set_ylim(*upright)
    axes.set_xlabel("false match rate")
    axes.set_ylabel("false non-match rate")
    axes.set_title("DET on test pairs; dots: the threshold")
    legend(figure)
    return figure
