"""A dataset: examples (images or other arrays) with the identity of each."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from margin_jax.choices import OWN
from margin_jax.data.images import StreamedImages
from margin_jax.data.rows import PickedRows, RowNames, Versions, is_mapped

# Held in memory, mapped from a file, or decoded when rows are asked for.
Examples: TypeAlias = np.ndarray | StreamedImages | PickedRows


def remarks(left_out: Sequence[str], notes: Sequence[str]) -> tuple[str, ...]:
    """What a person should know of how files were read, a line each; often nothing."""
    if not left_out:
        return tuple(notes)
    return (f"{len(left_out):,} file(s) or folder(s) left out; first {left_out[0]}", *notes)


@dataclass(frozen=True)
class Dataset:
    """Examples with the identity of each.

    Attributes:
        examples: images, uint8[n, height, width, channels], channels 1 (grey) or 3 (RGB); or other
            data as floats, float[n, ..., features], such as vectors or spectra. An array, in memory
            or mapped from a file; or, for images that are not kept in memory, an object that
            decodes rows when they are needed.
        labels: int32[n], an index into `identities`.
        identities: their names, in order.
        files: the source of each example, as text.
        groups: int32[identities]; identities of one group stay in the same part of a split, and
            pairs of different identities of one group are the hard pairs.
        skipped: "file: reason" for each image that could not be read.
        left_out: "file: reason" for other files and folders, such as notes or hidden files.
        notes: remarks on how images were read, as text.
        views: float[n, v, ...], augmented versions of each example, used only in training.
        parts: int8[n], the part of the split that the source gives for each example: 0 for "train",
            1 for "validation", 2 for "test".
        source: the name that it was loaded by; "own" otherwise.
    """

    examples: Examples
    labels: np.ndarray
    identities: tuple[str, ...]
    files: Sequence[str]
    groups: np.ndarray
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    views: np.ndarray | PickedRows | None = None
    parts: np.ndarray | None = None
    source: str = OWN

    @classmethod
    def from_arrays(cls, examples: np.ndarray, labels: np.ndarray) -> "Dataset":
        """A dataset of your own examples.

        Args:
            examples: images, uint8[n, height, width, channels], channels 1 (grey) or 3 (RGB). Image
                files are always read as squares, so a run on other shapes can embed arrays, but not
                files. Or float[n, ..., features] of any float dtype, which is computed in float32.
                The array may be mapped from a file, as by ``np.load(path, mmap_mode="r")``: rows
                are then read when they are needed.
            labels: [n], the identity of each example, as numbers or text.

        Raises:
            ValueError: for other shapes.
            TypeError: for examples that are neither uint8 nor floats.

        Example:
            >>> import numpy as np, margin_jax as mj
            >>> images = np.zeros((4, 8, 8, 1), np.uint8)
            >>> mine = mj.Dataset.from_arrays(images, np.array(["bo", "bo", "al", "al"]))
            >>> mine.identities, mine.labels.tolist()
            (('al', 'bo'), [1, 1, 0, 0])
        """
        examples, labels = np.asarray(examples), np.asarray(labels)
        if examples.dtype == np.uint8:
            if examples.ndim != 4 or examples.shape[-1] not in (1, 3):
                raise ValueError(
                    "pictures, uint8, must have shape [n, height, width, 1 or 3], and other "
                    f"examples be floats; got uint8 of shape {examples.shape}"
                )
        elif not jnp.issubdtype(examples.dtype, jnp.floating):
            raise TypeError(
                f"examples must be uint8, as pictures are, or floats; got {examples.dtype}"
            )
        elif examples.ndim < 2:
            raise ValueError(f"examples must have shape [n, ..., features]; got {examples.shape}")
        if 0 in examples.shape:
            raise ValueError(f"examples must not be empty; got shape {examples.shape}")
        if labels.shape != examples.shape[:1]:
            raise ValueError(f"labels must have shape {examples.shape[:1]}; got {labels.shape}")
        if labels.dtype.kind not in "iufbUST" or (
            labels.dtype.kind == "f" and np.isnan(labels).any()
        ):
            got = "NaN" if labels.dtype.kind == "f" else f"values of type {labels.dtype}"
            raise ValueError(f"labels must be numbers or text, one for each example; got {got}")
        names, dense = np.unique(labels, return_inverse=True)
        return cls(
            examples=examples,
            labels=dense.astype(np.int32),
            identities=tuple(
                v.decode(errors="backslashreplace") if isinstance(v, bytes) else str(v)
                for v in names
            ),
            files=RowNames("example {}".format, range(len(examples))),
            groups=np.arange(len(names), dtype=np.int32),
        )

    @property
    def pictures(self) -> bool:
        """Whether the examples are images (uint8) rather than floats."""
        return self.examples.dtype == np.uint8

    def digest(self) -> str:
        """SHA-256 of the labels and of 256 evenly spaced examples, to tell datasets apart.

        It is fast, and does not depend on whether the examples are in memory.
        """
        some = np.linspace(0, len(self.labels) - 1, min(len(self.labels), 256)).astype(int)
        found = hashlib.sha256(np.ascontiguousarray(self.labels).data)
        found.update(self.examples[some].tobytes())
        if self.views is not None:
            found.update(self.views[some].tobytes())
        return found.hexdigest()

    def first(self, identities: int) -> "Dataset":
        """Only the first `identities` identities."""
        rows = np.flatnonzero(self.labels < identities)
        return dataclasses.replace(
            self,
            examples=_pick(self.examples, rows),
            labels=self.labels[rows],
            identities=self.identities[:identities],
            files=self.files.only(rows)
            if isinstance(self.files, RowNames)
            else tuple(self.files[row] for row in rows.tolist()),
            groups=self.groups[:identities],
            views=None if self.views is None else _pick(self.views, rows),
            parts=None if self.parts is None else self.parts[rows],
        )


def _pick(examples: Any, rows: np.ndarray) -> Any:
    """Some examples; what is mapped from a file stays there."""
    if not isinstance(examples, np.ndarray):
        return examples.only(rows)
    return PickedRows(examples, rows) if is_mapped(examples) else examples[rows]


def read_rows(examples: Examples | Versions, rows: np.ndarray) -> np.ndarray:
    """Some examples as they are computed with: floats as float32[rows, ...], pictures as uint8.

    Raises:
        ValueError: for a value that is not finite in float32, naming the first such row of `rows`.
    """
    found: np.ndarray = examples[rows]
    if not jnp.issubdtype(found.dtype, jnp.floating):
        return found
    with np.errstate(over="ignore"):
        found = found.astype(np.float32, copy=False)
    finite = np.isfinite(found).all(axis=tuple(range(1, found.ndim)))
    if not finite.all():
        row = rows[np.argmin(finite)]
        raise ValueError(f"examples must be finite numbers of float32; example {row} is not")
    return found
