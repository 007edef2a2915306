"""Rows that are not held: picked, in one of several versions, or named, when they are asked for."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np


class PickedRows:
    """Some rows of an array that is mapped from a file, like an array; nothing is copied before.

    Args:
        array: the whole.
        rows: int[n], which of its rows.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array = array
        self.rows = rows
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        picked: np.ndarray = self.array[self.rows[index]]
        return picked

    def only(self, index: np.ndarray) -> "PickedRows":
        """Some of them."""
        return PickedRows(self.array, self.rows[index])


class Versions:
    """float[n · (1 + v), ...] like an array: all versions of each example, the example first.

    Args:
        examples: float[n, ...], an array or rows of one.
        views: float[n, v, ...], likewise.
    """

    def __init__(self, examples: Any, views: np.ndarray | PickedRows) -> None:
        self.examples = examples
        self.views = views
        self.count: int = 1 + views.shape[1]
        self.shape = (len(examples) * self.count, *examples.shape[1:])
        self.dtype = np.result_type(examples.dtype, views.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        rows, version = np.divmod(index, self.count)
        found: np.ndarray = self.examples[rows].astype(self.dtype)
        other = np.flatnonzero(version)
        of, array = rows[other], self.views
        if isinstance(array, PickedRows):
            of, array = array.rows[of], array.array
        found[other] = array[of, version[other] - 1]
        return found


def is_mapped(array: np.ndarray) -> bool:
    """Whether its values lie in a file, from which they are read when they are asked for."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


class RowNames(Sequence[str]):
    """Names of rows, each made when it is asked for: ten million texts would be a gigabyte.

    Args:
        name: the name of a row of the file.
        rows: int[n] or a range, the rows.
    """

    def __init__(self, name: Callable[[int], str], rows: np.ndarray | range) -> None:
        self.name = name
        self.rows = rows

    @property
    def are_numbers(self) -> bool:
        """Whether no row has a name but its number."""
        return self.name is str

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "RowNames": ...
    def __getitem__(self, index: int | slice) -> "str | RowNames":
        if isinstance(index, slice):
            return RowNames(self.name, self.rows[index])
        return self.name(int(self.rows[index]))

    def __iter__(self) -> Iterator[str]:
        return map(self.name, map(int, self.rows))

    def only(self, index: np.ndarray) -> "RowNames":
        """The names of some of them."""
        return RowNames(self.name, np.asarray(self.rows)[index])


def find_rows(files: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Which row each of some names is; those that no row has are left out.

    Raises:
        ValueError: for a name that two rows have.
    """
    wanted, found = set(names), dict[str, int]()
    for row, name in enumerate(files):
        if name in wanted:
            if name in found:
                raise ValueError(f"{name!r} is the name of two rows, {found[name]} and {row}")
            found[name] = row
    return found
