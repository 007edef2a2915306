"""One jitted step, and the host-side epoch function that applies a schedule functionally."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from margin_jax.augmentation import Augment
from margin_jax.distances import DistanceFn
from margin_jax.effective import effective_margin_histogram
from margin_jax.losses import batch_all_triplet_loss
from margin_jax.schedules import Schedule
from margin_jax.sharding import replicated
from margin_jax.state import TrainState
from margin_jax.stats import EpochTotals, TripletStats

T = TypeVar("T")

# How many steps old a figure is when the host reads it: old enough that nothing waits.
_LAG = 3
# Of the sample of effective margins that a record keeps.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ApplyFn(Protocol):
    """An encoder as a pure function."""

    def __call__(
        self, params: Any, batch_stats: Any, images: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Any]:
        """Returns ``(embeddings float[batch, dim], batch_stats)``."""
        ...


class StepOutput(NamedTuple):
    """What a step tells, still on the device.

    Attributes:
        loss: float32[].
        stats: statistics of the batch the step trained on.
        histogram: of a sample of its effective margins, if the step was made to keep one.
    """

    loss: Array
    stats: TripletStats
    histogram: Array | None = None


TrainStep = Callable[[TrainState, Array, Array], tuple[TrainState, StepOutput]]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training was like; all of it plain Python numbers.

    Attributes:
        epoch: from 1.
        margin: the margin in force during the epoch.
        next_margin: what the schedule made of it.
        loss: mean of the steps' losses.
        valid, easy, semihard, hard: triplets, exact, as counted while the weights moved.
        easy_fraction: easy / valid. NaN, like the means below, if there was no triplet.
        mean_ap, mean_an: mean distance over positive and over negative pairs.
        mean_effective, std_effective: of d(a,n) − d(a,p) over all valid triplets.
        effective_quantiles: of d(a,n) − d(a,p), the 1, 5, 25, 50, 75, 95 and 99 % quantiles of a
            sample; None if the step keeps no histogram.
        steps: optimiser steps.
        images: images trained on.
        seconds: wall time of training, without validation.
        images_per_second: images / seconds.
        data_wait: share of `seconds` in which the host waited for `batches`, 0 to 1.
    """

    epoch: int
    margin: float
    next_margin: float
    loss: float
    valid: int
    easy: int
    semihard: int
    hard: int
    easy_fraction: float
    mean_ap: float
    mean_an: float
    mean_effective: float
    std_effective: float
    effective_quantiles: list[float] | None  # as JSON has it
    steps: int
    images: int
    seconds: float
    images_per_second: float
    data_wait: float


def make_train_step(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    *,
    distance: str | DistanceFn = "euclidean",
    reduction: str = "mean_active",
    mining: str = "all",
    histogram: bool = False,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """A jitted ``train_step(state, images, labels) -> (state, StepOutput)``.

    The margin is read from the state, so a run compiles once whatever the schedule does.

    Args:
        apply_fn: ``apply_fn(params, batch_stats, images, *, train, key) -> (embeddings,
            batch_stats)``, pure.
        optimizer: any optax gradient transformation.
        distance, reduction, mining: as in :func:`~margin_jax.batch_all_triplet_loss`.
        histogram: also sample the batch's effective margins, as
            :func:`~margin_jax.effective_margin_histogram` does, for a schedule that
            ``needs_histogram``, or for the record.
        augment: changes the images of a batch before they are embedded, with a key that is a
            function of the state's key and step; from :func:`~margin_jax.make_augment`.
        mesh: devices that share the work, by a sharded batch; triplets and batch statistics are
            those of the global batch all the same. Default: wherever the arguments are.
    """
    everywhere = None if mesh is None else replicated(mesh)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def train_step(
        state: TrainState, images: Array, labels: Array
    ) -> tuple[TrainState, StepOutput]:
        key = jax.random.fold_in(state.key, state.step)
        if augment is not None:
            images = augment(images, jax.random.fold_in(key, 2))

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, TripletStats, Array]]:
            embeddings, batch_stats = apply_fn(
                params, state.batch_stats, images, train=True, key=key
            )
            if everywhere is not None:
                embeddings = jax.lax.with_sharding_constraint(embeddings, everywhere)
            loss, stats = batch_all_triplet_loss(
                embeddings,
                labels,
                state.margin,
                distance=distance,
                reduction=reduction,
                mining=mining,
            )
            return loss, (batch_stats, stats, embeddings)

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, stats, embeddings)), gradient = value_and_grad(state.params)
        sampled = None
        if histogram:
            sampled = effective_margin_histogram(
                embeddings, labels, stats, jax.random.fold_in(key, 1), distance=distance
            )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, StepOutput(loss, stats, sampled)

    return train_step


def train_epoch(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterable[tuple[Any, Any]],
    schedule: Schedule,
    *,
    on_step: Callable[[int, float, float], None] | None = None,
) -> tuple[TrainState, EpochRecord]:
    """Trains one epoch, counts its triplets exactly, and applies the schedule once.

    Pure but for the clock: neither `state` nor anything else passed in is changed. The host never
    waits for a step that it has just queued; it reads figures a few steps old.

    Args:
        state: the state before the epoch.
        train_step: from :func:`make_train_step`, or any function of the same form.
        batches: pairs ``(images, labels)``, all of one shape.
        schedule: asked once, after the last batch, with the epoch's :class:`EpochStats`.
        on_step: called with (steps read, loss, easy fraction so far), a few steps late.

    Returns:
        The state after the epoch, holding the next margin, and the :class:`EpochRecord`.

    Raises:
        ValueError: if `batches` is empty, or the schedule needs a histogram that `train_step` does
            not keep.
    """
    epoch, margin = int(jax.device_get(state.schedule.epoch)), float(jax.device_get(state.margin))
    state = _like(state, state)
    totals, losses, images_seen = EpochTotals(), list[float](), 0
    pending: deque[StepOutput] = deque()

    def read() -> None:
        nonlocal totals
        output = pending.popleft()
        totals = totals.add(output.stats, output.histogram)
        losses.append(float(jax.device_get(output.loss)))
        if on_step is not None:
            on_step(len(losses), losses[-1], totals.counts()["easy"] / max(totals.valid, 1))

    waits: list[float] = []
    started = time.perf_counter()
    for images, labels in _timed(batches, waits):
        state, output = train_step(state, images, labels)
        if schedule.needs_histogram and output.histogram is None:
            raise ValueError(
                "the schedule needs the histogram of effective margins: "
                "make_train_step(..., histogram=True)"
            )
        if _may_deadlock(output.loss):
            jax.block_until_ready(output)
        pending.append(output)
        images_seen += len(labels)
        if len(pending) > _LAG:
            read()
    while pending:
        read()
    seconds = time.perf_counter() - started
    if not losses:
        raise ValueError("an epoch needs at least one batch; got none")

    stats = totals.stats()
    with jax.transfer_guard("allow"):  # a few scalars, once an epoch
        next_schedule = _like(schedule.update(state.schedule, stats), state.schedule)
    state = state.replace(schedule=next_schedule)
    record = EpochRecord(
        epoch=epoch + 1,
        margin=margin,
        next_margin=float(jax.device_get(state.margin)),
        loss=float(np.mean(losses)),
        **totals.counts(),
        easy_fraction=float(stats.easy_fraction),
        mean_ap=float(stats.mean_ap),
        mean_an=float(stats.mean_an),
        mean_effective=float(stats.mean_effective),
        std_effective=float(stats.std_effective),
        effective_quantiles=totals.effective_quantiles(QUANTILES),
        steps=len(losses),
        images=images_seen,
        seconds=seconds,
        images_per_second=images_seen / seconds,
        data_wait=sum(waits) / seconds,
    )
    return state, record


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


def _like(new: T, old: T) -> T:
    """The new values with the types and placement of the old ones, so that no step recompiles.

    What it returns is committed to its devices, which is part of what a compilation is for: every
    state that enters a step goes through here. Nothing is copied that is in place already.
    """

    def place(n: Array, o: Array) -> Any:
        placed = isinstance(n, Array) and n.committed and n.sharding == o.sharding
        if placed and n.dtype == o.dtype:
            return n
        same_type = n if n.dtype == o.dtype else n.astype(o.dtype)  # keys have no astype
        return jax.device_put(same_type, o.sharding)

    placed: T = jax.tree.map(place, new, old)
    return placed
