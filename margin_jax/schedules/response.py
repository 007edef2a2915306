"""How a schedule answers to a world in which only the margin reacts to it.

The effective margins of an epoch are taken to be normal, of a given mean and spread, whatever the
margin was: the network does not answer back, as a real one would. The share of easy triplets is
that above the schedule's own margin. So one sees what a rule does, not what it is worth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from margin_jax.choices import check_choice
from margin_jax.schedules.base import Schedule
from margin_jax.stats import EFFECTIVE_EDGES, EpochStats

# A stimulus says how many triplets of an epoch are easy at this margin.
REFERENCE, SPREAD = 0.2, 0.25


class World(NamedTuple):
    """Effective margins by epoch: float64[epochs] each.

    Attributes:
        mean, std: of the effective margins in that epoch.
    """

    mean: np.ndarray
    std: np.ndarray


class Response(NamedTuple):
    """What a schedule did: float64[epochs] each.

    Attributes:
        margin: in force in each epoch.
        easy_fraction: share of the effective margins at or above it.
    """

    margin: np.ndarray
    easy_fraction: np.ndarray


def _step(progress: np.ndarray) -> np.ndarray:
    return np.where(progress < 0.25, 0.6, 0.98)


def _ramp(progress: np.ndarray) -> np.ndarray:
    return 0.5 + 0.499 * progress


def _saturation(progress: np.ndarray) -> np.ndarray:
    return np.full(len(progress), 0.99)


# What share is easy at REFERENCE: in words, and by progress from 0 to 1.
STIMULI: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "step": ("60 %, after a quarter of the epochs 98 %", _step),
    "ramp": ("50 % rising to 99.9 %", _ramp),
    "saturation": ("99 % throughout", _saturation),
}


def stimulus(name: str, epochs: int) -> World:
    """A world in which the share that is easy at a margin of 0.2 follows a course of `STIMULI`.

    Raises:
        ValueError: an unknown name, or fewer than two epochs, or more than a million.
    """
    from scipy.special import ndtri  # slow to import

    check_choice("stimulus", name, STIMULI)
    if not 2 <= epochs <= 10**6:
        raise ValueError(f"epochs must be between 2 and 1,000,000; got {epochs}")
    _, course = STIMULI[name]
    easy = course(np.linspace(0, 1, epochs))
    return World(REFERENCE + SPREAD * ndtri(easy), np.full(epochs, SPREAD))


def recorded(history: Sequence[Mapping[str, Any]]) -> World:
    """The world of a run's history: its means and spreads; epochs without a triplet say nothing.

    Raises:
        ValueError: if no epoch has them.
    """

    def column(name: str) -> np.ndarray:
        values = [record.get(name) for record in history]
        return np.array([math.nan if v is None else v for v in values], np.float64)

    world = World(column("mean_effective"), column("std_effective"))
    if not np.any(np.isfinite(world.mean + world.std)):
        raise ValueError("the history has no epoch with mean_effective and std_effective")
    return world


def respond(schedule: Schedule, world: World) -> Response:
    """The schedule's margins in a world, epoch by epoch."""
    from scipy.special import ndtr  # slow to import

    update = jax.jit(schedule.update)
    state = schedule.init()
    margins, shares = [], []
    for mean, std in zip(*world, strict=True):
        margin = float(state.margin)
        spread = max(std, 1e-9)  # NaN stays what it is
        below_0, below_margin = ndtr((0 - mean) / spread), ndtr((margin - mean) / spread)
        margins.append(margin)
        shares.append(1 - below_margin)
        stats = EpochStats(
            easy_fraction=np.float32(1 - below_margin),
            semihard_fraction=np.float32(max(below_margin - below_0, 0)),
            hard_fraction=np.float32(min(below_0, below_margin)),
            mean_ap=np.float32(math.nan),  # not part of this world
            mean_an=np.float32(math.nan),
            mean_effective=np.float32(mean),
            std_effective=np.float32(std),
            effective_cdf=ndtr((EFFECTIVE_EDGES - mean) / spread).astype(np.float32),
        )
        state = update(state, stats)
    return Response(np.array(margins), np.array(shares))
