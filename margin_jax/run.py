"""A finished run and its folder.

::

    config.json    what was run: enough to repeat it
    data.json      identities of each part of the split, coverage, skipped files
    pairs.npz      the verification pairs
    history.jsonl  one record an epoch
    checkpoints/   by step, the newest: where the training is, and the weights of the best epoch
    changes.jsonl  options that were changed on the way, if any were
    report.json    figures on the test identities, under "test"
    figures/       pictures of all that
"""

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from margin_jax.checkpoint import Checkpoint
from margin_jax.config import TrainConfig
from margin_jax.data import OWN
from margin_jax.data.dataset import Examples
from margin_jax.data.images import StreamedImages
from margin_jax.evaluation.embedding import embed_examples, pair_distances
from margin_jax.evaluation.verification import VerificationReport, verification_report
from margin_jax.files import (
    append_line,
    local_path,
    parse_json,
    read_json,
    sha256,
    to_json,
    write_text,
)
from margin_jax.lock import LOCK, locked
from margin_jax.models import make_encoder
from margin_jax.models.encoder import Encoder
from margin_jax.protocol import RunData
from margin_jax.report_lines import report_rows, table, training_line
from margin_jax.schedules import SCHEDULES
from margin_jax.sharding import check_devices
from margin_jax.spec import leaves_open

CONFIG, DATA, PAIRS = "config.json", "data.json", "pairs.npz"
HISTORY, REPORT, FIGURES = "history.jsonl", "report.json", "figures"
CHANGES, CHECKPOINTS = "changes.jsonl", "checkpoints"
# In the report: digests of itself, and of the files that it is about.
SEAL = "sha256"
# What may change in the middle of a run, if it is asked for: the optimiser's state, the margin, the
# split and the batches go on as they are.
CHANGEABLE = {
    *("epochs", "learning_rate", "schedule", "margin_end"),
    *("reduction", "mining", "augment", "microbatch", "data_dir", "strict"),
}


@dataclass(frozen=True)
class Run:
    """A trained encoder with all that was measured on the way.

    Attributes:
        path: the run folder.
        config: what was run.
        history: one record an epoch, as in ``history.jsonl``.
        report: as in ``report.json``; the test figures are under "test".
        data: as in ``data.json``.
        encoder: the network and the normalisation of its examples, as pure functions.
        params, batch_stats: the weights of the best epoch.
    """

    path: Path
    config: TrainConfig
    history: list[dict[str, Any]] = field(repr=False)
    report: dict[str, Any] = field(repr=False)
    data: dict[str, Any] = field(repr=False)
    encoder: Encoder = field(repr=False)
    params: chex.ArrayTree = field(repr=False)
    batch_stats: chex.ArrayTree = field(repr=False)

    @property
    def threshold(self) -> float:
        """The distance up to which two examples count as the same, chosen on validation."""
        return float(self.report["test"]["threshold"])

    @property
    def embeds_pictures(self) -> bool:
        """Whether it was trained on pictures, uint8, and no floats."""
        return bool(self.data["example_dtype"] == "uint8")

    def embed(self, examples: Examples, rows: np.ndarray | None = None) -> np.ndarray:
        """float32[n, embedding_size]: embeddings, L2-normalised but by a network of your own.

        Args:
            examples: such as the run was trained on: pictures, uint8[n, height, width, channels],
                of its size and channels, or float[n, ...] of its shape, and of any float dtype.
            rows: int[rows], which of them, at least one. Default: all.

        Raises:
            TypeError: examples that are no uint8, or no floats, as those of the run are.
            ValueError: examples of another shape or that are not finite, or rows that are not
                among them.
        """
        if not isinstance(examples, StreamedImages):
            examples = np.asarray(examples)
        expected = tuple(self.data["example_shape"])
        if self.embeds_pictures and examples.dtype != np.uint8:
            raise TypeError(f"pictures must be uint8, 0 to 255; got {examples.dtype}")
        if not self.embeds_pictures and not jnp.issubdtype(examples.dtype, jnp.floating):
            raise TypeError(f"examples must be floats, as the run's are; got {examples.dtype}")
        if examples.shape[1:] != expected or len(examples) == 0:
            raise ValueError(f"examples must have shape (n, *{expected}); got {examples.shape}")
        rows = np.arange(len(examples)) if rows is None else np.asarray(rows)
        known = rows.dtype.kind in "iu" and rows.ndim == 1 and len(rows) > 0
        if not (known and np.min(rows) >= 0 and np.max(rows) < len(examples)):
            raise ValueError(f"rows must be integers from 0 to {len(examples) - 1}; got {rows}")
        return embed_examples(self.encoder.apply, self.params, self.batch_stats, examples, rows)

    def distances(self, examples: Examples, pairs: np.ndarray) -> np.ndarray:
        """float32[pairs]: distances between the embeddings of pairs of examples.

        Args:
            examples: as in :meth:`embed`.
            pairs: int[pairs, 2], indices of `examples`; only what they name is embedded.

        Raises:
            TypeError, ValueError: as :meth:`embed`, and pairs of another shape.
        """
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must have shape (pairs, 2); got {pairs.shape}")
        rows, places = np.unique(pairs, return_inverse=True)
        return pair_distances(
            self.embed(examples, rows), places.reshape(-1, 2), self.config.distance
        )

    def verify(self, distances: np.ndarray, same: np.ndarray) -> VerificationReport:
        """The figures of pairs whose distances are known, at the run's own threshold.

        Args:
            distances: float[pairs], as from :meth:`distances`.
            same: bool[pairs].
        """
        return verification_report(distances, same, threshold=self.threshold)

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it: the figures that the command line prints."""
        test = self.report["test"]
        return "\n\n".join(
            [
                training_line(self.report, self.history),
                table(report_rows(test)),
                *(f"note: {warning}" for warning in test["warnings"]),
                f"threshold {self.threshold:.4f}, chosen on validation; run folder `{self.path}`",
            ]
        )


def load_run(path: str | Path, *, encoder: Encoder | None = None) -> Run:
    """The run in a folder, with its best weights.

    Args:
        path: the run folder.
        encoder: your own network, if it was trained with ``TrainConfig(encoder="own")``.

    Raises:
        ValueError: if there is no finished run of this version, or it is damaged.
    """
    folder = local_path("run", path)
    if not (folder / REPORT).is_file():
        raise ValueError(f"no finished run in {folder}: there is no {REPORT}")
    check_devices()
    try:
        config = read_config(folder)
        report = read_report(folder)
        for name in (CONFIG, DATA):
            check_sealed(folder, name)
        data = read_json(folder / DATA)
        history = read_history(folder)
        example_shape = tuple(data["example_shape"])
        reported = report["epochs"], report["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the run in {folder} is damaged: {error}") from error
    encoder = get_encoder(config, encoder)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), example_shape))
    if not is_saved(folder):
        raise ValueError(f"the run in {folder} is damaged: nothing is saved in {CHECKPOINTS}")
    with Checkpoint(folder / CHECKPOINTS, read_only=True) as checkpoint:
        arrays, record = checkpoint.restore({"best": like})
    trained = record["history"]
    saved = len(trained), best_epoch(trained, config.select) if trained else 0
    if saved != reported or record["part"]["steps"]:
        raise ValueError(
            f"the run in {folder} is not finished: its report is about epoch {reported[1]} of "
            f"{reported[0]}, its checkpoint holds epoch {saved[1]} of {saved[0]}; resume it"
        )
    if to_json(trained) != to_json(history):
        raise ValueError(f"the run in {folder} is damaged: {HISTORY} is not what was written")
    params, batch_stats = arrays["best"]
    return Run(folder, config, history, report, data, encoder, params, batch_stats)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the run in a folder, as it was written.

    Raises:
        ValueError: if it is another one.
    """
    sealed = read_json(folder / REPORT)
    try:
        report = {name: value for name, value in sealed.items() if name != SEAL}
        whole = sealed[SEAL][REPORT] == sha256(to_json(report).encode())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{REPORT} is not what was written")
    return report


def check_sealed(folder: Path, name: str) -> None:
    """Whether a file is still the one that the report is about.

    Raises:
        ValueError: if it is another one.
        OSError: if there is none.
    """
    if read_json(folder / REPORT)[SEAL].get(name) != _digest(folder, name):
        raise ValueError(f"{name} is not the one that {REPORT} is about")


def _digest(folder: Path, name: str) -> str:
    """Of a file; of the configuration without what may change in the middle of a run."""
    content = (folder / name).read_bytes()
    if name == CONFIG:
        values = read_json(folder / name).items()
        lasting = {name: value for name, value in values if name not in CHANGEABLE}
        content = to_json(lasting).encode()
    return sha256(content)


def get_encoder(config: TrainConfig, own: Encoder | None) -> Encoder:
    """The encoder of a configuration: by name, or one's own.

    Raises:
        ValueError: an unknown name, or one's own missing or not asked for.
    """
    if (own is not None) != (config.encoder == OWN):
        raise ValueError(
            f"an encoder is given if, and only if, the configuration says encoder {OWN!r}; "
            f"it says {config.encoder!r}"
        )
    if own is not None:
        return own
    name, parameters = config.encoder_parameters()
    return make_encoder(
        name, config.embedding_size, colour=config.begins_with_weights, **parameters
    )


def read_config(folder: Path) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: if it is not one of this version.
    """
    try:
        return TrainConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def check_data(config: TrainConfig) -> None:
    """What can be checked of the data before they are loaded: whether there are any.

    Raises:
        ValueError: if not.
    """
    if config.dataset == "folder" and not Path(str(config.data_dir)).exists():
        raise ValueError(
            f"--data-dir must be a folder of images; there is no folder {config.data_dir}"
        )


@contextlib.contextmanager
def claim(config: TrainConfig) -> Iterator[None]:
    """Keeps the run folder for this process: what is in it then changes by nobody else's hand.

    Raises:
        ValueError: if another process has it, or as :func:`check_folder`.
    """
    check_folder(config)  # nothing is written, not even a lock, where other things lie
    with contextlib.ExitStack() as held:
        held.enter_context(locked(config.folder))
        check_folder(config)  # a run could begin, and end, in between
        yield


def check_folder(config: TrainConfig) -> None:
    """Refuses a run folder that holds something, unless it is a run and what to do is said.

    Raises:
        ValueError: rather than touch anything that is not this run's.
    """
    folder = config.folder
    images = config.data_dir if config.dataset == "folder" else None
    if images is not None and Path(images).resolve() in folder.resolve().parents:
        raise ValueError(f"out must not lie in data_dir, {config.data_dir}; got {folder}")
    if is_vacant(folder):
        return
    if not is_run(folder):
        raise ValueError(f"{folder} is not empty and not a run folder; choose another --out")
    if not (config.resume or config.overwrite):
        raise ValueError(
            f"{folder} holds a run: ask to --resume or to --overwrite it, or choose another --out"
        )
    if config.overwrite:
        check_removable(folder)


def prepare_folder(config: TrainConfig, data: RunData) -> str:
    """Makes an empty run folder with the run's description, or checks the one to resume.

    Returns what changes in the run to resume, because it was asked for, in words.

    Raises:
        ValueError: if the run to resume is another one, or the folder can not be written.
    """
    folder = config.folder
    described = to_json(data.described, indent=2) + "\n"
    described.encode()  # names that are no text fail here, before anything is removed
    check_folder(config)  # once more, for file systems without locks
    if config.resume and (folder / CONFIG).is_file():
        changed = _check_same(config, data.described, folder)
        try:
            _write_pairs(folder, data)  # the same, unless they were damaged: the report seals them
        except OSError as error:
            raise _unwritable(folder, error) from error
        return changed
    try:
        if config.overwrite and is_run(folder):
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / DATA, described)
        _write_pairs(folder, data)
        # Last: a folder with a configuration has all that a run needs to be resumed.
        write_text(folder / CONFIG, config.to_json())
    except OSError as error:
        raise _unwritable(folder, error) from error
    return ""


def _write_pairs(folder: Path, data: RunData) -> None:
    arrays: dict[str, Any] = {"files": np.array(data.dataset.files)}
    for name, pairs in data.pairs.items():
        arrays |= {f"{name}_rows": pairs.rows, f"{name}_same": pairs.same}
    np.savez_compressed(folder / PAIRS, **arrays)


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write the run folder {folder}: {error.strerror}")


def _check_same(config: TrainConfig, described: dict[str, Any], folder: Path) -> str:
    """Refuses to resume what is not the same run; more epochs of it are, if its rule allows.

    Returns what changes all the same, because it was asked for, in words.
    """
    saved = read_config(folder).experiment()
    asked = config.experiment()
    # What is laid out over the whole run can not be made longer.
    laid_out = leaves_open(config.schedule, SCHEDULES, "epochs")
    laid_out |= config.learning_rate_schedule in ("exponential", "warmup_linear")
    if not laid_out and asked["epochs"] > saved["epochs"]:
        saved["epochs"] = asked["epochs"]
    names = {name for name in asked if asked[name] != saved[name]}
    changed = "; ".join(
        f"{name} is {saved[name]}, asked for {asked[name]}" for name in asked if name in names
    )
    trained = len(read_history(folder))
    possible = (
        names <= CHANGEABLE and asked["epochs"] >= saved["epochs"] and trained < asked["epochs"]
    )
    if names and not (config.allow_changes and possible):
        advice = "; --allow-changes goes on all the same" if possible else ""
        raise ValueError(f"cannot resume {folder} as another run: {changed}{advice}")
    if other := differences(folder, described):
        raise ValueError(
            f"cannot resume {folder}: it was started with other examples or another network "
            f"({other})"
        )
    if trained and not is_saved(folder):
        raise ValueError(
            f"cannot resume {folder}: there is nothing in {CHECKPOINTS}; --overwrite begins anew"
        )
    return changed


def differences(folder: Path, described: dict[str, Any]) -> str:
    """In what the examples and the network of a run are not those described; "" for nothing."""
    saved = read_json(folder / DATA)
    # What is said of files that are no images of the run decides nothing.
    names = sorted({*saved, *described} - {"left_out", "notes"})
    other = [name for name in names if saved.get(name) != described.get(name)]
    return f"{DATA} differs in {', '.join(other)}" if other else ""


def best_epoch(history: list[dict[str, Any]], select: str) -> int:
    """The epoch (from 1) that the rule chooses; the first one if several are as good."""

    def worth(record: dict[str, Any]) -> float:
        if select == "auc":
            return float(record["validation_auc"])
        loss = record["validation_loss"]
        return -math.inf if loss is None or math.isnan(loss) else -loss

    return int(max(history, key=worth)["epoch"])


def is_saved(folder: Path) -> bool:
    """Whether a run folder has a checkpoint."""
    # Until it is whole, a save has a longer name.
    return any(path.name.isdigit() for path in (folder / CHECKPOINTS).glob("*"))


def is_vacant(folder: Path) -> bool:
    """Whether there is no folder, or an empty one; a lock, which a kill leaves, is nothing."""
    return not folder.exists() or (folder.is_dir() and not set(os.listdir(folder)) - {LOCK})


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what a kill left of the making of one."""
    names = {path.name.removesuffix(".partial") for path in folder.glob("*")} - {LOCK}
    mine = {DATA, PAIRS, CONFIG}
    if not (mine <= names or (DATA in names and names <= mine)):
        return False
    if not (folder / DATA).exists():
        return True  # it was being written
    try:  # other things have a data.json, too, but none like this
        found = read_json(folder / DATA)
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and {"identities", "coverage"} <= set(found)


def check_removable(folder: Path) -> None:
    """Whether all of a run can be removed: to be asked before any of it is.

    Raises:
        ValueError: if something in it is not what a run leaves there, or may not be removed.
    """
    for name in (FIGURES, CHECKPOINTS):
        path = folder / name
        if path.is_symlink():
            raise ValueError(f"not removing {path}, a link to somewhere else")
        if path.exists() and not path.is_dir():
            raise ValueError(f"not removing {path}, which is no folder")
    for file in _files(folder):
        if file.is_dir() and not file.is_symlink():
            raise ValueError(f"not removing {file}, which is a folder")
    folders = [folder]
    for name in (FIGURES, CHECKPOINTS):
        folders += [Path(path) for path, *_ in os.walk(folder / name)]
    for path in folders:
        if not os.access(path, os.W_OK | os.X_OK):
            raise ValueError(f"not removing the run in {folder}: {path} can not be written to")


def remove(folder: Path) -> None:
    """Removes a run, and nothing else that may be in its folder.

    Raises:
        ValueError: if that is not possible; all of it is there then.
    """
    check_removable(folder)
    for name in (FIGURES, CHECKPOINTS):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Where the files of a run are, with those that a kill leaves half written."""
    names = (REPORT, HISTORY, CHANGES, PAIRS, CONFIG, DATA)
    return [folder / f"{name}{ending}" for name in names for ending in ("", ".partial")]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records so far; a last line that a killed process left unfinished does not count."""
    path = folder / HISTORY
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    try:
        records = [parse_json(line) for line in lines]
        epochs = [record["epoch"] for record in records]
        plain = all(
            isinstance(value, int | float | None)
            for record in records
            for name, value in record.items()
            if name not in ("effective_quantiles", "memory")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not plain:
        raise ValueError(f"{path} is damaged: a figure is no number")
    if epochs != list(range(1, len(epochs) + 1)):
        raise ValueError(f"{path} is damaged: its epochs are {epochs}")
    return records


def write_progress(config: TrainConfig, history: list[dict[str, Any]], changed: str = "") -> None:
    """Makes a run folder tell what its checkpoint does, and what changes, before it is trained."""
    if changed:
        append_line(config.folder / CHANGES, {"whole_epochs": len(history), "changed": changed})
    if len(history) < config.epochs:  # a report would be about other weights
        (config.folder / REPORT).unlink(missing_ok=True)
    write_text(config.folder / HISTORY, "".join(to_json(record) + "\n" for record in history))
    write_text(config.folder / CONFIG, config.to_json())  # perhaps of more epochs


def write_report(folder: Path, report: dict[str, Any], pictures: dict[str, Any]) -> None:
    """Writes the pictures, and last the report, which a finished run has."""
    try:
        (folder / FIGURES).mkdir(exist_ok=True)
        for name, picture in pictures.items():
            picture.savefig(folder / FIGURES / f"{name}.png")
        seal = {name: _digest(folder, name) for name in (CONFIG, DATA, PAIRS)}
        seal[REPORT] = sha256(to_json(report).encode())
        write_text(folder / REPORT, to_json({**report, SEAL: seal}, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"can not write the report in {folder}: {error.strerror}") from error
