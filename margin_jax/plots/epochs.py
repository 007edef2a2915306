"""What moves from epoch to epoch: margins, losses, easy triplets.

A history is a list of records, one an epoch, such as ``run.history``. Of a loop of one's own, any
dictionaries will do that have what is drawn, ``vars`` of an `EpochRecord` for example.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from margin_jax.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_quantiles,
    epoch_figure,
    legend,
    show_hidden,
    styles,
)
from margin_jax.stats import QUANTILES

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure
    from margin_jax.schedules.response import Response

History = list[dict[str, Any]]


def plot_margin(history: History, watched: float | None = None) -> "Figure":
    """The margin in force, and below it the share of easy triplets, by epoch.

    Args:
        history: a record an epoch, with epoch, margin and easy_fraction.
        watched: the share at which the schedule acts, drawn as a line.
    """
    epochs = _column(history, "epoch")
    figure, (above, below) = epoch_figure(len(epochs), rows=2)
    above.plot(epochs, _column(history, "margin"), color=ORANGE, drawstyle="steps-mid")
    above.set_ylabel("margin μ")
    above.set_title("Margin in force, and easy triplets under it")
    below.plot(epochs, 100 * _column(history, "easy_fraction"), color=BLUE)
    if watched is not None:
        name = f"the schedule acts at {100 * watched:g} %"
        below.axhline(100 * watched, color=GREY, ls="--", lw=1, label=name)
        legend(figure)
    below.set_ylabel("easy triplets (%)")
    return figure


def plot_loss(history: History, best_epoch: int) -> "Figure":
    """Training loss, and below it the validation AUC with the best epoch marked, by epoch.

    Args:
        history: a record an epoch, with epoch, loss and validation_auc.
        best_epoch: from 1, as in ``run.report``.
    """
    epochs = _column(history, "epoch")
    figure, (above, below) = epoch_figure(len(epochs), rows=2)
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
    legend(figure)
    return figure


def plot_effective_margin(history: History) -> "Figure":
    """Mean and spread of d(a,n) − d(a,p) over all valid triplets by epoch, with μ drawn on it.

    Quantiles stand for the spread where they were recorded.

    Args:
        history: a record an epoch, with epoch, margin, mean_effective, std_effective and, if there
            are any, effective_quantiles.
    """
    epochs = _column(history, "epoch")
    figure, (axes,) = epoch_figure(len(epochs))
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
    legend(figure)
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
    figure, grid = epoch_figure(len(epochs), rows=3)
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
    legend(figure, columns)
    return figure


def plot_responses(responses: "dict[str, Response]", title: str) -> "Figure":
    """The margin, and below it the share of easy triplets at that margin, of several schedules.

    Args:
        responses: by schedule, all of one length.
        title: what they answer to.
    """
    longest = max(len(response.margin) for response in responses.values())
    figure, (above, below) = epoch_figure(longest, rows=2)
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


def _seeds(runs: dict[int, History], name: str) -> np.ndarray:
    """float64[seeds, epochs of the longest], NaN where a seed has stopped."""
    curves = np.full((len(runs), max(len(history) for history in runs.values())), np.nan)
    for curve, history in zip(curves, runs.values(), strict=True):
        curve[: len(history)] = _column(history, name)
    return curves


def _column(history: History, name: str) -> np.ndarray:
    """float64[epochs]; what was not measured is NaN."""
    return np.array([np.nan if r[name] is None else r[name] for r in history], np.float64)
