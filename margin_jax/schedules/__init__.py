"""Margin schedules, to margins what optax's schedules are to learning rates."""

from collections.abc import Callable, Mapping
from typing import Any

from margin_jax.schedules.base import Schedule, ScheduleState
from margin_jax.schedules.combinators import (
    clip_schedule,
    hold_schedule,
    join_schedules,
    warmup_schedule,
)
from margin_jax.schedules.dams import dams
from margin_jax.schedules.feedback import automargin, quantile_margin, target_easy_fraction
from margin_jax.schedules.open_loop import (
    constant,
    cosine,
    exponential,
    from_optax,
    linear,
    litm,
    replay,
)
from margin_jax.spec import resolve

# Those that a name and numbers describe; the command line knows them.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "exponential": exponential,
    "cosine": cosine,
    "litm": litm,
    "replay": replay,
    "dams": dams,
    "automargin": automargin,
    "quantile_margin": quantile_margin,
    "target_easy_fraction": target_easy_fraction,
}

# Those that need no more than a name and the options of a run.
ALONE = [name for name in SCHEDULES if name != "replay"]


def resolve_schedule(text: str, defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a schedule in a text, and the value of each of its parameters.

    Args:
        text: ``NAME``, ``NAME:MARGIN`` or ``NAME:KEY=VALUE,...``.
        defaults: values of parameters that the text leaves open, by name; those that the schedule
            does not have are ignored.

    Raises:
        ValueError: for an unknown name or key, a key given twice, or a value that is not a number.
    """
    name, values = resolve("a schedule", text, SCHEDULES, defaults, short=True)
    if name == "replay" and "margins" not in values:
        raise ValueError("replay needs its margins: replay:MARGIN/MARGIN/...; got none")
    return name, values


def make_schedule(text: str, defaults: Mapping[str, Any]) -> Schedule:
    """The schedule that a text describes, as :func:`resolve_schedule` reads it.

    Raises:
        ValueError: also for values that the schedule refuses.
    """
    name, values = resolve_schedule(text, defaults)
    return SCHEDULES[name](**values)


__all__ = [
    "ALONE",
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
    "make_schedule",
    "quantile_margin",
    "replay",
    "resolve_schedule",
    "target_easy_fraction",
    "warmup_schedule",
]
