"""Schedules made of other schedules: limits, a later or gradual start, one after another."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.schedules.base import (
    Schedule,
    ScheduleState,
    at_least,
    finite,
    next_state,
    some_epochs,
    whole,
)
from margin_jax.schedules.open_loop import constant, linear
from margin_jax.stats import EpochStats


def clip_schedule(schedule: Schedule, low: float = 0.0, high: float = 2.0) -> Schedule:
    """The schedule's margin, kept between `low` and `high`.

    Only the margin in force is clipped; the schedule's own state is not. On unit embeddings no
    Euclidean distance exceeds 2, so a margin above 2 gives the same gradient as 2.

    Raises:
        ValueError: unless ``low ≤ high``, both finite.
    """
    limits = np.float32(finite("low", low)), np.float32(finite("high", high))
    if low > high:
        raise ValueError(f"low must be at most high; got {low} and {high}")

    def limited(inner: ScheduleState) -> ScheduleState:
        # An array of its own for each number, so that the state can be donated.
        margin, epoch = jnp.clip(inner.margin, *limits), jnp.copy(inner.epoch)
        return ScheduleState(margin, epoch, {"inner": inner})

    def init() -> ScheduleState:
        return limited(schedule.init())

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        return limited(schedule.update(state.memory["inner"], stats))

    return schedule._replace(init=init, update=update)


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """One schedule after another; schedule i takes over after ``boundaries[i − 1]`` epochs.

    Each schedule starts at its own first margin, counts its own epochs, and sees only the
    statistics of the epochs in which its margin was in force.

    Raises:
        ValueError: unless there is one boundary fewer than schedules, and the boundaries are whole
            numbers that increase and are at least 1.
        TypeError: for what is no schedule.

    Example:
        >>> import margin_jax as mj
        >>> schedule = mj.join_schedules([mj.constant(0.1), mj.dams(margin=0.2)], [5])
        >>> round(float(schedule.init().margin), 4)
        0.1
    """
    if len(schedules) < 1 or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules needs one boundary between each two schedules; got "
            f"{len(schedules)} schedules and {len(boundaries)} boundaries"
        )
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            kind = type(schedule).__name__
            raise TypeError(f"schedules must be such as mj.dams() returns; got {kind}")
    boundaries = [whole("each of boundaries", boundary) for boundary in boundaries]
    if boundaries != sorted(set(boundaries)) or not all(0 < end < 2**31 for end in boundaries):
        raise ValueError(f"boundaries must rise, from at least 1; got {boundaries}")
    ends = np.array(boundaries, np.int32)

    def in_force(epoch: Array) -> Array:
        return jnp.sum(epoch >= ends)

    def init() -> ScheduleState:
        inner = {str(i): schedule.init() for i, schedule in enumerate(schedules)}
        return ScheduleState(jnp.copy(inner["0"].margin), jnp.copy(inner["0"].epoch), inner)

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        ended = in_force(state.epoch)
        inner = {}
        for i, schedule in enumerate(schedules):
            before: ScheduleState = state.memory[str(i)]
            after = schedule.update(before, stats)
            mine = ended == i
            inner[str(i)] = jax.tree.map(
                lambda new, old, mine=mine: jnp.where(mine, new, old), after, before
            )
        margins = jnp.stack([inner[str(i)].margin for i in range(len(schedules))])
        return next_state(state, margins[in_force(state.epoch + 1)], **inner)

    shares = {schedule.easy_share for schedule in schedules} - {None}
    return Schedule(
        init,
        update,
        any(schedule.needs_histogram for schedule in schedules),
        shares.pop() if len(shares) == 1 else None,
    )


def hold_schedule(schedule: Schedule, epochs: int) -> Schedule:
    """Holds the schedule's first margin for `epochs` epochs; then the schedule starts.

    Raises:
        ValueError: unless `epochs` is a whole number, at least 1.
    """
    return join_schedules([constant(_first_margin(schedule)), schedule], [some_epochs(epochs)])


def warmup_schedule(schedule: Schedule, epochs: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` to the schedule's first margin, then the schedule.

    ``μ(e) = start + (first − start) · e / epochs`` for ``e < epochs``.

    Raises:
        ValueError: unless `epochs` is a whole number, at least 1, and `start` finite, at least 0.
    """
    line = linear(at_least("start", start, 0), _first_margin(schedule), some_epochs(epochs) + 1)
    return join_schedules([line, schedule], [epochs])


def _first_margin(schedule: Schedule) -> float:
    with jax.ensure_compile_time_eval():  # also where a schedule is made inside a jitted function
        return float(schedule.init().margin)
