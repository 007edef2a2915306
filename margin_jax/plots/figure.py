"""The figures of this package: of matplotlib's kind, and shown by any notebook."""

import io
import warnings
from typing import Any

from matplotlib import figure
from matplotlib.ticker import MaxNLocator


class Figure(figure.Figure):
    """A figure that pyplot does not know, so that nothing draws it a second time.

    A notebook can show figures of matplotlib only once pyplot was imported, this one always.
    """

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As matplotlib's, without its warnings of names in a script that the typeface lacks."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


class EpochLocator(MaxNLocator):
    """Ticks at whole epochs: 1, 5, 10, ... There is no epoch 0."""

    def __init__(self) -> None:
        super().__init__(nbins=14, steps=[1, 5, 10], integer=True, min_n_ticks=1)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The first epoch in the place of what comes before it."""
        return sorted({max(1.0, tick) for tick in super().tick_values(vmin, vmax)})
