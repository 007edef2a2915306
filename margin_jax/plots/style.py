"""How pictures look: sizes, colours, frames, legends, and curves that lie on one another."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from margin_jax.stats import QUANTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from margin_jax.plots.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)


def styles() -> Iterator[tuple[str, str]]:
    """Line styles and colours, as many as there are curves."""
    return itertools.cycle(itertools.product(("-", "--", ":"), PALETTE))


def tidy(axes: "Axes", lines: Literal["both", "x", "y"] = "both") -> None:
    """Faint lines to read values by, and no frame above and to the right."""
    axes.grid(axis=lines, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show_hidden(axes: "Axes") -> None:
    """Where curves lie on one another those below become wider, and show beside those above.

    Args:
        axes: with all curves drawn, over the same epochs or the first of them. Lines thinner than a
            point are left alone.
    """
    axes.get_ylim()  # settles the limits, and with them the heights
    lines = [line for line in axes.lines if line.get_linewidth() >= 1]
    heights = [axes.transData.transform(line.get_xydata())[:, 1] for line in lines]
    above = []  # of each line, how many lie on it, by epoch
    for i, own in enumerate(heights):
        above.append(np.zeros(len(own), int))
        for other in heights[i + 1 :]:
            common = min(len(own), len(other))
            alike = np.abs(own[:common] - other[:common]) < 0.5  # pixels
            stretch = np.ones(min(3, common))  # shorter ones are mostly lines that cross
            whole = np.convolve(alike, stretch, "valid") == len(stretch)
            above[-1][:common] += np.convolve(whole, stretch) > 0
    most = max((int(count.max()) for count in above), default=0)
    for line, count in zip(lines, above, strict=True):
        for level in range(1, 1 + int(count.max())):
            axes.plot(
                line.get_xdata(),
                np.where(count >= level, line.get_ydata(), np.nan),
                line.get_linestyle(),
                color=line.get_color(),
                drawstyle=line.get_drawstyle(),
                lw=line.get_linewidth() + min(2, 5 / most) * level,
                zorder=min(line.get_zorder() for line in lines) - 0.1,
            )


def draw_quantiles(axes: "Axes", epochs: np.ndarray, quantiles: np.ndarray) -> None:
    """Areas inside one another, the darker the nearer to the median.

    Args:
        quantiles: float[len(QUANTILES), epochs].
    """
    blue = np.array([int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    for i, share in enumerate(QUANTILES[: len(QUANTILES) // 2]):
        strength = 0.15 + 0.17 * i  # opaque, so that the legend shows the same colour
        axes.fill_between(
            epochs,
            quantiles[i],
            quantiles[-1 - i],
            color=tuple(1 - strength * (1 - blue)),
            lw=0,
            label=f"{share:.0%} to {1 - share:.0%} of triplets",
        )


def plain_figure(rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """Axes below one another, of one width."""
    from margin_jax.plots.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    grid = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    for axes in grid:
        tidy(axes)
    return figure, list(grid)


def epoch_figure(epochs: int, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """Axes that begin at the first epoch; a single one is a dot, since it makes no line."""
    from margin_jax.plots.figure import EpochLocator

    figure, grid = plain_figure(rows)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.set_major_locator(EpochLocator())
    for axes in grid:
        axes.margins(x=0)
        if epochs == 1:
            axes.margins(x=4)
            axes.set_prop_cycle(marker=["o"])
    return figure, grid


def legend(figure: "Figure", columns: int = 2) -> None:
    """Below the axes: in them it would lie over some curve sooner or later."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
