"""What a margin schedule is: a pure ``(init, update)`` pair over a small state.

``init()`` gives a small frozen pytree whose ``margin`` is in force in epoch 0; ``update(state,
stats)`` gives the state for the next epoch. Both decide bit for bit alike on the host, under
``jit`` and inside ``lax.scan``.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.stats import EFFECTIVE_EDGES, EpochStats, EpochTotals


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScheduleState:
    """The state of a schedule: float32 and int32 scalars.

    Attributes:
        margin: float32[], the margin in force.
        epoch: int32[], how many epochs have ended.
        memory: further values that the schedule needs, by name; empty for most.
    """

    margin: Array
    epoch: Array
    memory: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The numbers by name, ready for ``json.dumps``; :meth:`Schedule.from_json` reads them."""
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(self))
        return {_name(path): np.asarray(leaf).tolist() for path, leaf in leaves}


class Schedule(NamedTuple):
    """A margin schedule.

    Attributes:
        init: ``init() -> state``.
        update: ``update(state, stats) -> state``, called once at the end of an epoch. After an
            epoch without usable statistics (they are NaN if it had no triplet), schedules that use
            statistics leave the margin as it is.
        needs_histogram: whether `update` reads ``stats.effective_cdf``, which is only measured on
            request, from a sample of triplets in each step.
        easy_share: the share of easy triplets at which the schedule acts, or which it holds; None
            for other schedules. Plots show it.
    """

    init: Callable[[], ScheduleState]
    update: Callable[[ScheduleState, EpochStats], ScheduleState]
    needs_histogram: bool = False
    easy_share: float | None = None

    def from_json(self, values: Mapping[str, Any]) -> ScheduleState:
        """The state that :meth:`ScheduleState.to_json` wrote, bit for bit.

        Raises:
            ValueError: if the names of the numbers are not those of this schedule. States of
                schedules without a memory have the same names.

        Example:
            >>> import json, margin_jax as mj
            >>> schedule = mj.dams(margin=0.25)
            >>> text = json.dumps(schedule.init().to_json())
            >>> text
            '{"margin": 0.25, "epoch": 0}'
            >>> float(schedule.from_json(json.loads(text)).margin)
            0.25
        """
        like = self.init()
        leaves = jax.tree_util.tree_leaves_with_path(like)
        expected = {_name(path) for path, _ in leaves}
        if expected != set(values):
            raise ValueError(
                f"a state of this schedule has {', '.join(sorted(expected))}; "
                f"got {', '.join(sorted(values))}"
            )
        restored = [
            jnp.asarray(values[_name(path)], jnp.result_type(leaf)) for path, leaf in leaves
        ]
        state: ScheduleState = jax.tree.unflatten(jax.tree.structure(like), restored)
        return state


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_state(margin: float | np.float32, **memory: Any) -> ScheduleState:
    """The state before any epoch."""
    return ScheduleState(jnp.asarray(margin, jnp.float32), jnp.zeros((), jnp.int32), memory)


def next_state(state: ScheduleState, margin: Array, **memory: Any) -> ScheduleState:
    """The state after one more epoch."""
    return ScheduleState(margin, state.epoch + 1, memory)


def check_schedule(schedule: Schedule) -> Schedule:
    """Returns a schedule that a run can use.

    Raises:
        TypeError: for what is none, or whose state does not stay one.
        ValueError: if the first margin is negative or not finite, or epochs are not counted.
    """
    if not isinstance(schedule, Schedule):
        kind = type(schedule).__name__
        raise TypeError(f"a schedule must be a mj.Schedule, as mj.dams() is; got {kind}")
    bins = np.ones(len(EFFECTIVE_EDGES), np.int64) if schedule.needs_histogram else None
    # An epoch with numbers, as `jax_debug_nans` would stop at one without triplets.
    epoch = EpochTotals(2, 0, 1, 1, 2, 0.5, 1.0, 0.0, 0.5, bins)
    first = schedule.init()
    after = schedule.update(first, epoch.stats())
    for state in (first, after):
        if not isinstance(state, ScheduleState):
            kind = type(state).__name__
            raise TypeError(f"init and update must return a mj.ScheduleState; got {kind}")
    if set(first.to_json()) != set(after.to_json()):
        raise TypeError(
            f"update must return a memory with the same names; got {after.memory} after "
            f"{first.memory}"
        )
    at_least("the first margin of a schedule", first.margin, 0)
    if (int(first.epoch), int(after.epoch)) != (0, 1):
        raise ValueError(
            "a schedule must count epochs, from 0 on, and one more with each update; got "
            f"{first.epoch} and then {after.epoch}"
        )
    return schedule


def table(margins: np.ndarray) -> Schedule:
    """A schedule that knows its margins beforehand, one an epoch; the last one stays.

    They are computed in float64 and rounded once: arithmetic under ``jit`` may be fused and differ
    in its last bit from the same on the host, a look-up cannot.
    """

    def look_up(epoch: Array) -> ScheduleState:
        values = jnp.asarray(margins, jnp.float32)
        return ScheduleState(values[jnp.minimum(epoch, len(margins) - 1)], epoch)

    def init() -> ScheduleState:
        return look_up(jnp.zeros((), jnp.int32))

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        del stats  # open loop
        return look_up(state.epoch + 1)

    return Schedule(init, update)


def number(name: str, value: Any) -> float:
    """The value as a float.

    Raises:
        TypeError: unless it is one number.
    """
    try:
        if not isinstance(value, str) and np.ndim(value) == 0:
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number; got {value!r:.80}")


def whole(name: str, value: int) -> int:
    """The value as an int.

    Raises:
        ValueError: unless it is a whole number.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r:.80}") from None


def some_epochs(epochs: int) -> int:
    """The number of epochs as an int.

    Raises:
        ValueError: unless it is a whole number from 1 to a million.
    """
    epochs = whole("epochs", epochs)
    if not 1 <= epochs <= 10**6:
        raise ValueError(f"epochs must be between 1 and 1,000,000; got {epochs}")
    return epochs


def finite(name: str, value: float) -> float:
    """The value as a float.

    Raises:
        ValueError: unless it is finite in float32.
        TypeError: unless it is a number.
    """
    if not abs(number(name, value)) < 1e38:
        raise ValueError(f"{name} must be finite; got {value}")
    return float(value)


def share(name: str, value: float) -> float:
    """The value as a float.

    Raises:
        ValueError: unless it is in [0, 1].
        TypeError: unless it is a number.
    """
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"{name} must be between 0 and 1; got {value}")
    return float(value)


def at_least(name: str, value: Any, least: float) -> float:
    """The value as a float.

    Raises:
        ValueError: unless it is finite and not below `least`.
        TypeError: unless it is a number.
    """
    if not least <= number(name, value) < 1e38:
        raise ValueError(f"{name} must be finite and at least {least:g}; got {value}")
    return float(value)


Update = Callable[[ScheduleState, EpochStats], ScheduleState]


def of_epochs(update: Update) -> Update:
    """The same; in plain words where it is given other statistics."""

    @functools.wraps(update)
    def checked(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        if not isinstance(state, ScheduleState):
            raise TypeError(
                "a schedule's update needs the state that its init or update returned; got "
                f"{type(state).__name__}"
            )
        if not isinstance(stats, EpochStats):
            raise TypeError(
                "a schedule's update needs EpochStats, as EpochTotals.stats() or EpochStats.of() "
                f"give them; got {type(stats).__name__}"
            )
        return update(state, stats)

    return checked


def unless_silent(
    after: ScheduleState, before: ScheduleState, stats: EpochStats, *more: Array
) -> ScheduleState:
    """The state `after`, or, if the epoch says nothing, the one before with its epoch counted.

    An epoch whose statistics float32 cannot compute with, though it holds them, says nothing
    either: what is remembered would be NaN for good, or a margin that no loss takes.
    """
    seen = jnp.stack([stats.easy_fraction, stats.mean_effective, stats.std_effective, *more])
    computed = jnp.stack([v.astype(jnp.float32) for v in jax.tree.leaves(after)])
    said = jnp.all(jnp.isfinite(seen)) & jnp.all(jnp.abs(computed) < 1e38)
    same = next_state(before, before.margin, **before.memory)
    kept: ScheduleState = jax.tree.map(lambda new, old: jnp.where(said, new, old), after, same)
    return kept


def times(x: Array | np.float32, y: Array | np.float32 | float) -> Array:
    """The product of both factors rounded to 12 significant bits, which float32 holds exactly.

    A compiler may fuse a product and a sum into one operation with one rounding, and does so in one
    program and not in the next. Of an exact product there is nothing to round, so a schedule
    decides bit for bit alike on the host, under ``jit`` and in ``scan``. It costs up to 4.9e-4 of
    the product.
    """

    def rounded(v: Array | np.float32 | float) -> Array:
        bits = jax.lax.bitcast_convert_type(jnp.asarray(v, jnp.float32), jnp.int32)
        shortened = (bits + 0x800) & ~0xFFF  # to nearest: a float's bits grow with its magnitude
        return jax.lax.bitcast_convert_type(shortened, jnp.float32)

    return rounded(x) * rounded(y)
