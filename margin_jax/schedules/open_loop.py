"""Schedules that are fixed before training starts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from margin_jax.schedules.base import Schedule, at_least, some_epochs, table, whole
from margin_jax.spec import Numbers


def constant(margin: float = 0.2) -> Schedule:
    """The same margin in every epoch.

    Raises:
        ValueError: unless the margin is finite and at least 0.
    """
    return table(np.array([at_least("margin", margin, 0)]))


def linear(margin: float, margin_end: float, epochs: int) -> Schedule:
    """A straight line from `margin` to `margin_end`, which then stays.

    ``μ(e) = margin + (margin_end − margin) · e / (epochs − 1)``: the first of `epochs` epochs
    trains at `margin`, the last at `margin_end`, and so does a single one.

    Raises:
        ValueError: unless the margins are finite and at least 0, and ``epochs ≥ 1``.
    """
    start, end = at_least("margin", margin, 0), at_least("margin_end", margin_end, 0)
    return table(start + (end - start) * _progress(epochs))


def exponential(margin: float, margin_end: float, epochs: int) -> Schedule:
    """By the same factor each epoch from `margin` to `margin_end`, which then stays.

    ``μ(e) = margin · (margin_end / margin)^(e / (epochs − 1))``

    Raises:
        ValueError: unless the margins are finite and above 0 and ``epochs ≥ 1``.
    """
    start, end = at_least("margin", margin, 0), at_least("margin_end", margin_end, 0)
    if start <= 0 or end <= 0:
        raise ValueError(
            f"exponential needs margins above 0; got margin {margin}, margin_end {margin_end}"
        )
    return table(start * (end / start) ** _progress(epochs))


def cosine(margin: float, margin_end: float, epochs: int) -> Schedule:
    """Half a cosine from `margin` to `margin_end`, which then stays: slow at both ends.

    ``μ(e) = margin + (margin_end − margin) · (1 − cos(π · e / (epochs − 1))) / 2``

    Raises:
        ValueError: unless the margins are finite and at least 0, and ``epochs ≥ 1``.
    """
    start, end = at_least("margin", margin, 0), at_least("margin_end", margin_end, 0)
    return table(start + (end - start) * (1 - np.cos(np.pi * _progress(epochs))) / 2)


def litm(margin: float, margin_end: float, epochs: int, stages: int = 3) -> Schedule:
    """Stages of equal length, with equal steps from `margin` to `margin_end`, which then stays.

    In epoch e the stage is ``s = ⌊e · stages / epochs⌋``, and
    ``μ = margin + (margin_end − margin) · s / (stages − 1)``. With fewer epochs than stages, each
    epoch is a stage; a single one trains at `margin_end`.

    The paper trains in several stages whose margin grows from stage to stage. Equal lengths and
    equal steps are our reading of it. Its other proposals (features of several levels, a search
    for hard identities) do not concern the margin and are not part of this schedule.

    Raises:
        ValueError: unless the margins are finite and at least 0, ``stages ≥ 2`` and ``epochs ≥ 1``.

    References:
        Zhang et al. 2019, "Learning Incremental Triplet Margin for Person Re-identification",
        `arXiv 1812.06576 <https://arxiv.org/abs/1812.06576>`_.
    """
    start, end = at_least("margin", margin, 0), at_least("margin_end", margin_end, 0)
    if whole("stages", stages) < 2:
        raise ValueError(f"litm needs at least 2 stages; got {stages}")
    height = _progress(min(stages, some_epochs(epochs)))
    return table(start + (end - start) * height[np.arange(epochs) * len(height) // epochs])


def replay(margins: Numbers) -> Schedule:
    """Margins one by one, an epoch each; then the last for good.

    ``μ(e) = margins[min(e, len(margins) − 1)]``. With the margins of another run it is that run's
    *yoked control*: it moves alike, but does not watch.

    Args:
        margins: one or more, each at least 0. In a text: ``replay:0.2/0.2/0.25``.

    Raises:
        ValueError: unless there is one, and all are finite and at least 0.
        TypeError: for what is no list of numbers.

    Example:
        >>> import margin_jax as mj
        >>> schedule = mj.replay((0.2, 0.2, 0.25))
        >>> round(float(schedule.init().margin), 6)
        0.2
    """
    if np.ndim(margins) != 1:
        raise TypeError(f"replay needs a list of margins; got {margins!r:.80}")
    if len(margins) == 0:
        raise ValueError("replay needs at least one margin; got none")
    return table(np.array([at_least("margins", margin, 0) for margin in margins]))


def from_optax(schedule: Callable[[int], Any], epochs: int) -> Schedule:
    """Any optax schedule, or other function of the epoch: ``μ(e) = schedule(e)``.

    It is called once for each epoch from 0 to ``epochs − 1``; after that the last margin stays.

    Raises:
        ValueError: unless ``epochs ≥ 1`` and every value is a finite scalar, at least 0.

    Example:
        >>> import optax, margin_jax as mj
        >>> schedule = mj.from_optax(optax.linear_schedule(0.2, 1.0, 4), epochs=5)
        >>> round(float(schedule.init().margin), 6)
        0.2
    """
    values = np.array([np.asarray(schedule(e), np.float64) for e in range(some_epochs(epochs))])
    if values.shape != (epochs,) or not np.all((values >= 0) & (values < 1e38)):
        raise ValueError(f"a schedule must give finite scalars of at least 0; got {values}")
    return table(values)


def _progress(epochs: int) -> np.ndarray:
    return np.linspace(0.0, 1.0, epochs) if some_epochs(epochs) > 1 else np.ones(1)
