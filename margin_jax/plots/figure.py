"""The figures of this package: of matplotlib's kind, and shown by any notebook."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A figure that pyplot does not know, so that nothing draws it a second time.

    A notebook can show figures of matplotlib only once pyplot was imported, this one always.
    """

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()
