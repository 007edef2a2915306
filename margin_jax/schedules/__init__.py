"""Margin schedules, to margins what optax's schedules are to learning rates."""

from collections.abc import Callable

from margin_jax.schedules.base import Schedule, ScheduleState
from margin_jax.schedules.combinators import (
    clip_schedule,
    hold_schedule,
    join_schedules,
    warmup_schedule,
)
from margin_jax.schedules.feedback import (
    automargin,
    dams,
    quantile_margin,
    target_easy_fraction,
)
from margin_jax.schedules.open_loop import constant, cosine, exponential, from_optax, linear, litm

# Those that a name and numbers describe; the command line knows them.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "litm": litm,
    "dams": dams,
    "automargin": automargin,
    "quantile_margin": quantile_margin,
    "target_easy_fraction": target_easy_fraction,
}

__all__ = [
    "SCHEDULES",
    "Schedule",
    "ScheduleState",
    "automargin",
    "clip_schedule",
    "constant",
    "cosine",
    "dams",
    "exponential",
    "from_optax",
    "hold_schedule",
    "join_schedules",
    "linear",
    "litm",
    "quantile_margin",
    "target_easy_fraction",
    "warmup_schedule",
]
