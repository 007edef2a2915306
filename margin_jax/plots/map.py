"""A map of embeddings: every one a point, coloured by its identity."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from margin_jax.data.decode import one_line
from margin_jax.plots.style import PALETTE, tidy

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure

_MARKERS = ("o", "^")
_COLOURS = PALETTE[:-1]  # without the grey of all others
# Identities that have a colour and a marker of their own.
_SHOWN = 10


def plot_map(vectors: np.ndarray, labels: np.ndarray, identities: Sequence[str]) -> "Figure":
    """The first two principal components; the ten largest identities in colours, all others grey.

    It is a projection: what is near on it can be far apart, but what is far on it is far.

    Args:
        vectors: float[n, dim], at least two.
        labels: int[n], indices of `identities`.
        identities: their names.
    """
    from margin_jax.plots.figure import Figure  # slow to import

    points, shares = principal_components(vectors)
    figure = Figure(figsize=(7.6, 5.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    sizes = np.bincount(labels, minlength=len(identities))
    largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
    rest = ~np.isin(labels, largest)
    if rest.any():
        name = f"{np.count_nonzero(sizes) - len(largest):,} others"
        axes.scatter(points[rest, 0], points[rest, 1], s=3, color="#BBBBBB", lw=0, label=name)
    for place, identity in enumerate(largest[sizes[largest] > 0]):
        own = points[labels == identity]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=12,
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place // len(_COLOURS)],
            lw=0,
            alpha=0.8,
            label=f"{one_line(Path(identities[identity])):.32} ({sizes[identity]:,})",
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"first principal component, {shares[0]:.0%} of the variance")
    axes.set_ylabel(f"second, {shares[1]:.0%}")
    axes.set_title("Embeddings by identity, the largest in colour (PCA)", fontsize="medium")
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(float64[n, 2] along the two axes of most variance, float64[2] their shares of it)``.

    The same on every machine but for rounding: an axis points where its largest number is positive.
    """
    x = np.asarray(vectors, np.float64)
    x = x - x.mean(axis=0)
    x = np.pad(x, [(0, 0), (0, max(0, 2 - x.shape[1]))])
    variances, axes = np.linalg.eigh(x.T @ x)
    variances, axes = variances[::-1][:2], axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), [0, 1]])
    return x @ axes, variances / max(float(np.sum(x * x)), np.finfo(float).tiny)
