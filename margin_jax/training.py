"""Many epochs: data, training, validation, the best model, resume, and the report on test pairs."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from margin_jax import plots, run
from margin_jax.augmentation import Augment, make_augment
from margin_jax.checkpoint import Checkpoint
from margin_jax.config import TrainConfig
from margin_jax.data.dataset import ImageDataset
from margin_jax.data.loader import load_batches
from margin_jax.data.sampler import pk_batches
from margin_jax.epoch import TrainStep, make_train_step, train_epoch
from margin_jax.evaluation.embedding import embed_images, pair_distances
from margin_jax.evaluation.verification import (
    VerificationReport,
    choose_threshold,
    verification_report,
)
from margin_jax.losses import batch_all_triplet_loss
from margin_jax.mining import mining_schedule
from margin_jax.models import Encoder, pretrained
from margin_jax.optimizers import make_optimizer
from margin_jax.progress import ProgressBar
from margin_jax.protocol import RunData, image_moments, plan_epoch, prepare_data
from margin_jax.run import Run
from margin_jax.sharding import make_mesh, place_copies
from margin_jax.state import TrainState, create_state

# The margin of the released code's model choice, fixed whatever the schedule does.
SELECTION_MARGIN = 1.0

OnEpoch = Callable[[dict[str, Any]], None]


def fit(
    config: TrainConfig,
    *,
    dataset: ImageDataset | None = None,
    encoder: Encoder | None = None,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> Run:
    """Trains as `config` says, reports on the test identities, and leaves a run folder.

    Args:
        config: what to do. ``MARGIN_JAX_SMALL=1`` in the environment makes any run short.
        dataset: your own images, with ``TrainConfig(dataset="own")``; or those that the
            configuration names, if they are loaded already.
        encoder: your own network, with ``TrainConfig(encoder="own")``.
        on_epoch: called after each epoch with its record (a line of ``history.jsonl``).
        progress: show a progress bar.

    Returns:
        The run, with the weights of its best epoch.

    Raises:
        ValueError: for data or a run folder that cannot be used; nothing is written then.
    """
    config = config.shrunk()
    mesh = make_mesh(config.devices, config.batch_size)
    if _is_first_process():
        run.check_folder(config)  # before the data, which can take minutes to load
    encoder = run.get_encoder(config, encoder)
    # A run that goes on has its weights already, and their file may be gone.
    begins = not (config.resume and (config.folder / run.LAST).is_dir())
    published = _published(config) if config.begins_with_weights and begins else None
    data = prepare_data(config, dataset)
    augment = make_augment(config.augment)
    if augment is not None:  # images that are too small for it are refused here
        one = jax.ShapeDtypeStruct((1, *data.dataset.images.shape[1:]), np.uint8)
        jax.eval_shape(augment, one, jax.random.key(0))
    folder = config.folder
    schedule = config.make_schedule()
    mining = mining_schedule(config.mining)
    compiled = functools.partial(
        _optimizer_and_step,
        encoder,
        _optimizer(config, data),
        config.distance,
        config.reduction,
        config.histogram or schedule.needs_histogram,
        augment,
        mesh,
    )
    optimizer, _ = compiled(mining(1))
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    params, batch_stats = encoder.init(init_key, data.dataset.images.shape[1:])
    if published is not None:
        params, batch_stats = _begin_with(published, config, encoder, params, batch_stats)
    elif not config.begins_with_weights:
        batch_stats = encoder.with_normalisation(batch_stats, *image_moments(data))
    state = create_state(params, batch_stats, optimizer, schedule, train_key)
    state = place_copies(state, mesh)
    validate = _validator(config, data, encoder)

    # Last, so that nothing is removed or written for what turns out to be impossible.
    if _is_first_process():
        run.prepare_folder(config, data)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run folder")
    with Checkpoint(folder / run.LAST) as last, Checkpoint(folder / run.BEST) as best:
        history: list[dict[str, Any]] = []
        if last.epoch is not None:
            state = last.restore(state)
            # The process may have been killed between writing a record and saving its state.
            history = run.read_history(folder)[: int(state.schedule.epoch)]
            if len(history) < int(state.schedule.epoch) or best.epoch is None:
                raise ValueError(
                    f"can not resume {folder}: it is damaged, {run.LAST} is of epoch "
                    f"{int(state.schedule.epoch)} and {run.HISTORY} ends at {len(history)}"
                )
        if _is_first_process():
            run.write_history(folder, history)
            run.write_text(folder / run.CONFIG, config.to_json())  # perhaps of more epochs
            if len(history) < config.epochs:  # a report would be about other weights
                (folder / run.REPORT).unlink(missing_ok=True)

        show = progress and _is_first_process()
        with ProgressBar(str(folder), config.epochs, len(history), show) as bar:
            for epoch in range(len(history), config.epochs):
                plan, _ = plan_epoch(config, data.dataset, data.train, epoch)
                batches = load_batches(data.dataset.images, data.dataset.labels, plan, mesh)
                bar.start(float(state.margin), len(plan))
                _, train_step = compiled(mining(epoch + 1))
                state, trained = train_epoch(state, train_step, batches, schedule, on_step=bar.step)
                validated = validate(state)
                if jax.process_count() > 1:  # or they could disagree on which epoch is the best
                    validated = jax.tree.map(float, multihost_utils.broadcast_one_to_all(validated))
                record = {**dataclasses.asdict(trained), **validated}
                history.append(record)
                if _is_first_process():
                    run.append_history(folder, record)
                if best_epoch(history, config.select) == record["epoch"]:
                    best.save(record["epoch"], (state.params, state.batch_stats))
                    best.wait()  # or a kill could leave the state of an epoch without its best
                last.save(record["epoch"], state)
                bar.validated(record["validation_auc"])
                if on_epoch is not None:
                    on_epoch(record)
        params, batch_stats = jax.device_get(best.restore((state.params, state.batch_stats)))

    report, pictures = _report(config, data, encoder, params, batch_stats, history)
    if _is_first_process():
        (folder / run.FIGURES).mkdir(exist_ok=True)
        for name, picture in pictures.items():
            picture.savefig(folder / run.FIGURES / f"{name}.png")
        run.write_text(folder / run.REPORT, run.to_json(report, indent=2) + "\n")
    return Run(folder, config, history, report, data.described, encoder, params, batch_stats)


@functools.lru_cache(maxsize=8)
def _optimizer_and_step(
    encoder: Encoder,
    optimizer: tuple[Any, ...],
    distance: str,
    reduction: str,
    histogram: bool,
    augment: Augment | None,
    mesh: Mesh,
    mining: str,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Cached, so that runs which differ in nothing that is compiled share one compilation."""
    rule = make_optimizer(*optimizer)
    train_step = make_train_step(
        encoder.apply,
        rule,
        distance=distance,
        reduction=reduction,
        mining=mining,
        histogram=histogram,
        augment=augment,
        mesh=mesh,
    )
    return rule, train_step


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
    path = pretrained.fetch(config.encoder) if config.weights is None else config.weights
    return pretrained.load_weights(config.encoder, path)


def _begin_with(
    trunk: tuple[Any, Any], config: TrainConfig, encoder: Encoder, params: Any, batch_stats: Any
) -> tuple[Any, Any]:
    """Takes over a published trunk, and the normalisation of images that goes with it."""
    params, batch_stats = encoder.with_trunk(params, batch_stats, *trunk)
    of_images = pretrained.PRETRAINED[config.encoder]
    mean, std = np.array(of_images.mean), np.array(of_images.std)
    return params, encoder.with_normalisation(batch_stats, mean, std)


def _is_first_process() -> bool:
    """Of a multi-host job, the one that writes reports."""
    return jax.process_index() == 0


def best_epoch(history: list[dict[str, Any]], select: str) -> int:
    """The epoch (from 1) that the rule chooses; the first one if several are as good."""

    def worth(record: dict[str, Any]) -> float:
        if select == "auc":
            return float(record["validation_auc"])
        loss = record["validation_loss"]
        return -math.inf if loss is None or math.isnan(loss) else -loss

    return int(max(history, key=worth)["epoch"])


@functools.partial(jax.jit, static_argnames="distance")
def _selection_loss(vectors: Array, labels: Array, distance: str) -> Array:
    """The released code's validation loss: batch-all mean over all triplets at a fixed margin."""
    return batch_all_triplet_loss(
        vectors, labels, SELECTION_MARGIN, distance=distance, reduction="mean"
    )[0]


def _validator(
    config: TrainConfig, data: RunData, encoder: Encoder
) -> Callable[[TrainState], dict[str, float]]:
    """``validate(state)``: AUC on the validation pairs, and the released code's validation loss."""
    labels = data.dataset.labels[data.validation]
    pairs = data.pairs["validation"]
    rows = np.searchsorted(data.validation, pairs.rows)
    enough = int(np.count_nonzero(np.bincount(labels) >= config.images_per_identity))
    plan = np.empty((0, 0), int)
    if enough >= 2:
        plan, _ = pk_batches(
            labels,
            min(enough, config.identities_per_batch),
            config.images_per_identity,
            seed=config.seed,
            epoch=0,
        )

    def validate(state: TrainState) -> dict[str, float]:
        params, batch_stats = jax.device_get((state.params, state.batch_stats))
        vectors = embed_images(
            encoder.apply, params, batch_stats, data.dataset.images, data.validation
        )
        distances = pair_distances(vectors, rows, config.distance)
        threshold = choose_threshold(distances, pairs.same)
        report = verification_report(distances, pairs.same, threshold=threshold)
        losses = [
            float(_selection_loss(vectors[batch], labels[batch], distance=config.distance))
            for batch in plan
        ]
        return {
            "validation_auc": report.auc,
            "validation_loss": float(np.mean(losses)) if losses else math.nan,
        }

    return validate


def _report(
    config: TrainConfig,
    data: RunData,
    encoder: Encoder,
    params: Any,
    batch_stats: Any,
    history: list[dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the best weights at the threshold of the validation pairs, and pictures."""
    images = data.dataset.images
    used = np.unique(np.concatenate([pairs.rows.ravel() for pairs in data.pairs.values()]))
    embedded = embed_images(encoder.apply, params, batch_stats, images, used)
    vectors = np.zeros((len(images), embedded.shape[1]), np.float32)
    vectors[used] = embedded
    distances = {
        name: pair_distances(vectors, pairs.rows, config.distance)
        for name, pairs in data.pairs.items()
    }
    ours = _verify(data, distances)
    raw = None
    if isinstance(images, np.ndarray):  # else each of them would be decoded for each of its pairs
        raw = _verify(
            data, {name: pair_distances(images, pairs.rows) for name, pairs in data.pairs.items()}
        )

    def figures(reports: dict[str, VerificationReport]) -> dict[str, Any]:
        rest = {name: r.to_json() for name, r in reports.items() if name in ("published", "hard")}
        return {**reports["test"].to_json(), **rest}

    epoch = best_epoch(history, config.select)
    report = {
        "best_epoch": epoch,
        "epochs": len(history),
        "margin": history[epoch - 1]["margin"],
        "validation": ours["validation"].to_json(),
        "test": {**figures(ours), "raw_pixels": raw and figures(raw)},
    }
    pictures = {
        "margin": plots.plot_margin(history, _easy_share_watched(config)),
        "loss": plots.plot_loss(history, epoch),
        "effective_margin": plots.plot_effective_margin(history),
        "distances": plots.plot_distances(
            distances["test"], data.pairs["test"].same, ours["test"].threshold
        ),
        "roc": plots.plot_roc(
            {"embedding": ours["test"], **({"raw pixels": raw["test"]} if raw else {})}
        ),
    }
    return report, pictures


def _easy_share_watched(config: TrainConfig) -> float | None:
    """The share of easy triplets at which the schedule acts, or that it holds."""
    name, values = config.schedule_parameters()
    watched = {"dams": "threshold", "target_easy_fraction": "target"}
    return float(values[watched[name]]) if name in watched else None


def _verify(data: RunData, distances: dict[str, np.ndarray]) -> dict[str, VerificationReport]:
    """A report for each set of pairs, all at the threshold chosen on the validation pairs."""
    threshold = choose_threshold(distances["validation"], data.pairs["validation"].same)
    return {
        name: verification_report(distances[name], pairs.same, threshold=threshold)
        for name, pairs in data.pairs.items()
    }
