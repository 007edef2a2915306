"""A large npz file that grows by rows, and whose making can be killed at any moment.

Rows are appended to plain files in the folder ``OUT.partial``, with a record of whose they are; of
all of them the npz file is made in one go, and takes its name when it is whole. It is not
compressed, so that its arrays can be mapped into memory.
"""

import contextlib
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from margin_jax.files import check_file, local_path, read_json, to_json, write_text
from margin_jax.lock import LOCK, locked

_JOB, _WHOLE, _ROWS = "job.json", "whole.npz", ".rows"
_BLOCK = 2**16  # rows, or bytes, that are copied at a time


def check_vacant(out: str | Path, overwrite: bool) -> Path:
    """The path of the file, if it can be written there.

    Raises:
        ValueError: if not, or if there is a file already that is not to be replaced.
    """
    target = local_path("out", out)
    check_file("out", target)
    if target.suffix != ".npz":
        raise ValueError(f"out must end in .npz; got {target}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: add --overwrite, or choose another --out")
    return target


class Growing:
    """Arrays by name, of one length, that are written row by row.

    Attributes:
        done: how many rows are whole in all of them.
    """

    def __init__(self, folder: Path, like: Mapping[str, np.ndarray]) -> None:
        """Goes on with the rows that `folder` has; `like` are some rows, of the arrays' kind."""
        self._files = {name: folder / (name + _ROWS) for name in like}
        self._kinds = {name: (rows.dtype, rows.shape[1:]) for name, rows in like.items()}
        for path in self._files.values():
            path.touch()
        sizes = {name: rows[:1].nbytes for name, rows in like.items()}
        self.done = min(path.stat().st_size // sizes[name] for name, path in self._files.items())
        for name, path in self._files.items():  # what a kill has left half written
            os.truncate(path, self.done * sizes[name])

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Writes some rows of all arrays.

        Raises:
            OSError: with the name of the file, if the disk is full, say.
        """
        for name, path in self._files.items():
            with _told(path), open(path, "ab") as file:
                file.write(np.ascontiguousarray(rows[name]).data)
        self.done += len(rows[name])

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The first so many rows."""
        found = {}
        for name, (dtype, shape) in self._kinds.items():
            values = np.fromfile(self._files[name], dtype, count * int(np.prod(shape)))
            found[name] = values.reshape(-1, *shape)
        return found

    def stored(self) -> "dict[str, Stored]":
        """All that is written."""
        return {
            name: Stored(dtype, (self.done, *shape), _blocks(self._files[name]))
            for name, (dtype, shape) in self._kinds.items()
        }


class Stored(NamedTuple):
    """An array as bytes, in the order of C."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Iterable[bytes]


def stored(values: np.ndarray) -> Stored:
    """An array that is at hand."""
    return Stored(values.dtype, values.shape, [values.tobytes()])


def text(values: Sequence[str], rows: np.ndarray | None = None) -> Stored:
    """Texts as an array, or those that `rows` names."""
    dtype = np.dtype(f"<U{max(1, *map(len, values))}")
    if rows is not None:
        table = np.array(values, dtype)
        starts = range(0, len(rows), _BLOCK)
        parts = (table[rows[start : start + _BLOCK]] for start in starts)
        return Stored(dtype, rows.shape, (part.tobytes() for part in parts))
    left = iter(values)
    lists = iter(lambda: list(itertools.islice(left, _BLOCK)), [])
    return Stored(dtype, (len(values),), (np.array(some, dtype).tobytes() for some in lists))


@contextlib.contextmanager
def unfinished(target: Path, job: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """The folder in which a file is made, for this process alone.

    Args:
        target: the file.
        job: what it is made of and how, in JSON: by it one is known when it goes on.
        overwrite: begin anew where another job has begun.

    Raises:
        ValueError: if another process is at it; if the folder is of another job, or of none.
    """
    folder = target.with_name(target.name + ".partial")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and would be the folder of what is unfinished")
    with locked(folder):
        check_vacant(target, overwrite)  # who had it could have finished
        _begin(folder, job, overwrite)
        yield folder
    with contextlib.suppress(OSError):  # of what goes on later, it is not empty
        folder.rmdir()


def _begin(folder: Path, job: Mapping[str, Any], overwrite: bool) -> None:
    nothing = {LOCK, f"{_JOB}.partial"}  # a full disk leaves that
    present = [path for path in folder.iterdir() if path.name not in nothing]
    if (folder / _JOB).is_file():
        try:
            earlier = read_json(folder / _JOB)
        except ValueError as error:
            raise ValueError(f"{folder} is damaged: {error}; remove it") from None
        if earlier == job:
            return
        if not overwrite:
            names = [*job, *earlier]
            name = next(n for n in names if earlier.get(n) != job.get(n))
            raise ValueError(
                f"{folder} is of another job, whose {name} is {earlier.get(name)!r} and not "
                f"{job.get(name)!r}: add --overwrite, or choose another --out"
            )
        _remove(folder)
    elif present:
        raise ValueError(f"{folder} is not empty and of no job; choose another --out")
    write_text(folder / _JOB, to_json(job, indent=2) + "\n")


def finish(folder: Path, target: Path, arrays: Mapping[str, Stored]) -> None:
    """Makes the file, whole or not at all, and removes what it was made of.

    Raises:
        OSError: as :meth:`Growing.append`.
    """
    whole = folder / _WHOLE
    with _told(whole), zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, (dtype, shape, blocks) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                kind = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(member, {**kind, "shape": shape})
                for block in blocks:
                    member.write(block)
    os.replace(whole, target)
    _remove(folder)


def _remove(folder: Path) -> None:
    for path in [*folder.glob("*" + _ROWS), folder / _WHOLE]:
        path.unlink(missing_ok=True)
    (folder / _JOB).unlink()  # last, as it says whose the folder is


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror}; what is done is kept, the same call goes on"
        ) from error


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK * 64):
            yield block
