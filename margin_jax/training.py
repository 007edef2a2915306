"""Many epochs: data, training, validation, the best model, resume, and the report on test pairs."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from margin_jax import divergence, multihost, run
from margin_jax.augmentation import Augment, make_augment
from margin_jax.checkpoint import Checkpoint, SaveError
from margin_jax.config import TrainConfig
from margin_jax.data.dataset import Dataset
from margin_jax.data.loader import load_batches
from margin_jax.encoders import PRETRAINED
from margin_jax.epoch import DivergedError, EpochPart, EpochRecord, end_epoch, train_steps
from margin_jax.files import append_line
from margin_jax.loss import OWN, Loss, check_loss
from margin_jax.memory import Memory
from margin_jax.models import pretrained
from margin_jax.models.encoder import Encoder
from margin_jax.optimizers import make_optimizer
from margin_jax.progress import ProgressBar
from margin_jax.protocol import (
    RunData,
    moments,
    plan_epoch,
    prepare_data,
    settle_batches,
)
from margin_jax.report import make_report
from margin_jax.run import Run, best_epoch
from margin_jax.schedules import Schedule
from margin_jax.sharding import make_mesh, place_copies
from margin_jax.state import TrainState, create_state
from margin_jax.step import TrainStep, make_train_step
from margin_jax.validation import make_validator

T = TypeVar("T")

# A whole epoch is saved when the last save is so old: short epochs need not all be.
_SAVE_SECONDS = 10

OnEpoch = Callable[[dict[str, Any]], None]


def fit(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    encoder: Encoder | None = None,
    loss: Loss | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> Run:
    """Trains as `config` says, reports on the test identities, and leaves a run folder.

    Args:
        config: what to do. ``MARGIN_JAX_SMALL=1`` in the environment makes any run short.
        dataset: your own examples, with ``TrainConfig(dataset="own")``; or those that the
            configuration names, if they are loaded already.
        encoder: your own network, with ``TrainConfig(encoder="own")``.
        loss: your own loss, with ``TrainConfig(loss="own")``; its distance is the configuration's.
        on_epoch: called after each epoch with its record (a line of ``history.jsonl``).
        progress: show a progress bar.

    Returns:
        The run, with the weights of its best epoch.

    Raises:
        ValueError: for data or a run folder that cannot be used; nothing is written then.
        DivergedError: when a loss or a gradient is not finite; the last good state is kept.
        OSError: when the run folder can not be written to any more; likewise.
        SystemExit: with status 143 after SIGTERM, once the place of the training is saved.

    Warns:
        UserWarning: when the embeddings have collapsed to nearly one point.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig; got {type(config).__name__}")
    config = config.shrunk()
    multihost.check_joined()
    multihost.check_same("run", (config.experiment(), config.checkpoint_steps))
    with contextlib.ExitStack() as held:
        if dataset is None:  # a typing error in it is not a question of the run folder
            multihost.agreed(lambda: run.check_data(config))
        # Before the data, which can take minutes to load, and until the report is written.
        multihost.on_first(lambda: held.enter_context(run.claim(config)))
        config, dataset = multihost.agreed(functools.partial(settle_batches, config, dataset))
        if config.microbatch is None:
            mesh = make_mesh(config.devices, config.batch_size)
        else:  # which divides the batch
            mesh = make_mesh(config.devices, config.microbatch, what="microbatch")
        setting, state = multihost.agreed(
            functools.partial(_set_up, config, dataset, encoder, loss, mesh)
        )
        # Last, so that nothing is removed or written for what turns out to be impossible.
        changed = multihost.on_first(lambda: run.prepare_folder(config, setting.data)) or ""
        place = _train(config, setting, state, changed, on_epoch, progress)
        data, history = setting.data, place.history
        report, pictures = make_report(config, data, setting.encoder, *place.best, history, mesh)
        multihost.on_first(lambda: run.write_report(config.folder, report, pictures))
    params, batch_stats = jax.device_get(place.best)
    return Run(
        config.folder, config, history, report, data.described, setting.encoder, params, batch_stats
    )


class Preempted(SystemExit):
    """SIGTERM has stopped a run, whose place is saved; ends a process with status 143."""

    def __init__(self, when: str) -> None:
        super().__init__(multihost.PREEMPTED)
        self.when = when


class Setting(NamedTuple):
    """What stays the same while a run trains.

    Attributes:
        data, encoder, schedule, mesh: as the configuration says.
        classes: int32[rows of the dataset], labels as the loss sees them.
        train_step: of an epoch, from 1.
        validate: ``validate(state, record)``, the figures that validation adds to a record.
    """

    data: RunData
    classes: np.ndarray
    encoder: Encoder
    schedule: Schedule
    mesh: Mesh
    train_step: Callable[[int], TrainStep]
    validate: Callable[[TrainState, EpochRecord], dict[str, float]]


class Place(NamedTuple):
    """How far a run is: what a checkpoint holds.

    Attributes:
        state: after the last step.
        best: parameters and batch statistics of the best epoch; of the state before there is one.
        history: a record for every whole epoch.
        part: what is done of the next epoch.
    """

    state: TrainState
    best: tuple[Any, Any]
    history: list[dict[str, Any]]
    part: EpochPart

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        return int(jax.device_get(self.state.step))

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves it, unless it or a later one is saved."""
        if checkpoint.step is None or checkpoint.step < self.step:
            record = {"history": self.history, "part": self.part.to_json()}
            checkpoint.save(self.step, {"state": self.state, "best": self.best}, record)


def _set_up(
    config: TrainConfig,
    dataset: Dataset | None,
    encoder: Encoder | None,
    loss: Loss | None,
    mesh: Mesh,
) -> tuple[Setting, TrainState]:
    """All that a run needs, and the state it starts with, on this host alone."""
    encoder = run.get_encoder(config, encoder)
    check_own(config, loss)
    # A run that goes on has its weights already, and their file may be gone.
    published = None
    if config.begins_with_weights and not (config.resume and run.is_saved(config.folder)):
        published = _published(config)
    data = prepare_data(config, dataset, encoder, loss)
    augment = make_augment(config.augment)
    one = _one(data)
    if augment is not None:  # what it can not change is refused here, as small images are
        jax.eval_shape(augment, one, jax.random.key(0))
    schedule = config.make_schedule()

    def loss_of(epoch: int) -> Loss:
        return config.make_loss(epoch) if loss is None else loss

    compiled = functools.partial(
        _optimizer_and_step,
        encoder,
        _optimizer(config, data),
        config.histogram or schedule.needs_histogram,
        augment,
        config.microbatch,
        config.memory_warmup,
        mesh,
    )
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    params, batch_stats = encoder.init(init_key, one.shape[1:])
    if published is not None:
        params, batch_stats = _begin_with(published, config, encoder, params, batch_stats)
    elif not config.begins_with_weights:
        batch_stats = encoder.with_normalisation(batch_stats, *moments(data))
    optimizer, _ = compiled(loss_of(1))
    dim = _dim(encoder, params, batch_stats, one)
    memory = None if config.memory is None else Memory.empty(config.memory, dim)
    loss_params = loss_of(1).init(jax.random.fold_in(init_key, 1), dim, len(data.split.train))
    state = create_state(
        params,
        batch_stats,
        optimizer,
        schedule,
        train_key,
        memory=memory,
        loss_params=loss_params,
    )
    validate = make_validator(config, data, encoder, mesh)
    setting = Setting(
        data,
        data.classes(),
        encoder,
        schedule,
        mesh,
        lambda epoch: compiled(loss_of(epoch))[1],
        validate,
    )
    return setting, state


def _train(
    config: TrainConfig,
    setting: Setting,
    state: TrainState,
    changed: str,
    on_epoch: OnEpoch | None,
    progress: bool,
) -> Place:
    """All epochs that are left, to the end of the run or of the process."""
    mesh = setting.mesh
    with (
        multihost.notice() as notice,
        Checkpoint(config.folder / run.CHECKPOINTS) as checkpoint,
    ):
        multihost.check_same("run folder", checkpoint.step)
        place = _begin(config, place_copies(state, mesh), mesh, checkpoint)
        multihost.on_first(lambda: run.write_progress(config, place.history, changed))
        show = progress and multihost.is_first()
        with ProgressBar(str(config.folder), config.epochs, len(place.history), show) as bar:
            try:
                while len(place.history) < config.epochs:
                    place = _train_epoch(config, setting, place, checkpoint, notice, bar)
                    if multihost.from_first(checkpoint.age >= _SAVE_SECONDS):
                        place.save(checkpoint)
                    if on_epoch is not None:
                        on_epoch(place.history[-1])
                    if notice.given:
                        place.save(checkpoint)
                        raise Preempted(f"after epoch {len(place.history)}")
            except BaseException as error:
                # No whole epoch is lost; but other processes may be elsewhere, or the disk full.
                if jax.process_count() == 1 and not isinstance(error, SaveError):
                    place.save(checkpoint)
                raise
            place.save(checkpoint)

    if notice.given:  # while the last of it was saved
        raise Preempted(f"after epoch {len(place.history)}")
    return place


def _begin(config: TrainConfig, state: TrainState, mesh: Mesh, checkpoint: Checkpoint) -> Place:
    """The place that is saved, or the start of the run, which is saved too."""
    place = Place(state, (state.params, state.batch_stats), [], EpochPart())
    if checkpoint.step is None:
        place.save(checkpoint)  # so that whatever happens, there is a good state
        return place
    arrays, record = checkpoint.restore({"state": state, "best": place.best})
    arrays = place_copies(arrays, mesh)
    found = Place(
        arrays["state"], arrays["best"], record["history"], EpochPart.from_json(record["part"])
    )
    if len(found.history) != int(jax.device_get(found.state.schedule.epoch)):
        raise ValueError(f"can not resume {config.folder}: its checkpoint is damaged")
    return found


def _train_epoch(
    config: TrainConfig,
    setting: Setting,
    place: Place,
    checkpoint: Checkpoint,
    notice: multihost.Notice,
    bar: ProgressBar,
) -> Place:
    """Goes on with an epoch to its end, saving in the middle as often as was asked."""
    state, best, history, part = place
    data, epoch = setting.data, len(history) + 1
    plan, _ = plan_epoch(config, data.dataset, data.train, epoch - 1)
    batches = _until(
        notice,
        place.step,
        load_batches(
            data.dataset.examples, setting.classes, plan, setting.mesh, first_step=part.steps
        ),
    )
    bar.start(float(state.margin), len(plan), part.loss)
    unproven: Place | None = None  # until a step from it was finite
    while part.steps < len(plan):
        until_save = config.checkpoint_steps - part.steps % config.checkpoint_steps
        try:
            state, part = train_steps(
                state,
                setting.train_step(epoch),
                itertools.islice(batches, until_save if unproven is None else 1),
                part,
                needs_histogram=setting.schedule.needs_histogram,
                on_step=bar.step,
            )
        except DivergedError as error:
            labels = np.unique(data.dataset.labels[plan[error.step - 1]])
            names = [data.dataset.identities[label] for label in labels]
            raise divergence.with_advice(config, error, names) from None
        except FloatingPointError as error:  # of jax_debug_nans
            raise divergence.located(error, epoch) from None
        if unproven is not None:
            unproven.save(checkpoint)
        unproven = None
        if part.steps < len(plan) and notice.given:
            Place(state, best, history, part).save(checkpoint)
            raise Preempted(f"after epoch {epoch - 1} and {part.steps} steps")
        if part.steps % config.checkpoint_steps == 0:
            unproven = Place(state, best, history, part)

    state, trained = end_epoch(state, part, setting.schedule)
    try:
        validated = setting.validate(state, trained)
    except DivergedError as error:
        raise divergence.with_advice(config, error, []) from None
    except FloatingPointError as error:
        raise divergence.located(error, epoch) from None
    validated = multihost.from_first(validated)  # or they could disagree on the best epoch
    record = {**dataclasses.asdict(trained), **validated}
    if trained.collapsed and not any(earlier["collapsed"] for earlier in history):
        divergence.warn_of_collapse(trained)
    history = [*history, record]
    if best_epoch(history, config.select) == epoch:
        best = (state.params, state.batch_stats)
    multihost.on_first(lambda: append_line(config.folder / run.HISTORY, record))
    bar.validated(record["validation_auc"])
    return Place(state, best, history, EpochPart())


def _until(notice: multihost.Notice, step: int, batches: Iterable[T]) -> Iterator[T]:
    """The batches before the step, from `step` on, at which the job must stop."""
    for batch in batches:
        if notice.by(step):
            return
        yield batch
        step += 1


@functools.lru_cache(maxsize=8)
def _optimizer_and_step(
    encoder: Encoder,
    optimizer: tuple[Any, ...],
    histogram: bool,
    augment: Augment | None,
    microbatch: int | None,
    memory_warmup: int,
    mesh: Mesh,
    loss: Loss,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Cached, so that runs which differ in nothing that is compiled share one compilation."""
    rule = make_optimizer(*optimizer)
    train_step = make_train_step(
        encoder.apply,
        rule,
        loss,
        histogram=histogram,
        augment=augment,
        microbatch=microbatch,
        memory_warmup=memory_warmup,
        mesh=mesh,
    )
    return rule, train_step


def _one(data: RunData) -> jax.ShapeDtypeStruct:
    """A batch of one example, as it is computed with."""
    dtype = np.uint8 if data.dataset.pictures else np.float32
    return jax.ShapeDtypeStruct((1, *data.dataset.examples.shape[1:]), dtype)


def _dim(encoder: Encoder, params: Any, batch_stats: Any, one: jax.ShapeDtypeStruct) -> int:
    """Numbers of an embedding, which a network of one's own decides."""
    embed = functools.partial(encoder.apply, train=False, key=None)
    embeddings, _ = jax.eval_shape(embed, params, batch_stats, one)
    return int(embeddings.shape[-1])


def check_own(config: TrainConfig, loss: Loss | None) -> None:
    """Refuses a loss of one's own that is missing, not asked for, or of another distance.

    Raises:
        ValueError, TypeError: with what was expected.
    """
    if (loss is not None) != (config.loss == OWN):
        raise ValueError(
            f"a loss is given if, and only if, the configuration says loss {OWN!r}; it says "
            f"{config.loss!r}"
        )
    if loss is not None and check_loss(loss).distance != config.distance:
        raise ValueError(
            f"a loss of your own must have the configuration's distance, {config.distance!r}, "
            f"since reports compare by it; got {loss.distance!r}"
        )


def _optimizer(config: TrainConfig, data: RunData) -> tuple[Any, ...]:
    """Arguments of :func:`~margin_jax.optimizers.make_optimizer`."""
    steps = 1
    if config.learning_rate_schedule != "constant" or config.freeze:
        steps = len(plan_epoch(config, data.dataset, data.train, 0)[0])
    return (
        config.optimizer,
        config.learning_rate,
        config.learning_rate_schedule,
        steps * config.epochs if config.learning_rate_schedule != "constant" else 1,
        steps,
        config.freeze,
    )


def _published(config: TrainConfig) -> tuple[Any, Any]:
    """``(params, batch_stats)`` of the trunk that a run begins with."""
    path = pretrained.fetch(config.encoder_name) if config.weights is None else config.weights
    return pretrained.load_weights(config.encoder_name, path)


def _begin_with(
    trunk: tuple[Any, Any], config: TrainConfig, encoder: Encoder, params: Any, batch_stats: Any
) -> tuple[Any, Any]:
    """Takes over a published trunk, and the normalisation of images that goes with it."""
    params, batch_stats = encoder.with_trunk(params, batch_stats, *trunk)
    of_images = PRETRAINED[config.encoder_name]
    mean, std = np.array(of_images.mean), np.array(of_images.std)
    return params, encoder.with_normalisation(batch_stats, mean, std)
