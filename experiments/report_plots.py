"""The pictures of `report.py`: differences to the tuned constant, and curves by epoch."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from shapes import REDUCTION, Shape

from margin_jax.plots.figure import EpochLocator
from margin_jax.plots.style import PALETTE, show_hidden, tidy

# Not the same order again, so that no two of one colour come to the same margin.
COLOURS = (*PALETTE, *PALETTE[2:], *PALETTE[:2])


def plot_differences(shapes: list[Shape]) -> Figure:
    """Paired differences in AUC to the tuned constant with their 95 % intervals.

    A column for each data set, with a scale of its own, since their intervals differ tenfold.
    """
    labels = list(dict.fromkeys(label for shape in shapes for label in shape.chosen))
    labels.remove("constant")
    every = sorted(shapes, key=lambda shape: shape.of_features)
    names = list(dict.fromkeys(shape.name for shape in every))
    reductions = list(dict.fromkeys(shape.reduction for shape in every))
    size = (1.9 + 1.8 * len(names), 0.7 + (0.5 + 0.19 * len(labels)) * len(reductions))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    places = {"sharex": "col", "sharey": True, "squeeze": False}
    grid = figure.subplots(len(reductions), len(names), **places)
    for shape in every:
        row, column = reductions.index(shape.reduction), names.index(shape.name)
        axes = grid[row, column]
        for label in set(labels) & set(shape.chosen):
            found = shape.judged.summary(label, "auc")
            mean, width = found.difference, found.difference_interval
            colour = "0.55" if abs(mean) <= width else PALETTE[0] if mean > 0 else PALETTE[1]
            axes.errorbar(mean, labels.index(label), xerr=width, fmt="o", color=colour, ms=4)
        if column == 0:
            axes.set_ylabel(REDUCTION[shape.reduction])
        grid[0, column].set_title(shape.data.replace(", ", "\n"), fontsize="medium")
    for axes in grid.flat:
        axes.axvline(0, color="black", lw=0.8)
        tidy(axes, "x")
    for axes in grid[-1]:
        reach = max(map(abs, axes.get_xlim()))
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    grid[0, 0].set_yticks(range(len(labels)), labels)
    grid[0, 0].invert_yaxis()
    figure.supxlabel(
        "test AUC minus the tuned constant's, paired by seed, with 95 % interval; "
        "grey: the interval contains 0; not corrected",
        fontsize="medium",
    )
    return figure


def plot_curves(shapes: list[Shape]) -> Figure:
    """Margin, easy share, gradient and validation AUC by epoch, means over seeds; one data set."""
    shown = (
        ("margin", "margin μ", 1, "linear"),
        ("easy_fraction", "easy triplets (%)", 100, "linear"),
        ("gradient_norm", "length of the gradient", 1, "log"),
        ("validation_auc", "validation AUC", 1, "linear"),
    )
    figure = Figure(figsize=(4.6 * len(shapes), 10), dpi=130, layout="constrained")
    grid = figure.subplots(len(shown), len(shapes), sharex=True, sharey="row", squeeze=False)
    settled: list[float] = []
    labels = dict.fromkeys(label for shape in shapes for label in shape.chosen)
    del labels["constant"]  # of which there is one black line to compare the others with
    looks = zip(itertools.cycle(("-", "--", ":")), itertools.cycle(COLOURS), strict=False)
    styles = {"constant": ("-", "black"), **dict(zip(labels, looks, strict=False))}
    for column, shape in enumerate(shapes):
        for row, (name, title, unit, scale) in enumerate(shown):
            axes = grid[row, column]
            axes.set_yscale(scale)
            axes.margins(x=0)
            histories = shape.judged.histories
            for label in (label for label in styles if label in histories):
                runs, (style, colour) = histories[label], styles[label]
                curves = np.array([[record[name] for record in run] for run in runs.values()])
                mean = unit * curves.mean(axis=0)
                epochs = 1 + np.arange(len(mean))
                steps = "steps-mid" if name == "margin" else "default"
                width = 2.5 if label == "constant" else 1.5
                axes.plot(epochs, mean, style, color=colour, lw=width, drawstyle=steps)
                if name == "validation_auc":  # of all but the first epochs, which are alike
                    settled += mean[len(epochs) // 6 :].tolist()
            tidy(axes)
            if column == 0:
                axes.set_ylabel(title)
        grid[0, column].set_title(shape.title, fontsize="medium")
        grid[-1, column].set_xlabel("epoch")
        grid[-1, column].xaxis.set_major_locator(EpochLocator())
    grid[-1, 0].set_ylim(min(settled) - 0.005, max(settled) + 0.005)
    for axes in grid.flat:
        show_hidden(axes)
    lines = [grid[0, 0].plot([], [], style, color=colour)[0] for style, colour in styles.values()]
    figure.legend(lines, styles, loc="outside upper center", ncols=2 * len(shapes), frameon=False)
    return figure
