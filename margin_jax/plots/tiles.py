"""Sheets of pictures with a few words below each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure

# Inches; and letters that fit below a picture of that width.
_SIDE, _LINE, _LETTERS = 1.3, 0.13, 23


class Tile(NamedTuple):
    """A picture, or several side by side, and what stands below.

    Attributes:
        pictures: uint8[side, side, 1 or 3] each; None for one that could not be read.
        lines: of text; one that is too long loses its beginning.
        colour: of the text.
    """

    pictures: Sequence[np.ndarray | None]
    lines: Sequence[str]
    colour: str = "black"


def plot_tiles(rows: Sequence[Sequence[Tile]], title: str) -> "Figure":
    """Rows of pictures, with their words below.

    Args:
        rows: at least one tile; all tiles with as many pictures.
        title: a line or two.
    """
    from margin_jax.plots.figure import Figure  # slow to import

    tiles = [tile for row in rows for tile in row]
    across = len(tiles[0].pictures)
    lines = max(len(tile.lines) for tile in tiles)
    right, down = _SIDE * across + 0.12, _SIDE + _LINE * lines + 0.12
    columns = max(map(len, rows))
    above = 0.15 + 0.17 * len(title.splitlines())
    size = (max(columns * right, 4.0), len(rows) * down + above)
    figure = Figure(figsize=size, dpi=150)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.text(0.06, 0.06, title, va="top", fontsize=9, parse_math=False)
    for row, own in enumerate(rows):
        for column, (pictures, words, colour) in enumerate(own):
            left, top = 0.06 + column * right, above + row * down
            for place, picture in enumerate(pictures):
                at = left + place * _SIDE
                shown = np.full((1, 1, 1), 230, np.uint8) if picture is None else picture
                axes.imshow(
                    shown if shown.shape[-1] == 3 else shown[..., 0],
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                    extent=(at, at + _SIDE - 0.03, top + _SIDE - 0.03, top),
                    interpolation="nearest",
                )
            text = "\n".join(_fitting(line, across * _LETTERS) for line in words)
            axes.text(
                left, top + _SIDE, text, va="top", fontsize=6.5, color=colour, parse_math=False
            )
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.set_aspect("auto")
    return figure


def _fitting(line: str, letters: int) -> str:
    """The end of a name tells more than its beginning."""
    return line if len(line) <= letters else "…" + line[1 - letters :]
