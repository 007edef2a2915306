"""A run folder: what lies in it, and how that is read and written.

::

    config.json    what was run: enough to repeat it
    data.json      identities of each part of the split, coverage, skipped files
    pairs.npz      the verification pairs
    history.jsonl  one record an epoch
    checkpoints/   by step, the newest: where the training is, and the weights of the best epoch
    changes.jsonl  options that were changed on the way, if any were
    report.json    figures on the test identities, under "test"
    figures/       pictures of all that
    tensorboard/   the same for TensorBoard, if it was asked for
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from margin_jax.config import TrainConfig
from margin_jax.data.rows import RowNames
from margin_jax.files import (
    parse_json,
    read_json,
    sha256,
    to_json,
    write_npz,
    write_text,
    writing,
)
from margin_jax.lock import LOCK
from margin_jax.runs.run_data import RunData

CONFIG, DATA, PAIRS = "config.json", "data.json", "pairs.npz"
HISTORY, REPORT, FIGURES = "history.jsonl", "report.json", "figures"
CHANGES, CHECKPOINTS, TENSORBOARD = "changes.jsonl", "checkpoints", "tensorboard"
# In the report: digests of itself, and of the files that it is about.
SEAL = "sha256"
# What may change in the middle of a run, if it is asked for: the optimiser's state, the margin, the
# split and the batches go on as they are.
CHANGEABLE = {
    *("epochs", "patience", "learning_rate", "schedule", "margin_end"),
    *("reduction", "mining", "augment", "microbatch", "data_dir", "strict"),
}


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
        raise ValueError(f"{name} does not belong to {REPORT}")


def _digest(folder: Path, name: str) -> str:
    """Of a file; of the configuration without what may change in the middle of a run."""
    content = (folder / name).read_bytes()
    if name == CONFIG:
        values = read_json(folder / name).items()
        lasting = {name: value for name, value in values if name not in CHANGEABLE}
        content = to_json(lasting).encode()
    return sha256(content)


def read_config(folder: Path) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: if it is not one of this version.
    """
    try:
        return TrainConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def write_pairs(folder: Path, data: RunData) -> None:
    """Writes the verification pairs, and what the rows in them are."""
    arrays: dict[str, Any] = {}
    if not isinstance(data.dataset.files, RowNames):  # which may be ten million
        arrays["files"] = np.array(data.dataset.files)
    for name, pairs in data.pairs.items():
        arrays |= {f"{name}_rows": pairs.rows, f"{name}_same": pairs.same}
    with writing(folder / PAIRS) as file:
        write_npz(file, **arrays)


def unwritable(folder: Path, error: OSError) -> ValueError:
    """What is said of a folder that cannot be written."""
    return ValueError(f"cannot write the run folder {folder}: {error.strerror}")


def is_saved(folder: Path) -> bool:
    """Whether a run folder has a checkpoint."""
    # Until it is whole, a save has a longer name.
    return any(path.name.isdigit() and path.is_dir() for path in (folder / CHECKPOINTS).glob("*"))


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
        raise ValueError(f"{path} is damaged: a value is not a number")
    if epochs != list(range(1, len(epochs) + 1)):
        raise ValueError(f"{path} is damaged: its epochs are {epochs}")
    return records


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
        raise OSError(f"cannot write the report in {folder}: {error.strerror}") from error
