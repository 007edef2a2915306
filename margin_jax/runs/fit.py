"""Many epochs: training, validation, the best model, resume, and the report on test pairs."""

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

from margin_jax.config import TrainConfig
from margin_jax.data.dataset import Dataset
from margin_jax.data.loader import load_batches
from margin_jax.data.views import draw_versions
from margin_jax.devices import jobs
from margin_jax.devices.meshes import make_mesh, place_copies
from margin_jax.files import append_line
from margin_jax.losses.base import Loss
from margin_jax.models.encoder import Encoder
from margin_jax.runs import claim, divergence, folder, resume
from margin_jax.runs.own import Own
from margin_jax.runs.progress import ProgressBar
from margin_jax.runs.report import make_report
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import plan_epoch, settle_batches
from margin_jax.runs.setting import Setting, set_up
from margin_jax.runs.validation import best_epoch, is_over
from margin_jax.schedules import Schedule
from margin_jax.training.checkpoint import Checkpoint, SaveError
from margin_jax.training.epoch import end_epoch, train_steps
from margin_jax.training.record import DivergedError, EpochPart
from margin_jax.training.state import TrainState

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
    schedule: Schedule | None = None,
    optimizer: optax.GradientTransformation | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> Run:
    """Trains as `config` says, evaluates on the test identities, and writes the run folder.

    Args:
        config: the configuration. ``MARGIN_JAX_SMALL=1`` in the environment makes any run short.
        dataset: your own examples, with ``TrainConfig(dataset="own")``; or the dataset that the
            configuration names, if you have loaded it already.
        encoder: your own network, with ``TrainConfig(encoder="own")``.
        loss: your own loss, with ``TrainConfig(loss="own")``; its distance must be the
            configuration's.
        schedule: your own, or one made of others, with ``TrainConfig(schedule="own")``. A run that
            goes on must be given the same; only its first margin and the names in its memory are
            compared.
        optimizer: any of optax, with ``TrainConfig(optimizer="own")``. It has its own learning
            rate. For a loss with parameters it gets them after the network's, as a pair. The same
            goes for runs that go on; only its state's shapes are compared.
        on_epoch: called after each epoch with its record (a line of ``history.jsonl``).
        progress: show a progress bar.

    Returns:
        The run, with the weights of its best epoch.

    Raises:
        ValueError: for data or a run folder that cannot be used; nothing is written then.
        DivergedError: if a loss or gradient is not finite; the last good state is kept.
        OSError: if the run folder can no longer be written; the last good state is kept.
        SystemExit: with status 143 after SIGTERM, once a checkpoint is saved.

    Warns:
        UserWarning: if the embeddings have collapsed to nearly one point.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig; got {type(config).__name__}")
    config = config.shrunk()
    own = Own(encoder, loss, schedule, optimizer)
    jobs.check_joined()
    jobs.check_same("run", (config.experiment(), config.checkpoint_steps))
    with contextlib.ExitStack() as held:
        if dataset is None:  # a typing error in it is not a question of the run folder
            jobs.agreed(lambda: claim.check_data(config))
        # Before the data, which can take minutes to load, and until the report is written.
        jobs.on_first(lambda: held.enter_context(claim.claim(config)))
        config, dataset = jobs.agreed(functools.partial(settle_batches, config, dataset))
        if config.microbatch is None:
            mesh = make_mesh(config.devices, config.batch_size)
        else:  # which divides the batch
            mesh = make_mesh(config.devices, config.microbatch, what="microbatch")
        setting, state = jobs.agreed(functools.partial(set_up, config, dataset, own, mesh))
        # Last, so that nothing is removed or written for what turns out to be impossible.
        changed = jobs.on_first(lambda: resume.prepare_folder(config, setting.data)) or ""
        place = _train(config, setting, state, changed, on_epoch, progress)
        data, history = setting.data, place.history
        show = progress and jobs.is_first()
        report, pictures = make_report(
            config,
            data,
            setting.encoder,
            *place.best,
            history,
            mesh,
            setting.schedule.easy_share,
            progress=show,
        )
        jobs.on_first(lambda: folder.write_report(config.folder, report, pictures))
    params, batch_stats = jax.device_get(place.best)
    return Run(
        config.folder, config, history, report, data.described, setting.encoder, params, batch_stats
    )


class Preempted(SystemExit):
    """SIGTERM has stopped a run, whose place is saved; ends a process with status 143."""

    def __init__(self, when: str) -> None:
        super().__init__(jobs.PREEMPTED)
        self.when = when


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
        jobs.notice() as notice,
        Checkpoint(config.folder / folder.CHECKPOINTS) as checkpoint,
    ):
        jobs.check_same("run folder", checkpoint.step)
        place = _begin(config, place_copies(state, mesh), mesh, checkpoint)
        jobs.on_first(lambda: resume.write_progress(config, place.history, changed))
        show = progress and jobs.is_first()
        with ProgressBar(str(config.folder), config.epochs, len(place.history), show) as bar:
            try:
                while not is_over(config, place.history):
                    place = _train_epoch(config, setting, place, checkpoint, notice, bar)
                    if jobs.from_first(checkpoint.age >= _SAVE_SECONDS):
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
        raise ValueError(f"cannot resume {config.folder}: its checkpoint is damaged")
    return found


def _train_epoch(
    config: TrainConfig,
    setting: Setting,
    place: Place,
    checkpoint: Checkpoint,
    notice: jobs.Notice,
    bar: ProgressBar,
) -> Place:
    """Goes on with an epoch to its end, saving in the middle as often as was asked."""
    state, best, history, part = place
    data, epoch = setting.data, len(history) + 1
    plan, _ = plan_epoch(config, data.dataset, data.train, epoch - 1)
    examples, versions = draw_versions(data.dataset, plan, seed=config.seed, epoch=epoch - 1)
    batches = _until(
        notice,
        place.step,
        load_batches(
            examples,
            setting.classes,
            plan,
            setting.mesh,
            first_step=part.steps,
            versions=versions,
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
    validated = jobs.from_first(validated)  # or they could disagree on the best epoch
    record = {**dataclasses.asdict(trained), **validated}
    if trained.collapsed and not any(earlier["collapsed"] for earlier in history):
        divergence.warn_of_collapse(trained)
    history = [*history, record]
    if best_epoch(history, config.select) == epoch:
        best = (state.params, state.batch_stats)
    jobs.on_first(lambda: append_line(config.folder / folder.HISTORY, record))
    bar.validated(record["validation_auc"])
    return Place(state, best, history, EpochPart())


def _until(notice: jobs.Notice, step: int, batches: Iterable[T]) -> Iterator[T]:
    """The batches before the step, from `step` on, at which the job must stop."""
    for batch in batches:
        if notice.by(step):
            return
        yield batch
        step += 1
