"""Whose a run folder is, and what of it may be removed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from margin_jax.config import TrainConfig
from margin_jax.data import PLACES
from margin_jax.lock import locked
from margin_jax.runs.folder import (
    CHANGES,
    CHECKPOINTS,
    CONFIG,
    DATA,
    FIGURES,
    HISTORY,
    PAIRS,
    REPORT,
    TENSORBOARD,
    is_run,
    is_vacant,
)

_FOLDERS = (FIGURES, CHECKPOINTS, TENSORBOARD)


def check_data(config: TrainConfig) -> None:
    """What can be checked of the data before they are loaded: whether there are any.

    Raises:
        ValueError: if not.
    """
    if config.dataset in PLACES and not Path(str(config.data_dir)).exists():
        kind = "folder" if config.dataset == "folder" else "file"
        must = PLACES[config.dataset].replace("the ", "a ", 1)
        raise ValueError(f"--data-dir must be {must}; there is no {kind} {config.data_dir}")


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
        if config.overwrite and is_run(config.folder):
            check_removable(config.folder)  # now that nobody writes there
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
    if not folder.is_dir():
        raise ValueError(f"out must be a folder; {folder} is a file")
    if not is_run(folder):
        raise ValueError(f"{folder} is not empty and not a run folder; choose another --out")
    if not (config.resume or config.overwrite):
        raise ValueError(
            f"{folder} holds a run: add --resume or --overwrite, or choose another --out"
        )


def check_removable(folder: Path) -> None:
    """Whether all of a run can be removed: to be asked before any of it is.

    Raises:
        ValueError: if something in it is not what a run leaves there, or may not be removed.
    """
    for name in _FOLDERS:
        path = folder / name
        if path.is_symlink():
            raise ValueError(f"not removing {path}, a link to somewhere else")
        if path.exists() and not path.is_dir():
            raise ValueError(f"not removing {path}, which is not a folder")
    for file in _files(folder):
        if file.is_dir() and not file.is_symlink():
            raise ValueError(f"not removing {file}, which is a folder")
    folders = [folder]
    for name in _FOLDERS:
        folders += [Path(path) for path, *_ in os.walk(folder / name)]
    for path in folders:
        if not os.access(path, os.W_OK | os.X_OK):
            raise ValueError(f"not removing the run in {folder}: {path} cannot be written to")


def remove(folder: Path) -> None:
    """Removes a run, and nothing else that may be in its folder.

    Raises:
        ValueError: if that is not possible; all of it is there then.
    """
    check_removable(folder)
    for name in _FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Where the files of a run are, with those that a kill leaves half written."""
    names = (REPORT, HISTORY, CHANGES, PAIRS, CONFIG, DATA)
    return [folder / f"{name}{ending}" for name in names for ending in ("", ".partial")]
