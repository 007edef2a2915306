"""What a finished run is given: pictures or rows of vectors, read as it reads its own."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from margin_jax.data import folder as image_folder
from margin_jax.data import listing, vectors
from margin_jax.data.dataset import Dataset, Examples
from margin_jax.data.pair_files import locate
from margin_jax.data.rows import find_rows
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import reading_of


def load_others(run: Run, path: Path, repeated_names: str | None) -> Dataset:
    """Other examples than the run's own, with identities."""
    if run.embeds_vectors:
        return read_vectors(run, path)
    size, channels = size_and_channels(run)
    reading, limit = reading_of(run.config), run.config.memory_limit * 2**30
    if path.is_file() and path.suffix.lower() in listing.ENDINGS:
        return listing.load(path, size, False, channels, limit, reading)
    names = repeated_names or run.config.repeated_names
    return image_folder.load(path, size, False, channels, limit, reading, names)


def read_vectors(run: Run, path: str | Path | None) -> Dataset:
    """Those of a file, or by default of the run's own."""
    if path is None and run.config.dataset != "vectors":
        raise ValueError("the run was trained on arrays: give data_dir, a file of vectors")
    return vectors.load(Path(path or str(run.config.data_dir)))


def rows_of_images(
    run: Run, data_dir: str | Path | None, files: Sequence[str]
) -> tuple[Examples, np.ndarray, tuple[str, ...], list[str]]:
    """Examples, the row of each of the files or -1, why some have none, and whose each is."""
    root = Path(data_dir or ".")
    image_folder.check_folder("data_dir", root)
    found = read_pictures(run, places := locate(root, files))
    row_of = {path: row for row, path in enumerate(found.kept)}
    rows = np.array([row_of.get(place, -1) for place in places])
    missing = (*found.skipped, *found.left_out)
    return found.images, rows, missing, [str(Path(name).parent) for name in files]


def rows_of_vectors(
    run: Run, data_dir: str | Path | None, files: Sequence[str]
) -> tuple[Examples, np.ndarray, tuple[str, ...], list[str]]:
    """As :func:`rows_of_images`, of names of rows."""
    dataset = read_vectors(run, data_dir)
    row_of = find_rows(dataset.files, files)
    rows = np.array([row_of.get(name, -1) for name in files])
    like = f"no row has this name, as {dataset.files[0]!r} is one"
    missing = tuple(f"{name!r}: {like}" for name in files if name not in row_of)
    return dataset.examples, rows, missing, [dataset.identities[i] for i in dataset.labels[rows]]


def trained_on(run: Run, identities: Iterable[str]) -> tuple[str, ...]:
    """Those of some identities that have the name of one that the run was trained on."""
    names = {unicodedata.normalize("NFC", name) for name in identities}
    trained = {unicodedata.normalize("NFC", name) for name in run.data["identities"]["train"]}
    return tuple(sorted(names & trained))


def size_and_channels(run: Run) -> tuple[int, int]:
    """Of the pictures that a run reads from files.

    Raises:
        ValueError: if it was trained on something else.
    """
    shape = tuple(run.data["example_shape"])
    if not run.embeds_pictures or shape[0] != shape[1]:
        raise ValueError(
            f"files are read for a run on square pictures; {run.path} was trained on "
            f"{run.data['example_dtype']} of shape {shape}: run.embed takes such arrays"
        )
    return shape[0], shape[2]


def read_pictures(run: Run, paths: list[Path]) -> image_folder.Found:
    """Image files as the run reads its own."""
    size, channels = size_and_channels(run)
    limit = run.config.memory_limit * 2**30
    return image_folder.read_images(paths, size, channels, limit, reading_of(run.config))


def unreadable(run: Run, names: Sequence[object], missing: tuple[str, ...]) -> ValueError:
    """What is said of names that nothing could be read of."""
    what = "images unreadable" if run.embeds_pictures else "rows missing"
    return ValueError(f"{len(missing)} of {len(names)} {what}, first {missing[0]}")
