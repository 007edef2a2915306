"""Margin schedules: pure ``(init, update)`` pairs, to margins what optax's are to learning rates.

``init()`` gives a small frozen pytree whose ``margin`` is in force in epoch 0; ``update(state,
stats)`` gives the state for the next epoch. Both run alike on the host and under ``jit``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.stats import EpochStats


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScheduleState:
    """The state of a schedule.

    Attributes:
        margin: float32[], the margin in force.
        epoch: int32[], how many epochs have ended.
    """

    margin: Array
    epoch: Array


class Schedule(NamedTuple):
    """A margin schedule.

    Attributes:
        init: ``init() -> state``.
        update: ``update(state, stats) -> state``, called once at the end of an epoch.
    """

    init: Callable[[], ScheduleState]
    update: Callable[[ScheduleState, EpochStats], ScheduleState]


def constant(margin: float = 0.2) -> Schedule:
    """μ stays what it is.

    Raises:
        ValueError: unless the margin is finite.
    """
    return _table(np.array([_finite("margin", margin)]))


def linear(margin: float, margin_end: float, epochs: int) -> Schedule:
    """``μ(e) = margin + (margin_end − margin) · e / (epochs − 1)``, then `margin_end` for good.

    The first of `epochs` epochs trains at `margin`, the last at `margin_end`.

    Raises:
        ValueError: unless the margins are finite and ``epochs ≥ 1``.
    """
    start, end = _finite("margin", margin), _finite("margin_end", margin_end)
    return _table(start + (end - start) * _progress(epochs))


def exponential(margin: float, margin_end: float, epochs: int) -> Schedule:
    """``μ(e) = margin · (margin_end / margin)^(e / (epochs − 1))``, then `margin_end` for good.

    Raises:
        ValueError: unless the margins are finite and above 0 and ``epochs ≥ 1``.
    """
    start, end = _finite("margin", margin), _finite("margin_end", margin_end)
    if start <= 0 or end <= 0:
        raise ValueError(
            f"exponential needs margins above 0; got margin {margin}, margin_end {margin_end}"
        )
    return _table(start * (end / start) ** _progress(epochs))


def dams(margin: float = 0.2, threshold: float = 0.95, increase: float = 0.05) -> Schedule:
    """The Difficulty Adaptive Margin Scheduler: a harder task when the epoch was too easy.

    After each epoch::

        if easy_fraction >= threshold:  μ ← μ + increase

    where `easy_fraction` is the share of the epoch's valid triplets whose loss was exactly 0. The
    margin never decreases and has no cap: on unit embeddings no distance exceeds 2, so beyond
    μ = 2 no triplet is easy and the rule stops by itself. An epoch without any triplet says
    nothing, and changes nothing. The comparison is between float32 numbers.

    Args:
        margin: μ of epoch 0.
        threshold: the share of easy triplets that is too many, in [0, 1].
        increase: what is then added to μ, at least 0.

    Raises:
        ValueError: for values out of those ranges.

    References:
        "Maintaining Difficulty: A Margin Scheduler for Triplet Loss in Siamese Networks Training",
        `arXiv 2603.26389 <https://arxiv.org/abs/2603.26389>`_; the defaults are those of its
        released code.
    """
    start = np.float32(_finite("margin", margin))
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1; got {threshold}")
    if not (math.isfinite(increase) and increase >= 0):
        raise ValueError(f"increase must be finite and at least 0; got {increase}")

    def init() -> ScheduleState:
        return ScheduleState(jnp.asarray(start), jnp.zeros((), jnp.int32))

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        too_easy = stats.easy_fraction >= np.float32(threshold)  # False for NaN
        step = jnp.where(too_easy, np.float32(increase), np.float32(0))
        return ScheduleState(state.margin + step, state.epoch + 1)

    return Schedule(init, update)


def _table(margins: np.ndarray) -> Schedule:
    """A schedule that knows its margins beforehand, one an epoch; the last one stays.

    They are computed in float64 and rounded once: arithmetic under ``jit`` may be fused and differ
    in its last bit from the same on the host, a look-up can not.
    """

    def look_up(epoch: Array) -> ScheduleState:
        table = jnp.asarray(margins, jnp.float32)
        return ScheduleState(table[jnp.minimum(epoch, len(margins) - 1)], epoch)

    def init() -> ScheduleState:
        return look_up(jnp.zeros((), jnp.int32))

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        del stats  # open loop
        return look_up(state.epoch + 1)

    return Schedule(init, update)


def _progress(epochs: int) -> np.ndarray:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1; got {epochs}")
    return np.linspace(0.0, 1.0, epochs) if epochs > 1 else np.ones(1)


def _finite(name: str, value: float) -> float:
    if not abs(value) < 1e38:  # else it is infinite, or would be in float32
        raise ValueError(f"{name} must be finite; got {value}")
    return float(value)
