"""Vectors in a table, .parquet or .csv, through pyarrow."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from margin_jax.data.columns import Columns, number, some

LABEL, FILE, GROUP, SPLIT, FEATURES = "label", "file", "group", "split", "features"
_TEXTS = (LABEL, FILE, GROUP, SPLIT)
_ROWS = 2**14  # that are read together
_INDEX = "__index_level_"  # how pandas calls the numbers of rows that it writes


def read_table(path: Path) -> Columns:
    """Reads a table: columns ``label``, optionally ``file``, ``group``, ``split``, and features.

    The features are a column ``features`` with lists of equal length (.parquet), or else all other
    columns, which must be numbers, in the order of the table. They are kept in memory as float32;
    use an .npy or .npz file for larger datasets.

    Args:
        path: a .parquet file, or a .csv or .tsv file whose first line names the columns.

    Raises:
        ValueError: if pyarrow is not installed, the file cannot be read, or columns are missing,
            named twice, of another type, or have empty cells.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ValueError(
            f"{path.suffix} needs pyarrow: pip install 'margin-jax[tables]'"
        ) from error
    texts: dict[str, list[Any]] = {name: [] for name in _TEXTS}
    blocks: list[np.ndarray] = []
    seen = 0
    try:
        names, batches = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path)
        _check(path, names)
        used = [FEATURES] if FEATURES in names else [n for n in names if n not in _TEXTS]
        for batch in batches:
            for name in (*(n for n in _TEXTS if n in names), *used):
                column = batch.column(name)
                if column.null_count:
                    row = seen + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                    what = "empty" if name in _TEXTS else "empty or no number"
                    raise ValueError(f"column {name} of {path} is {what} in row {row}")
                if name in _TEXTS:
                    texts[name].append(_text(path, name, column))
            blocks.append(_features(path, [batch.column(name) for name in used], used))
            seen += len(batch)
            if blocks[-1].shape[1] != blocks[0].shape[1]:
                _refuse_lengths(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if not blocks:
        raise ValueError(f"{path} must have rows; got none")

    def numbered(name: str) -> Any:
        if name not in names:
            return None
        return number(f"column {name}", (_values(chunk) for chunk in texts[name]))

    files = pa.chunked_array(texts[FILE]) if FILE in names else None
    unused = [n for n in names if n not in (*_TEXTS, *used)]
    return Columns(
        np.concatenate(blocks),
        numbered(LABEL),
        None if files is None else lambda row: str(files[row].as_py()),
        numbered(GROUP),
        numbered(SPLIT),
        notes=(f"columns that are not used: {some(unused)}",) if unused else (),
    )


def _parquet(path: Path) -> tuple[list[str], Iterator[Any]]:
    from pyarrow import parquet

    table = parquet.ParquetFile(path, memory_map=True)
    names = [n for n in table.schema_arrow.names if not n.startswith(_INDEX)]
    used = [n for n in names if n in (*_TEXTS, FEATURES)] if FEATURES in names else names
    return names, table.iter_batches(_ROWS, columns=used)


def _csv(path: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(filter(None, csv.reader(file, delimiter=delimiter)), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not names:
        raise ValueError(f"{path} must have rows; got none")
    _check(path, names)
    kinds = {name: pa.string() if name in _TEXTS else pa.float32() for name in names}
    batches = arrow.open_csv(
        path,
        parse_options=arrow.ParseOptions(delimiter=delimiter),
        convert_options=arrow.ConvertOptions(column_types=kinds),
    )
    return names, batches


def _check(path: Path, names: list[str]) -> None:
    """Whether the columns are such as can be read."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} must name each column once; got more of {some(twice)}")
    if "" in names:
        place = names.index("") + 1
        raise ValueError(f"column {place} of {path} has no name (pandas: to_csv(index=False))")
    if LABEL not in names or not set(names) - set(_TEXTS):
        raise ValueError(
            f"{path} must have a column label, perhaps file, group and split, and columns of "
            f"numbers, or one, features, of lists; got {some(names)}"
        )


def _text(path: Path, name: str, column: Any) -> Any:
    """A column of text or whole numbers."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ValueError(f"column {name} of {path} must be text or whole numbers; got {kind}")
    return column


def _values(column: Any) -> np.ndarray:
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def _features(path: Path, columns: list[Any], names: list[str]) -> np.ndarray:
    """float32[rows, features]."""
    import pyarrow as pa

    def numbers(name: str, column: Any) -> np.ndarray:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ValueError(
                f"column {name} of {path} must be numbers, as all but label, file, group and "
                f"split; got {column.type}"
            )
        with np.errstate(over="ignore"):
            return np.asarray(_values(column), np.float32)

    if names != [FEATURES] or not _is_list(columns[0].type):
        return np.stack([numbers(*one) for one in zip(names, columns, strict=True)], axis=1)
    flat = numbers(FEATURES, columns[0].flatten())
    lengths = {len(row) for row in columns[0]}
    if len(lengths) != 1:
        _refuse_lengths(path)
    return flat.reshape(len(columns[0]), -1)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    are = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in are)


def _refuse_lengths(path: Path) -> None:
    raise ValueError(f"lists in column features of {path} must be of one length; they are not")
