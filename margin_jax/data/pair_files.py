"""Verification pairs listed in a file: one's own csv, or the official list of LFW."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.pairs import Pairs


class ListedPairs(NamedTuple):
    """Pairs of files.

    Attributes:
        files: each file once, relative to the folder of images.
        pairs: rows of `files`, and which pairs are the same.
        folds: int64[pairs], where the list has folds.
    """

    files: tuple[str, ...]
    pairs: Pairs
    folds: np.ndarray | None = None


def read_pairs(path: Path) -> ListedPairs:
    """Reads lines ``FIRST,SECOND,1`` (same) or ``0``; or LFW's ``pairs.txt``, known by its head.

    The list of LFW begins with the number F of folds and the number N of pairs of each kind. Then
    come, F times, N lines ``NAME I J`` (same) and N lines ``NAME I OTHER J`` (different), separated
    by tabs; the I-th picture of NAME is ``NAME/NAME_000I.jpg``.

    Raises:
        ValueError: a line that is neither, or no pairs at all; the message names it.
    """
    text = path.read_text(encoding="utf-8-sig")
    listed = _lfw(path, text) if re.match(r"\d+\t\d+\s", text) else _csv(path, text)
    names = [name for first, second, _, _ in listed for name in (first, second)]
    if not names:
        raise ValueError(f"no pairs in {path}")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    rows = np.array([index[name] for name in names]).reshape(-1, 2)
    same = np.array([same for _, _, same, _ in listed])
    folds = np.array([fold for *_, fold in listed])
    return ListedPairs(tuple(index), Pairs(rows, same), folds if folds.max() > 0 else None)


def _csv(path: Path, text: str) -> list[tuple[str, str, bool, int]]:
    listed = []
    for number, fields in enumerate(_read(path, text), start=1):
        if not fields:
            continue
        cells = [field.strip() for field in fields]
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise ValueError(
                f"{path}, line {number}: expected FIRST,SECOND,1 or 0; got {','.join(fields)!r}"
            )
        listed.append((cells[0], cells[1], cells[2] == "1", 0))
    return listed


def _read(path: Path, text: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(text))
    except csv.Error as error:  # such as a quote that is never closed
        raise ValueError(f"{path} is not a list of pairs: {error}") from error


def _lfw(path: Path, text: str) -> list[tuple[str, str, bool, int]]:
    head, *lines = text.splitlines()
    folds, per_kind = map(int, head.split())
    if len(lines) != 2 * folds * per_kind:
        raise ValueError(
            f"{path}: expected {folds} folds of {per_kind} same and {per_kind} different pairs, "
            f"{2 * folds * per_kind} lines; got {len(lines)}"
        )
    listed = []
    for row, line in enumerate(lines):
        fold, place = divmod(row, 2 * per_kind)
        cells = line.split("\t")
        if place < per_kind:
            cells.insert(2, cells[0])
        try:
            name, i, other, j = cells
            files = f"{name}/{name}_{int(i):04d}.jpg", f"{other}/{other}_{int(j):04d}.jpg"
        except ValueError:
            form = "NAME I J" if place < per_kind else "NAME I OTHER J"
            raise ValueError(f"{path}, line {row + 2}: expected {form}; got {line!r}") from None
        listed.append((*files, place < per_kind, fold))
    return listed
