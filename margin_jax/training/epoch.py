"""The host-side epoch function: trains, counts exactly, and applies a schedule functionally.

An epoch may be trained in parts: what is done of it is an :class:`EpochPart`, a few numbers that a
checkpoint can hold, so that a training which was killed in the middle goes on to the last bit.
"""

import dataclasses
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax import Array

from margin_jax.losses.arguments import check_fit
from margin_jax.schedules import Schedule
from margin_jax.stats import QUANTILES, EpochTotals
from margin_jax.training.record import DivergedError, EpochPart, EpochRecord
from margin_jax.training.state import TrainState, as_arrays
from margin_jax.training.step import StepOutput, TrainStep

T = TypeVar("T")
# How many steps old a figure is when the host reads it: old enough that nothing waits.
_LAG = 3
# Mean distances below this share of the margin: the loss is then within that share of the margin.
_COLLAPSED = 0.1


def train_epoch(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterable[tuple[Any, Any]],
    schedule: Schedule,
    *,
    on_step: Callable[[int, float, float], None] | None = None,
) -> tuple[TrainState, EpochRecord]:
    """Trains one epoch, counts its triplets exactly, and applies the schedule once.

    Pure except for the clock: the arguments are not changed. The host never waits for a step that
    it has just queued; it reads results a few steps late.

    Args:
        state: the state before the epoch.
        train_step: from :func:`make_train_step`, or any function of the same form.
        batches: pairs ``(images, labels)``, all of one shape.
        schedule: updated once, after the last batch, with the epoch's :class:`EpochStats`.
        on_step: called with (steps read, loss, easy fraction so far), a few steps late.

    Returns:
        The state after the epoch, holding the next margin, and the :class:`EpochRecord`.

    Warns:
        UserWarning: if no batch had a valid triplet, as its labels were all equal or all different.

    Raises:
        ValueError: if `batches` is empty, labels on the host do not fit 32 bits, or the schedule
            needs a histogram that `train_step` does not keep.
        FloatingPointError: at the first step whose loss or gradient is not finite, naming it.

    Example:
        >>> import jax, jax.numpy as jnp, margin_jax as mj, optax
        >>> def embed(params, batch_stats, images, *, train, key):
        ...     return images @ params, batch_stats
        >>> schedule, optimizer = mj.dams(margin=0.2), optax.sgd(0.1)
        >>> state = mj.create_state(jnp.eye(2), {}, optimizer, schedule, jax.random.key(0))
        >>> images = jnp.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])
        >>> batches = [(images, jnp.array([0, 0, 1, 1]))] * 3
        >>> train_step = mj.make_train_step(embed, optimizer)
        >>> state, record = mj.train_epoch(state, train_step, batches, schedule)
        >>> record.steps, record.valid, record.easy, round(record.next_margin, 4)
        (3, 24, 24, 0.25)
    """
    state, part = train_steps(
        state, train_step, batches, needs_histogram=schedule.needs_histogram, on_step=on_step
    )
    return end_epoch(state, part, schedule)


def train_steps(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterable[tuple[Any, Any]],
    part: EpochPart | None = None,
    *,
    needs_histogram: bool = False,
    on_step: Callable[[int, float, float], None] | None = None,
) -> tuple[TrainState, EpochPart]:
    """Trains a part of an epoch.

    Args:
        state: the state before these batches.
        train_step, batches, on_step: as in :func:`train_epoch`.
        part: what of the epoch is done already. Default: nothing.
        needs_histogram: a step without one is an error.

    Returns:
        The state after the batches, and what is done of the epoch then; all of its steps were
        finite.

    Raises:
        DivergedError: at the first step whose loss or gradient is not finite.
        ValueError: for a step without a histogram where one is needed, or labels that do not fit.
    """
    epoch = int(jax.device_get(state.schedule.epoch)) + 1
    state, done = _placed_alike(as_arrays(state)), part or EpochPart()
    pending: deque[tuple[StepOutput, int]] = deque()

    def read() -> None:
        nonlocal done
        output, images_seen = pending.popleft()
        loss = float(jax.device_get(output.loss))
        told = output.gradient_norm is not None
        norm = float(jax.device_get(output.gradient_norm)) if told else math.nan
        if not math.isfinite(loss) or (told and not math.isfinite(norm)):
            step = done.steps + 1
            raise DivergedError(
                f"epoch {epoch}, step {step} is not finite: loss {loss}, gradient of length {norm}",
                epoch,
                step,
            )
        if needs_histogram and output.histogram is None:
            raise ValueError(
                "the schedule needs the histogram of effective margins: "
                "make_train_step(..., histogram=True)"
            )
        memory = done.memory
        if output.memory_stats is not None:
            memory = (memory or EpochTotals()).add(output.memory_stats)
        done = dataclasses.replace(
            done,
            steps=done.steps + 1,
            images=done.images + images_seen,
            loss=done.loss + loss,
            gradient_norm=done.gradient_norm + norm,
            totals=done.totals.add(output.stats, output.histogram),
            memory=memory,
            idle_steps=done.idle_steps + (loss == 0),
        )
        if on_step is not None:
            easy = done.totals.counts()["easy"] / max(done.totals.valid, 1)
            on_step(done.steps, loss, easy)

    waits: list[float] = []
    started = time.perf_counter()
    for images, labels in _timed(batches, waits):
        check_fit("labels", labels)
        state, output = train_step(state, images, labels)
        if _may_deadlock(output.loss):
            jax.block_until_ready(output)
        pending.append((output, len(labels)))
        if len(pending) > _LAG:
            read()
    while pending:
        read()
    seconds = done.seconds + time.perf_counter() - started
    return state, dataclasses.replace(done, seconds=seconds, waited=done.waited + sum(waits))


def end_epoch(
    state: TrainState, part: EpochPart, schedule: Schedule
) -> tuple[TrainState, EpochRecord]:
    """Asks the schedule, once the whole epoch is trained.

    Args:
        state: the state after the last step.
        part: the whole epoch, from :func:`train_steps`.
        schedule: as in :func:`train_epoch`.

    Returns:
        The state with the next margin, and the :class:`EpochRecord`.

    Warns:
        UserWarning: if no batch had a valid triplet, as its labels were all equal or all different.

    Raises:
        ValueError: if nothing was trained.
    """
    if not part.steps:
        raise ValueError("an epoch needs at least one batch; got none")
    if not part.totals.valid and not (part.memory and part.memory.valid):
        epoch = int(jax.device_get(state.schedule.epoch)) + 1
        warnings.warn(
            f"epoch {epoch} had no triplet, so it trained nothing: a batch needs two rows of one "
            "label and a row of another",
            stacklevel=3,
        )
    stats = part.totals.stats()
    with jax.transfer_guard("allow"):  # a few scalars, once an epoch
        next_schedule = _like(schedule.update(state.schedule, stats), state.schedule)
    after, margin = state.replace(schedule=next_schedule), float(jax.device_get(state.margin))
    record = EpochRecord(
        epoch=int(jax.device_get(state.schedule.epoch)) + 1,
        margin=margin,
        next_margin=float(jax.device_get(after.margin)),
        loss=part.loss / part.steps,
        gradient_norm=part.gradient_norm / part.steps,
        **part.totals.counts(),
        easy_fraction=float(stats.easy_fraction),
        mean_ap=float(stats.mean_ap),
        mean_an=float(stats.mean_an),
        mean_effective=float(stats.mean_effective),
        std_effective=float(stats.std_effective),
        effective_quantiles=part.totals.effective_quantiles(QUANTILES),
        steps=part.steps,
        images=part.images,
        seconds=part.seconds,
        images_per_second=part.images / part.seconds,
        data_wait=part.waited / part.seconds,
        collapsed=margin > 0 and float(max(stats.mean_ap, stats.mean_an)) <= _COLLAPSED * margin,
        memory=None if part.memory is None else part.memory.counts(),
        idle_steps=part.idle_steps,
    )
    return after, record


def _timed(batches: Iterable[T], waits: list[float]) -> Iterator[T]:
    """The same batches; notes the seconds that each of them was waited for."""
    source = iter(batches)
    while True:
        asked = time.perf_counter()
        try:
            batch = next(source)
        except StopIteration:
            return
        finally:
            waits.append(time.perf_counter() - asked)
        yield batch


def _may_deadlock(array: Array) -> bool:
    """Virtual CPU devices share threads: queued steps with collectives can starve each other."""
    devices: set[Any] = getattr(array, "devices", set)()
    return len(devices) > 1 and next(iter(devices)).platform == "cpu"


def _placed_alike(state: TrainState) -> TrainState:
    """The state with all of it where a part of it is, if that is committed to devices.

    What a step makes of such a state is committed as a whole, so that a step of this one would be
    compiled for itself. A state without such a part is left to the step, whose mesh decides.
    """
    places = [v.sharding for v in jax.tree.leaves(state) if v.committed]
    place = next((place for place in places if place.is_fully_replicated), None)
    if place is None:
        return state
    alike: TrainState = jax.tree.map(
        lambda v: v if v.committed else jax.device_put(v, place), state
    )
    return alike


def _like(new: T, old: T) -> T:
    """The new values with the types and placement of the old ones, so that no step recompiles.

    Nothing is copied that is in place already.
    """

    def place(n: Array, o: Array) -> Any:
        same_type = n if n.dtype == o.dtype else n.astype(o.dtype)  # keys have no astype
        if not o.committed or (n.committed and n.sharding == o.sharding):
            return same_type
        return jax.device_put(same_type, o.sharding)

    placed: T = jax.tree.map(place, as_arrays(new), old)
    return placed
