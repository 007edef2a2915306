"""Pictures that a file lists: their paths, and whose they are."""

import csv
import io
from pathlib import Path

import numpy as np

from margin_jax.choices import check_choice
from margin_jax.data.columns import groups_of, number, parts_of, some
from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import USUAL, Reading, one_line
from margin_jax.data.folder import DEFAULT_SIZE, read_images
from margin_jax.data.pair_files import decoded

ENDINGS = (".csv", ".tsv")
_COLUMNS = ("path", "label", "group", "split")


def load(
    path: Path,
    image_size: int = DEFAULT_SIZE,
    strict: bool = False,
    channels: int | None = None,
    memory_limit: float = float("inf"),
    reading: Reading = USUAL,
) -> Dataset:
    """Loads the images that a list names, read in the same way as a folder.

    The first line names the columns, in any order: ``path``, relative to the folder of the list;
    ``label``, the identity; and optionally ``group``, the group of the identity, and ``split``:
    train, validation (or val) or test, the same for all images of an identity. This split is used
    unless you give another. Cells may be quoted; blank lines and spaces around cells are ignored.
    The text may be UTF-8, UTF-16 with a byte order mark, or Latin-1.

    Args:
        path: a .csv file (commas) or .tsv file (tabs).
        image_size, strict, channels, memory_limit, reading: as for a folder.

    Raises:
        ValueError: for another file; columns that are missing, unknown or named twice; a line with
            more or fewer cells, or an empty one; files that are missing or listed twice; fewer than
            two identities; or (strict) an unreadable image.
    """
    lines = _read(path)
    columns = {name: [cells[name] for _, cells in lines] for name in lines[0][1]}
    paths = [path.parent / name for name in columns["path"]]
    seen: dict[Path, int] = {}
    missing = []
    for (line, _), file in zip(lines, paths, strict=True):
        if file in seen:
            raise ValueError(
                f"{path}, line {line}: {one_line(file)} is listed in line {seen[file]} already"
            )
        seen[file] = line
        if not file.exists():
            missing.append(f"{one_line(file)} (line {line})")
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(paths):,} files in {path} are missing, first {missing[0]}"
        )
    found = read_images(paths, image_size, channels, memory_limit, reading)
    skipped = (*found.skipped, *found.left_out)  # all of them are meant to be pictures
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable file(s) of {path}, first {skipped[0]}")
    row_of = {file: row for row, file in enumerate(paths)}
    kept = np.array([row_of[file] for file in found.kept], int)
    of = {n: number(n, [np.array(c)[kept]]) for n, c in columns.items() if n != "path"}
    labels = of["label"]
    if len(labels.values) < 2:
        raise ValueError(
            f"expected at least two identities with readable images in {path}; "
            f"got {len(labels.values)}" + (f" (first unreadable: {skipped[0]})" if skipped else "")
        )
    return Dataset(
        examples=found.images,
        labels=labels.rows,
        identities=labels.names,
        files=tuple(columns["path"][row] for row in kept),
        groups=groups_of(labels, of.get("group")),
        skipped=skipped,
        notes=found.notes,
        parts=parts_of(of.get("split")),
    )


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The number of each line, and its cells by column."""
    check_choice("the ending of a list", path.suffix.lower(), ENDINGS)
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the list {path}: {error.strerror}") from error
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="," if path.suffix.lower() == ".csv" else "\t"
    )
    lines: list[tuple[int, dict[str, str]]] = []
    names: list[str] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not names:
                names = _named(path, cells)
                continue
            if len(cells) != len(names) or "" in cells:
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {', '.join(names)}; got {row}"
                )
            lines.append((reader.line_num, dict(zip(names, cells, strict=True))))
    except csv.Error as error:  # such as a quote that is never closed
        raise ValueError(f"{path} is not a list of images: {error}") from error
    if not lines:
        raise ValueError(f"{path} lists no images: expected columns {', '.join(_COLUMNS)}")
    return lines


def _named(path: Path, names: list[str]) -> list[str]:
    """The columns, if they are such as a list has."""
    unknown = set(names) - set(_COLUMNS)
    if unknown or len(set(names)) < len(names) or not {"path", "label"} <= set(names):
        raise ValueError(
            f"the first line of {path} must name columns path and label, perhaps group and split, "
            f"each once; got {some(names)}"
        )
    return names
