"""Cells on disk: one JSON-lines file a data set and a reduction, one cell a line, sorted.

`results/cells/omniglot_mean.jsonl` holds those of the grid, `results/gradient/omniglot_mean.jsonl`
those of `gradient.py`. Files are written in one step, even if a process is killed, and several
processes can add to one.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from margin_jax.config.option import as_file_name
from margin_jax.files import to_json, write_text

# What a cell is known by in its file: what was changed, the schedule and the seed, by their names.
Key = tuple[str, str]


def path_of(folder: Path, name: str, reduction: str) -> Path:
    """The file of a data set and a reduction."""
    return folder / f"{name}_{reduction}.jsonl"


def key(schedule: str, seed: int, variation: str = "") -> Key:
    """Of a cell; `variation` is what is changed against the grid, if anything is."""
    return variation, f"{as_file_name(schedule)}-seed{seed}"


def key_of(cell: dict) -> Key:
    """Of a cell that is there."""
    return key(cell["schedule"], cell["seed"], cell.get("variation", ""))


def read(path: Path) -> dict[Key, dict]:
    """The cells of a file, sorted; none if there is no file.

    Raises:
        ValueError: if a line is no cell, or a cell is there twice.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        cells = [json.loads(line) for line in text.split("\n") if line]
        by_key = {key_of(cell): cell for cell in cells}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if len(by_key) < len(cells):
        raise ValueError(f"{path} is damaged: it has a cell twice")
    return dict(sorted(by_key.items()))


def read_all(folder: Path) -> list[dict[Key, dict]]:
    """Those of every file of a folder, by the names of the files."""
    return [read(path) for path in sorted(folder.glob("*.jsonl"))]


def add(path: Path, *cells: dict) -> None:
    """Adds cells to a file; one of the same key is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        every = read(path) | {key_of(cell): cell for cell in cells}
        write_text(path, "".join(f"{to_json(cell)}\n" for _, cell in sorted(every.items())))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Other processes wait until this one has written; the system ends the wait if it dies."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
