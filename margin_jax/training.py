"""Many epochs: data, training, validation, the best model, resume, and the report on test pairs."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from margin_jax import plots, run
from margin_jax.checkpoint import Checkpoint
from margin_jax.config import DEPENDS_ON_EPOCHS, TrainConfig
from margin_jax.data import load_dataset
from margin_jax.data.dataset import ImageDataset
from margin_jax.data.loader import load_batches
from margin_jax.data.pairs import Pairs, hard_pairs, sample_pairs
from margin_jax.data.sampler import Coverage, pk_batches
from margin_jax.data.splits import Split, split_identities
from margin_jax.epoch import make_train_step, train_epoch
from margin_jax.evaluation.embedding import embed_images, pair_distances
from margin_jax.evaluation.verification import (
    VerificationReport,
    choose_threshold,
    verification_report,
)
from margin_jax.losses import batch_all_triplet_loss
from margin_jax.models import Encoder
from margin_jax.progress import ProgressBar
from margin_jax.run import Run, load_run
from margin_jax.state import TrainState, create_state

PUBLISHED_PAIRS = 1_000
PAIRS = 100_000
# The margin of the released code's model choice, fixed whatever the schedule does.
SELECTION_MARGIN = 1.0

OnEpoch = Callable[[dict[str, Any]], None]


class RunData(NamedTuple):
    """What a run trains and tests on, all of it decided by the configuration and the files.

    Attributes:
        dataset: all images.
        split: identities of each part.
        train, validation: rows of `dataset`.
        pairs: "validation", "test", "published", and "hard" if there are any; rows of `dataset`.
        described: what goes into ``data.json``.
    """

    dataset: ImageDataset
    split: Split
    train: np.ndarray
    validation: np.ndarray
    pairs: dict[str, Pairs]
    described: dict[str, Any]


def fit(config: TrainConfig, *, on_epoch: OnEpoch | None = None, progress: bool = False) -> Run:
    """Trains as `config` says, reports on the test identities, and leaves a run folder.

    Args:
        config: what to do. ``MARGIN_JAX_SMALL=1`` in the environment makes any run short.
        on_epoch: called after each epoch with its record (a line of ``history.jsonl``).
        progress: show a progress bar.

    Returns:
        The run, with the weights of its best epoch.

    Raises:
        ValueError: for data or a run folder that cannot be used; nothing is written then.
    """
    config = config.shrunk()
    data = prepare_data(config)
    encoder = run.make_encoder(config, data.described)
    folder = _prepare_folder(config, data)

    schedule = config.make_schedule()
    optimizer = optax.adam(config.learning_rate)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    params, batch_stats = encoder.init(init_key, data.dataset.images.shape[1:])
    state = create_state(params, batch_stats, optimizer, schedule, train_key)
    train_step = make_train_step(
        encoder.apply,
        optimizer,
        distance=config.distance,
        reduction=config.reduction,
        mining=config.mining,
    )
    validate = _validator(config, data, encoder)

    with Checkpoint(folder / run.LAST) as last, Checkpoint(folder / run.BEST) as best:
        history: list[dict[str, Any]] = []
        if last.epoch is not None:
            state = last.restore(state)
            # The process may have been killed between writing a record and saving its state.
            history = run.read_history(folder)[: int(state.schedule.epoch)]
        run.write_history(folder, history)

        with ProgressBar(config.epochs, len(history), progress) as bar:
            for epoch in range(len(history), config.epochs):
                plan, _ = _plan(config, data, epoch)
                batches = load_batches(data.dataset.images, data.dataset.labels, plan)
                bar.start(float(state.margin), len(plan))
                state, trained = train_epoch(state, train_step, batches, schedule, on_step=bar.step)
                record = {**dataclasses.asdict(trained), **validate(state)}
                history.append(record)
                run.append_history(folder, record)
                if best_epoch(history, config.select) == record["epoch"]:
                    best.save(record["epoch"], (state.params, state.batch_stats))
                    best.wait()  # or a kill could leave the state of an epoch without its best
                last.save(record["epoch"], state)
                bar.validated(record["validation_auc"])
                if on_epoch is not None:
                    on_epoch(record)

    _write_report(config, data, encoder, folder, history)
    return load_run(folder)


def prepare_data(config: TrainConfig) -> RunData:
    """Loads, splits and draws pairs: all that can go wrong with the data goes wrong here.

    Raises:
        ValueError: saying what was expected and what came.
    """
    dataset = load_dataset(config.dataset, config.data_dir, config.image_size, config.strict)
    if config.max_identities is not None:
        dataset = dataset.first(config.max_identities)
    labels = dataset.labels
    split = split_identities(labels, dataset.groups, seed=config.seed)
    rows = {part: np.flatnonzero(np.isin(labels, getattr(split, part))) for part in split._fields}

    def draw(part: str, count: int, seed: int) -> Pairs:
        pairs = sample_pairs(labels[rows[part]], count, seed=seed)
        return Pairs(rows[part][pairs.rows], pairs.same)

    pairs = {
        "validation": draw("validation", PAIRS, config.seed),
        "test": draw("test", PAIRS, config.seed),
        "published": draw("test", PUBLISHED_PAIRS, config.seed),
    }
    groups = dataset.groups[labels[rows["test"]]]
    hard = hard_pairs(labels[rows["test"]], groups, PAIRS, seed=config.seed)
    if hard is not None:
        pairs["hard"] = Pairs(rows["test"][hard.rows], hard.same)

    pixels = dataset.images[rows["train"]].astype(np.float32) / 255
    described = {
        "images": len(labels),
        "image_shape": list(dataset.images.shape[1:]),
        "image_mean": np.mean(pixels, axis=(0, 1, 2), dtype=np.float64).tolist(),
        # A channel that never changes is only shifted.
        "image_std": np.maximum(np.std(pixels, axis=(0, 1, 2), dtype=np.float64), 1e-3).tolist(),
        "skipped": list(dataset.skipped),
        "identities": {
            part: [dataset.identities[i] for i in getattr(split, part)] for part in split._fields
        },
    }
    data = RunData(dataset, split, rows["train"], rows["validation"], pairs, described)
    described["coverage"] = dataclasses.asdict(_plan(config, data, 0)[1])
    return data


def best_epoch(history: list[dict[str, Any]], select: str) -> int:
    """The epoch (from 1) that the rule chooses; the first one if several are as good."""

    def worth(record: dict[str, Any]) -> float:
        if select == "auc":
            return float(record["validation_auc"])
        loss = record["validation_loss"]
        return -math.inf if loss is None or math.isnan(loss) else -loss

    return int(max(history, key=worth)["epoch"])


def _plan(config: TrainConfig, data: RunData, epoch: int) -> tuple[np.ndarray, Coverage]:
    plan, coverage = pk_batches(
        data.dataset.labels[data.train],
        config.identities_per_batch,
        config.images_per_identity,
        seed=config.seed,
        epoch=epoch,
        small_identities=config.small_identities,
    )
    return data.train[plan], coverage


def _validator(
    config: TrainConfig, data: RunData, encoder: Encoder
) -> Callable[[TrainState], dict[str, float]]:
    """``validate(state)``: AUC on the validation pairs, and the released code's validation loss.

    That loss is the batch-all mean over all triplets of PK batches, at a fixed margin.
    """
    labels = data.dataset.labels[data.validation]
    images = data.dataset.images[data.validation]
    pairs = data.pairs["validation"]
    rows = np.searchsorted(data.validation, pairs.rows)
    counts = np.bincount(labels)
    enough = int(np.count_nonzero(counts >= config.images_per_identity))
    plan = np.empty((0, 0), int)
    if enough >= 2:
        plan, _ = pk_batches(
            labels,
            min(enough, config.identities_per_batch),
            config.images_per_identity,
            seed=config.seed,
            epoch=0,
        )

    @jax.jit
    def loss_fn(vectors: jax.Array, labels: jax.Array) -> jax.Array:
        loss, _ = batch_all_triplet_loss(
            vectors, labels, SELECTION_MARGIN, distance=config.distance, reduction="mean"
        )
        return loss

    def validate(state: TrainState) -> dict[str, float]:
        vectors = embed_images(encoder.apply, state.params, state.batch_stats, images)
        distances = pair_distances(vectors, rows, config.distance)
        threshold = choose_threshold(distances, pairs.same)
        report = verification_report(distances, pairs.same, threshold=threshold)
        losses = [float(loss_fn(vectors[batch], labels[batch])) for batch in plan]
        return {
            "validation_auc": report.auc,
            "validation_loss": float(np.mean(losses)) if losses else math.nan,
        }

    return validate


def _write_report(
    config: TrainConfig,
    data: RunData,
    encoder: Encoder,
    folder: Path,
    history: list[dict[str, Any]],
) -> None:
    """Tests the best weights at the threshold of the validation pairs; report.json, figures/."""
    images = data.dataset.images
    with Checkpoint(folder / run.BEST) as best:
        like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images.shape[1:]))
        params, batch_stats = best.restore(like)
    vectors = np.zeros((len(images), config.embedding_size), np.float32)
    used = np.unique(np.concatenate([pairs.rows.ravel() for pairs in data.pairs.values()]))
    vectors[used] = embed_images(encoder.apply, params, batch_stats, images[used])
    distances = {
        name: pair_distances(vectors, pairs.rows, config.distance)
        for name, pairs in data.pairs.items()
    }
    ours = _verify(data, distances)
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
        "test": {**figures(ours), "raw_pixels": figures(raw)},
    }
    pictures = {
        "margin": plots.plot_margin(
            history, config.threshold if config.schedule == "dams" else None
        ),
        "loss": plots.plot_loss(history, epoch),
        "effective_margin": plots.plot_effective_margin(history),
        "distances": plots.plot_distances(
            distances["test"], data.pairs["test"].same, ours["test"].threshold
        ),
        "roc": plots.plot_roc({"embedding": ours["test"], "raw pixels": raw["test"]}),
    }
    (folder / run.FIGURES).mkdir(exist_ok=True)
    for name, picture in pictures.items():
        picture.savefig(folder / run.FIGURES / f"{name}.png")
    run.write_text(folder / run.REPORT, run.to_json(report, indent=2) + "\n")


def _verify(data: RunData, distances: dict[str, np.ndarray]) -> dict[str, VerificationReport]:
    """A report for each set of pairs, all at the threshold chosen on the validation pairs."""
    threshold = choose_threshold(distances["validation"], data.pairs["validation"].same)
    return {
        name: verification_report(distances[name], pairs.same, threshold=threshold)
        for name, pairs in data.pairs.items()
    }


def _prepare_folder(config: TrainConfig, data: RunData) -> Path:
    """An empty run folder with the run's description, or the one to resume.

    Raises:
        ValueError: rather than touch anything that is not this run's.
    """
    folder = config.folder
    described = run.to_json(data.described, indent=2) + "\n"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / run.CONFIG).is_file():
            raise ValueError(f"{folder} is not empty and not a run folder; choose another out")
        if config.resume:
            _check_same(config, described, folder)
            return folder
        if not config.overwrite:
            raise ValueError(
                f"{folder} holds a run: ask to overwrite or resume it, or choose another out"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run.write_text(folder / run.DATA, described)
        arrays: dict[str, Any] = {"files": np.array(data.dataset.files)}
        for name, pairs in data.pairs.items():
            arrays |= {f"{name}_rows": pairs.rows, f"{name}_same": pairs.same}
        np.savez_compressed(folder / run.PAIRS, **arrays)
        # Last: a folder with a configuration has all that a run needs to be resumed.
        run.write_text(folder / run.CONFIG, config.to_json())
    except OSError as error:
        raise ValueError(f"cannot write the run folder {folder}: {error.strerror}") from error
    return folder


def _check_same(config: TrainConfig, described: str, folder: Path) -> None:
    """Refuses to resume what is not the same run; more epochs of it are, if its rule allows."""
    saved = TrainConfig.from_json((folder / run.CONFIG).read_text(encoding="utf-8")).experiment()
    asked = config.experiment()
    if config.schedule not in DEPENDS_ON_EPOCHS and asked["epochs"] > saved["epochs"]:
        run.write_text(folder / run.CONFIG, config.to_json())
        saved["epochs"] = asked["epochs"]
    changed = [
        f"{name} is {saved[name]}, asked for {asked[name]}"
        for name in asked
        if asked[name] != saved[name]
    ]
    if changed:
        raise ValueError(f"cannot resume {folder} as another run: {'; '.join(changed)}")
    if described != (folder / run.DATA).read_text(encoding="utf-8"):
        raise ValueError(f"cannot resume {folder}: the images are not those it was started with")
