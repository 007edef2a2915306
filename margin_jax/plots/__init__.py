"""Pictures of a run. Each function returns a matplotlib figure and touches no global state.

A history is a list of records, one an epoch, such as ``run.history``. Of a loop of one's own, any
dictionaries will do that have what is drawn, ``vars`` of an `EpochRecord` for example.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margin_jax.data.decode import one_line
from margin_jax.evaluation.verification import VerificationReport
from margin_jax.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_quantiles,
    show_hidden,
    styles,
    tidy,
)
from margin_jax.stats import QUANTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from margin_jax.data.dataset import Dataset
    from margin_jax.plots.figure import Figure
    from margin_jax.schedules.response import Response

# Ticks of probit axes.
_RATES = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999)

History = list[dict[str, Any]]


def plot_margin(history: History, watched: float | None = None) -> "Figure":
    """The margin in force, and below it the share of easy triplets, by epoch.

    Args:
        history: a record an epoch, with epoch, margin and easy_fraction.
        watched: the share at which the schedule acts, drawn as a line.
    """
    epochs = _column(history, "epoch")
    figure, (above, below) = _epoch_figure(len(epochs), rows=2)
    above.plot(epochs, _column(history, "margin"), color=ORANGE, drawstyle="steps-mid")
    above.set_ylabel("margin μ")
    above.set_title("Margin in force, and easy triplets under it")
    below.plot(epochs, 100 * _column(history, "easy_fraction"), color=BLUE)
    if watched is not None:
        name = f"the schedule acts at {100 * watched:g} %"
        below.axhline(100 * watched, color=GREY, ls="--", lw=1, label=name)
        _legend(figure)
    below.set_ylabel("easy triplets (%)")
    return figure


def plot_loss(history: History, best_epoch: int) -> "Figure":
    """Training loss, and below it the validation AUC with the best epoch marked, by epoch.

    Args:
        history: a record an epoch, with epoch, loss and validation_auc.
        best_epoch: from 1, as in ``run.report``.
    """
    epochs = _column(history, "epoch")
    figure, (above, below) = _epoch_figure(len(epochs), rows=2)
    above.plot(epochs, _column(history, "loss"), color=BLUE)
    above.set_ylabel("training loss")
    # From 0 on where the loss is not below it, with room above.
    above.lines[0].sticky_edges.y.append(0)
    above.update_datalim([(epochs[0], 0)])
    above.set_title("Training loss, and verification on validation identities")
    auc = _column(history, "validation_auc")
    below.plot(epochs, auc, color=GREEN)
    best = auc[best_epoch - 1]
    below.plot(best_epoch, best, "o", color=ORANGE, label=f"best: {best:.4f}, epoch {best_epoch}")
    below.lines[-1].set(clip_on=False, zorder=3)
    below.set_ylabel("validation AUC")
    _legend(figure)
    return figure


def plot_effective_margin(history: History) -> "Figure":
    """Mean and spread of d(a,n) − d(a,p) over all valid triplets by epoch, with μ drawn on it.

    Quantiles stand for the spread where they were recorded.

    Args:
        history: a record an epoch, with epoch, margin, mean_effective, std_effective and, if there
            are any, effective_quantiles.
    """
    epochs = _column(history, "epoch")
    figure, (axes,) = _epoch_figure(len(epochs))
    mean, std = _column(history, "mean_effective"), _column(history, "std_effective")
    if any(record.get("effective_quantiles") for record in history):
        unknown = [np.nan] * len(QUANTILES)
        rows = [record.get("effective_quantiles") or unknown for record in history]
        draw_quantiles(axes, epochs, np.array(rows, np.float64).T)
    else:
        name = "± standard deviation"
        axes.fill_between(epochs, mean - std, mean + std, color=BLUE, alpha=0.2, lw=0, label=name)
    axes.plot(epochs, mean, color=BLUE, label="mean over all triplets")
    axes.plot(
        epochs, _column(history, "margin"), color=ORANGE, drawstyle="steps-mid", label="margin μ"
    )
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_ylabel("effective margin d(a,n) − d(a,p)")
    axes.set_title("Effective margin: triplets above μ are easy")
    _legend(figure)
    return figure


def plot_distances(distances: np.ndarray, same: np.ndarray, threshold: float) -> "Figure":
    """Distances of same and of different test pairs, and the threshold between them.

    Args:
        distances: float[pairs], as from ``run.distances``.
        same: bool[pairs].
        threshold: such as ``run.threshold``.
    """
    figure, (axes,) = _figure()
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
    _legend(figure)
    return figure


def plot_roc(reports: dict[str, VerificationReport]) -> "Figure":
    """ROC curves by name, the false positive rate on a logarithmic axis.

    A dot marks the threshold. Chance, a straight line otherwise, is a curve on such an axis.
    """
    figure, (axes,) = _figure()
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
    _legend(figure)
    return figure


def plot_det(reports: dict[str, VerificationReport]) -> "Figure":
    """DET curves by name: false non-match rate over false match rate, both on probit axes.

    There normal distances give straight lines, and the rare errors have room. A dot marks the
    threshold. (Martin et al. 1997, "The DET curve in assessment of detection task performance".)
    """
    from scipy.special import ndtr, ndtri  # slow to import

    figure, (axes,) = _figure()
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
    _legend(figure)
    return figure


def plot_comparison(histories: dict[str, dict[int, History]]) -> "Figure":
    """Margin, easy share and validation AUC by epoch: a thick mean and thin seeds an arm.

    Args:
        histories: by arm, then by seed. A mean is over those that have the epoch: some may have
            stopped early.
    """
    shown = (
        ("margin", "margin μ", 1, "steps-mid"),
        ("easy_fraction", "easy triplets (%)", 100, "default"),
        ("validation_auc", "validation AUC", 1, "default"),
    )
    every = [
        [scale * _seeds(runs, name) for runs in histories.values()] for name, _, scale, _ in shown
    ]
    means = [[np.nanmean(curves, axis=0) for curves in panel] for panel in every]
    longest = max((history for runs in histories.values() for history in runs.values()), key=len)
    epochs = _column(longest, "epoch")
    figure, grid = _epoch_figure(len(epochs), rows=3)
    for axes, panel, mean, (_, label, _, drawn) in zip(grid, every, means, shown, strict=True):
        for i, ((style, colour), arm) in enumerate(zip(styles(), histories, strict=False)):
            at = epochs[: len(mean[i])]
            if len(panel[i]) > 1:
                axes.plot(at, panel[i].T, style, color=colour, lw=0.5, alpha=0.3, drawstyle=drawn)
            axes.plot(at, mean[i], style, color=colour, lw=2, drawstyle=drawn)
            if axes is grid[0]:
                axes.lines[-1].set_label(arm)
        show_hidden(axes)
        axes.set_ylabel(label)
    seeds = len(next(iter(histories.values())))
    grid[0].set_title(f"Mean of {seeds} seed{'s' if seeds > 1 else ''}")
    columns = 2 if max(len(arm) for arm in histories) <= 40 else 1
    figure.set_size_inches(8.0, 6.8 + 0.22 * -(-len(histories) // columns))
    _legend(figure, columns)
    return figure


def plot_responses(responses: "dict[str, Response]", title: str) -> "Figure":
    """The margin, and below it the share of easy triplets at that margin, of several schedules.

    Args:
        responses: by schedule, all of one length.
        title: what they answer to.
    """
    longest = max(len(response.margin) for response in responses.values())
    figure, (above, below) = _epoch_figure(longest, rows=2)
    figure.set_size_inches(8.0, 5.4)
    for (style, colour), (name, response) in zip(styles(), responses.items(), strict=False):
        epochs = np.arange(1, 1 + len(response.margin))
        above.plot(epochs, response.margin, style, color=colour, drawstyle="steps-mid", label=name)
        below.plot(epochs, 100 * response.easy_fraction, style, color=colour)
    show_hidden(above)
    show_hidden(below)
    above.set_ylabel("margin μ")
    figure.suptitle(title, fontsize="medium")
    figure.legend(loc="outside right center", frameon=False)
    below.set_ylabel("easy triplets (%)")
    return figure


def plot_contact_sheet(dataset: "Dataset", identities: int = 10, images: int = 10) -> "Figure":
    """A row of images for each of some identities, from the largest to the smallest.

    Args:
        dataset: of pictures.
        identities: rows at most, evenly spread over the images by the size of their identities.
        images: columns at most, evenly spread over the images of an identity.

    Raises:
        ValueError: for examples that are no pictures.
    """
    from margin_jax.plots.figure import Figure  # slow to import

    if not dataset.pictures:
        examples = dataset.examples
        raise ValueError(
            f"a contact sheet is of pictures, uint8; got {examples.dtype} of shape {examples.shape}"
        )
    sizes = np.bincount(dataset.labels, minlength=len(dataset.identities))
    by_size = np.argsort(-sizes, kind="stable")
    spread = (np.arange(identities) + 0.5) / identities * len(dataset.labels)
    shown = by_size[np.unique(np.searchsorted(np.cumsum(sizes[by_size]), spread))]
    height, width, channels = dataset.examples.shape[1:]
    gap = 1 + max(height, width) // 24
    step_down, step_right = height + gap, width + gap
    sheet = np.full((len(shown) * step_down, images * step_right, channels), 255, np.uint8)
    for row, identity in enumerate(shown):
        own = np.flatnonzero(dataset.labels == identity)
        own = own[np.linspace(0, len(own) - 1, min(images, len(own))).astype(int)]
        for column, image in enumerate(dataset.examples[own]):
            top, left = row * step_down, column * step_right
            sheet[top : top + height, left : left + width] = image
    figure = Figure(
        figsize=(2.0 + 0.7 * images, 0.6 + 0.7 * len(shown) * height / width),
        dpi=150,
        layout="compressed",  # which makes room for the names beside a picture of fixed shape
    )
    axes = figure.subplots()
    axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks(
        np.arange(len(shown)) * step_down + height / 2,
        [f"{one_line(Path(dataset.identities[i])):.24} ({sizes[i]:,})" for i in shown],
        parse_math=False,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Identities, and how many images each has", fontsize="medium")
    return figure


def _figure(rows: int = 1) -> "tuple[Figure, list[Axes]]":
    from margin_jax.plots.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    grid = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    for axes in grid:
        tidy(axes)
    return figure, list(grid)


def _epoch_figure(epochs: int, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """Axes that begin at the first epoch; a single one is a dot, since it makes no line."""
    from margin_jax.plots.figure import EpochLocator

    figure, grid = _figure(rows)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.set_major_locator(EpochLocator())
    for axes in grid:
        axes.margins(x=0)
        if epochs == 1:
            axes.margins(x=4)
            axes.set_prop_cycle(marker=["o"])
    return figure, grid


def _legend(figure: "Figure", columns: int = 2) -> None:
    """Below the axes: in them it would lie over some curve sooner or later."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _seeds(runs: dict[int, History], name: str) -> np.ndarray:
    """float64[seeds, epochs of the longest], NaN where a seed has stopped."""
    curves = np.full((len(runs), max(len(history) for history in runs.values())), np.nan)
    for curve, history in zip(curves, runs.values(), strict=True):
        curve[: len(history)] = _column(history, name)
    return curves


def _column(history: History, name: str) -> np.ndarray:
    """float64[epochs]; what was not measured is NaN."""
    return np.array([np.nan if r[name] is None else r[name] for r in history], np.float64)
