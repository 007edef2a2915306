"""Vectors with an identity each, from one file: features of pictures, voices or sentences."""

import itertools
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from margin_jax.data.columns import Columns, Numbered, groups_of, number, parts_of, some
from margin_jax.data.dataset import Dataset
from margin_jax.data.npz import read_npz
from margin_jax.data.rows import RowNames
from margin_jax.data.tables import read_table

KINDS = (".npz", ".npy", ".parquet", ".csv", ".tsv")
_ARRAYS = ("features", "labels", "files", "groups", "splits", "views")
_RECORD = "about"  # how they were made, for a person
_CHUNK = 2**18  # labels that are numbered together


def load(path: Path) -> Dataset:
    """Loads vectors from a file; its ending gives the format.

    - ``.npz``: arrays ``features`` float16, float32 or float64 [n, d]; ``labels`` [n], the identity
      of each row, text or whole numbers; and optionally ``files`` text [n], a name for each row;
      ``groups`` text or whole numbers [n], the group of each row's identity; ``splits`` text [n],
      train, validation or test for each row's identity; ``views`` float [n, v, d], features of
      augmented versions, used only in training. Arrays written by ``np.savez`` are mapped: rows are
      read when they are needed.
    - ``.npy``: the features, mapped, with one label per line in ``NAME.labels.txt`` next to
      ``NAME.npy``.
    - ``.parquet``, ``.csv``, ``.tsv``: see :func:`~margin_jax.data.tables.read_table`.

    Rows are named by ``files``, or else by their number, counted from 0.

    Raises:
        ValueError: for a file of another kind, or with other contents.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"data_dir must be a file of vectors; {path}: {error.strerror}") from error
    ending = path.suffix.lower()
    if not stat.S_ISREG(mode) or ending not in KINDS:
        raise ValueError(f"data_dir must be a file of vectors, {', '.join(KINDS)}; got {path}")
    columns = {".npz": _npz, ".npy": _npy}.get(ending, read_table)(path)
    features, views, labels = columns.features, columns.views, columns.labels
    if len(labels.values) < 2:
        raise ValueError(f"expected at least two identities in {path}; got {len(labels.values)}")
    return Dataset(
        examples=features,
        labels=labels.rows,
        identities=labels.names,
        files=RowNames(columns.files or str, range(len(features))),
        groups=groups_of(labels, columns.groups),
        notes=columns.notes,
        views=views,
        parts=parts_of(columns.parts),
    )


def _npz(path: Path) -> Columns:
    found, unused = read_npz(path, _ARRAYS)
    unused = [name for name in unused if name != _RECORD]
    if missing := [name for name in _ARRAYS[:2] if name not in found]:
        raise ValueError(
            f"{path} must hold arrays features and labels; {missing[0]} is missing, got "
            f"{some([*found, *unused])}"
        )
    features = _checked(path, "features", found["features"], 2)
    for name in ("labels", "files", "groups", "splits"):
        if name in found:
            _check_column(path, name, found[name], len(features))
    views = found.get("views")
    if views is not None:
        views = _checked(path, "views", views, 3)
        shape = len(features), features.shape[1]
        if (len(views), views.shape[2]) != shape:
            raise ValueError(
                f"views of {path} must have shape ({shape[0]}, v, {shape[1]}); got {views.shape}"
            )

    def numbered(name: str) -> Numbered | None:
        return number(name, _chunks(found[name])) if name in found else None

    return Columns(
        features,
        number("labels", _chunks(found["labels"])),
        _namer(found["files"]) if "files" in found else None,
        numbered("groups"),
        numbered("splits"),
        views,
        (f"arrays that are not used: {some(unused)}",) if unused else (),
    )


def _npy(path: Path) -> Columns:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(mapped, np.ndarray):
        raise ValueError(f"cannot read {path}: it is an .npz file")
    features = _checked(path, "features", np.asarray(mapped), 2)
    beside = path.with_suffix(".labels.txt")
    try:
        with open(beside, encoding="utf-8-sig") as lines:
            texts = (line.rstrip("\n") for line in lines)
            labels = number(f"labels of {beside}", map(np.array, _batched(texts)))
    except OSError as error:
        raise ValueError(
            f"{path} needs its labels in {beside.name} beside it, one a line; {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"labels of {beside} must be text in UTF-8: {error}") from error
    if len(labels.rows) != len(features):
        raise ValueError(
            f"{beside} must have a line for each of {len(features):,} rows; got "
            f"{len(labels.rows):,}"
        )
    return Columns(features, labels)


def _batched(texts: Iterator[str]) -> Iterator[list[str]]:
    while some := list(itertools.islice(texts, _CHUNK)):
        yield some


def _checked(path: Path, name: str, array: np.ndarray, ndim: int) -> np.ndarray:
    """The array, if it is one of float16, float32 or float64 with as many dimensions."""
    shape = "[rows, numbers]" if ndim == 2 else "[rows, versions, numbers]"
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise ValueError(f"{name} of {path} must be float16, float32 or float64; got {array.dtype}")
    if array.ndim != ndim or 0 in array.shape:
        raise ValueError(
            f"{name} of {path} must have shape {shape} and not be empty; got {array.shape}"
        )
    return array


def _check_column(path: Path, name: str, array: np.ndarray, rows: int) -> None:
    kinds = {"files": "US", "splits": "US"}.get(name, "iuUS")
    if array.dtype.kind not in kinds:
        what = "text or whole numbers" if "i" in kinds else "text"
        raise ValueError(f"{name} of {path} must be {what}; got {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"{name} of {path} must have shape ({rows},); got {array.shape}")


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))


def _namer(files: np.ndarray) -> Callable[[int], str]:
    def name(row: int) -> str:
        found = files[row]
        return found.decode(errors="backslashreplace") if files.dtype.kind == "S" else str(found)

    return name
