"""Verification pairs listed in a file: one's own csv, or the official lists of LFW."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.decode import PICTURES
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
    """Reads lines ``FIRST,SECOND,1`` (same) or ``0``; or a list of LFW, known by its head.

    LFW's ``pairs.txt`` begins with the number F of folds and the number N of pairs of each kind;
    ``pairsDevTest.txt`` with N alone, of one fold. Then come, F times, N lines ``NAME I J`` (same)
    and N lines ``NAME I OTHER J`` (different), separated by tabs or spaces; the I-th picture of
    NAME is ``NAME/NAME_000I.jpg``. Blank lines count for nothing. The text may be UTF-8, UTF-16
    with its mark, or Latin-1.

    Raises:
        ValueError: no such file, a line that is neither, or no pairs at all; the message names it.
    """
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the pairs {path}: {error.strerror}") from error
    head = next((line for line in text.splitlines() if line.strip()), "")
    is_lfw = re.fullmatch(r"\s*\d+(\s+\d+)?\s*", head, re.ASCII)
    listed = _lfw(path, text) if is_lfw else _csv(path, text)
    names = [name for first, second, _, _ in listed for name in (first, second)]
    if not names:
        raise ValueError(f"no pairs in {path}")
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    rows = np.array([index[name] for name in names]).reshape(-1, 2)
    same = np.array([same for _, _, same, _ in listed])
    folds = np.array([fold for *_, fold in listed])
    return ListedPairs(tuple(index), Pairs(rows, same), folds if folds.max() > 0 else None)


def locate(root: Path, files: Sequence[str]) -> list[Path]:
    """Where listed files are below a folder, or where they would be.

    A file that is not there by its name may be there with accents written another way, or as a
    picture with another ending: copies of ``.jpg`` as ``.png``, say; of several the first by name.
    """
    inside: dict[Path, dict[str, Path]] = {}

    def find(place: Path, name: str, whole: bool) -> Path:
        if place not in inside:
            there = sorted(place.iterdir()) if place.is_dir() else []
            there.reverse()  # the first by name counts
            pictures = (path for path in there if path.suffix.lower() in PICTURES)
            known = {_plain(path.stem): path for path in pictures}
            inside[place] = known | {_plain(path.name): path for path in there}
        exact = inside[place].get(_plain(name))
        return exact or (not whole and inside[place].get(_plain(Path(name).stem))) or place / name

    def locate_one(file: str) -> Path:
        place = root / file
        if place.exists():
            return place
        *folders, name = Path(file).parts
        place = root
        for folder in folders:
            place = find(place, folder, True)
        return find(place, name, False)

    return [locate_one(file) for file in files]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def decoded(data: bytes) -> str:
    """Text of UTF-8, of UTF-16 with its mark, or of Latin-1."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _csv(path: Path, text: str) -> list[tuple[str, str, bool, int]]:
    listed = []
    for number, fields in enumerate(_read(path, text), start=1):
        cells = [field.strip() for field in fields]
        if cells in ([], [""]):
            continue
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
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    *folds_given, per_kind = map(int, lines.pop(0)[1].split())
    folds = folds_given[0] if folds_given else 1
    if len(lines) != 2 * folds * per_kind:
        raise ValueError(
            f"{path}: expected {folds} folds of {per_kind} same and {per_kind} different pairs, "
            f"{2 * folds * per_kind} lines; got {len(lines)}"
        )
    listed = []
    for row, (number, line) in enumerate(lines):
        fold, place = divmod(row, 2 * per_kind)
        same = place < per_kind
        gap = r"\s*\t\s*" if "\t" in line else r"\s+"  # between tabs, a name may have spaces
        form = rf"(.+?){gap}(\d+){gap}(\d+)" if same else rf"(.+?){gap}(\d+){gap}(.+?){gap}(\d+)"
        cells = re.fullmatch(form, line, re.ASCII)
        if cells is None:
            said = "NAME I J" if same else "NAME I OTHER J"
            raise ValueError(f"{path}, line {number}: expected {said}; got {line!r}")
        name, i, other, j = (cells[1], cells[2], cells[1], cells[3]) if same else cells.groups()
        files = f"{name}/{name}_{int(i):04d}.jpg", f"{other}/{other}_{int(j):04d}.jpg"
        listed.append((*files, same, fold))
    return listed
