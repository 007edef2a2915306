"""What a file says of each row, a column at a time: identities, groups, parts of the split."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from margin_jax.choices import check_choice

# What a column of parts may say, as an index into those of a split.
PARTS = {"train": 0, "validation": 1, "val": 1, "test": 2}


class Numbered(NamedTuple):
    """A value for each row.

    Attributes:
        rows: int32[n], an index into `values`.
        values: those there are, sorted, each once.
    """

    rows: np.ndarray
    values: list[Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The values as text."""
        return tuple(map(str, self.values))


class Columns(NamedTuple):
    """What a file of examples holds.

    Attributes:
        features: float[n, d].
        labels: what names the identity of each row.
        files: the name of a row, if the file has names.
        groups, parts: of each row, if the file says it.
        views: float[n, v, d], likewise.
        notes: for a person, a line each.
    """

    features: np.ndarray
    labels: Numbered
    files: Callable[[int], str] | None = None
    groups: Numbered | None = None
    parts: Numbered | None = None
    views: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def number(what: str, chunks: Iterable[np.ndarray]) -> Numbered:
    """Numbers a column of text or whole numbers; of ten million texts only one chunk is held.

    Args:
        what: is named when something is wrong.
        chunks: one after another, of whole numbers, text, bytes of UTF-8, or objects that are str.

    Raises:
        ValueError: for an empty text, with the first row that has it, and bytes that are no UTF-8.
    """
    index: dict[Any, int] = {}
    found, start = [np.empty(0, np.int32)], 0
    for chunk in chunks:
        there, first, inverse = np.unique(chunk, return_index=True, return_inverse=True)
        try:
            texts = [v.decode() if isinstance(v, bytes) else v for v in there.tolist()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} must be text in UTF-8: {error}") from error
        if "" in texts:
            raise ValueError(f"{what} must not be empty; row {start + first[texts.index('')]} is")
        numbers = np.array([index.setdefault(text, len(index)) for text in texts], np.int32)
        found.append(numbers[inverse])
        start += len(chunk)
    values = sorted(index)
    place = np.empty(len(values), np.int32)
    place[[index[value] for value in values]] = np.arange(len(values))
    return Numbered(place[np.concatenate(found)], values)


def groups_of(labels: Numbered, groups: Numbered | None) -> np.ndarray:
    """int32[identities]: the group of each; without groups each is one of its own.

    Raises:
        ValueError: if rows of one identity are of different groups.
    """
    if groups is None:
        return np.arange(len(labels.values), dtype=np.int32)
    found = np.empty(len(labels.values), np.int32)
    found[labels.rows] = groups.rows
    if len(wrong := np.flatnonzero(found[labels.rows] != groups.rows)):
        identity = labels.rows[wrong[0]]
        both = [groups.names[i] for i in sorted({found[identity], groups.rows[wrong[0]]})]
        raise ValueError(
            f"all rows of an identity must be of one group; {labels.names[identity]!r} has "
            f"{both[0]!r} and {both[1]!r}"
        )
    return found


def parts_of(parts: Numbered | None) -> np.ndarray | None:
    """int8[n]: the part of each row, as an index into "train", "validation", "test".

    Raises:
        ValueError: for another word.
    """
    if parts is None:
        return None
    index = [PARTS[check_choice("split of a row", name, PARTS)] for name in parts.names]
    found: np.ndarray = np.array(index, np.int8)[parts.rows]
    return found


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
