"""Pictures of a run. Each function returns a matplotlib figure and touches no global state."""

from margin_jax.plots.contact_sheet import plot_contact_sheet
from margin_jax.plots.epochs import (
    plot_comparison,
    plot_effective_margin,
    plot_loss,
    plot_margin,
    plot_responses,
)
from margin_jax.plots.pairs import plot_det, plot_distances, plot_roc

__all__ = [
    "plot_comparison",
    "plot_contact_sheet",
    "plot_det",
    "plot_distances",
    "plot_effective_margin",
    "plot_loss",
    "plot_margin",
    "plot_responses",
    "plot_roc",
]
