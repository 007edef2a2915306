"""A finished run put to use: the embeddings of a folder, two images."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data import folder as image_folder
from margin_jax.data.dataset import remarks
from margin_jax.runs.given import (
    read_pictures,
    read_vectors,
    rows_of_vectors,
    size_and_channels,
    unreadable,
)
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import reading_of


class EmbeddedFolder(NamedTuple):
    """All images below a folder as embeddings.

    Attributes:
        files: relative to the folder.
        vectors: float32[files, dim].
        skipped: "path: reason" of each picture that could not be read.
        remarks: on other files of the folder, a line each.
    """

    files: list[str]
    vectors: np.ndarray
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


def embed_folder(
    run: Run, root: str | Path, *, without: Collection[str] = frozenset()
) -> EmbeddedFolder:
    """The embeddings of all images below a folder, or of all vectors of a file.

    They are read as the run reads its own; what names the rows of vectors stands for files.

    Args:
        run: from :func:`~margin_jax.load_run`.
        root: the folder or file.
        without: files that are left out; if there are no others, nothing is embedded.

    Raises:
        ValueError: if there is no readable image, or no such vector.
    """
    none = np.empty((0, run.config.embedding_size), np.float32)
    if run.embeds_vectors:
        dataset = read_vectors(run, root)
        names = list(dataset.files)
        rows = np.array([row for row, name in enumerate(names) if name not in without], int)
        vectors = run.embed(dataset.examples, rows) if len(rows) else none
        said = (*remarks((), dataset.notes), *_known(len(names) - len(rows)))
        return EmbeddedFolder([names[row] for row in rows], vectors, (), said)
    image_folder.check_folder("the path to embed", Path(root))
    everything, hidden = image_folder.find_files(Path(root))
    paths = [path for path in everything if str(path.relative_to(root)) not in without]
    size, channels = size_and_channels(run)
    limit = run.config.memory_limit * 2**30
    found = image_folder.read_images(paths, size, channels, limit, reading_of(run.config))
    lost = (*found.skipped, *found.left_out, *hidden)
    if not found.kept and len(paths) == len(everything):
        reason = f" (first: {lost[0]})" if lost else ""
        raise ValueError(f"no readable images below {root}{reason}")
    return EmbeddedFolder(
        [str(path.relative_to(root)) for path in found.kept],
        run.embed(found.images) if found.kept else none,
        found.skipped,
        (
            *remarks((*hidden, *found.left_out), found.notes),
            *_known(len(everything) - len(paths)),
        ),
    )


def _known(count: int) -> tuple[str, ...]:
    """On those that were left out by their names."""
    return (f"{count:,} left out, as their names are known already",) if count else ()


def verify_images(
    run: Run, first: str | Path, second: str | Path, data_dir: str | Path | None = None
) -> float:
    """The distance between two image files; at most ``run.threshold`` means the same identity.

    Of a run on vectors `first` and `second` are names of rows, of the file `data_dir` or by default
    of the run's own.

    Raises:
        ValueError: if one of them cannot be read, or `data_dir` is given for images.
    """
    if run.embeds_vectors:
        names = [str(first), str(second)]
        examples, rows, missing, _ = rows_of_vectors(run, data_dir, names)
        if missing:
            raise unreadable(run, names, missing)
        return float(run.distances(examples, rows[None])[0])
    if data_dir is not None:
        raise ValueError("data_dir is for runs on vectors; images are files")
    paths = [Path(first), Path(second)]
    found = read_pictures(run, paths)
    if missing := (*found.skipped, *found.left_out):
        raise unreadable(run, paths, missing)
    return float(run.distances(found.images, np.array([[0, 1]]))[0])
