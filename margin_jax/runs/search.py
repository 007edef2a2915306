"""Pictures searched in a gallery: read, embedded, answered, and drawn beside the nearest."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from margin_jax.data.decode import one_line
from margin_jax.data.folder import read_images
from margin_jax.plots.style import GREY
from margin_jax.plots.tiles import Tile, plot_tiles
from margin_jax.runs.gallery import Answer, Gallery
from margin_jax.runs.given import read_pictures, rows_of_vectors, size_and_channels, unreadable
from margin_jax.runs.load import load_run
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import reading_of

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure

_LOOK = 128  # pixels a side of pictures that people look at


def search_files(
    gallery: Gallery,
    run: Run,
    files: Sequence[str],
    count: int = 5,
    *,
    threshold: float | None = None,
    data_dir: str | Path | None = None,
) -> list[Answer]:
    """As :meth:`Gallery.search`, of image files; of a run on vectors of rows by their names.

    Args:
        gallery, run: of one another.
        files: image files, or names of rows.
        count, threshold: as there.
        data_dir: the file of the vectors. Default: the one that the run was trained on.

    Raises:
        ValueError: also for another run, files that cannot be read, or `data_dir` for images.
    """
    gallery.check_run(run)
    if not run.embeds_vectors and data_dir is not None:
        raise ValueError("data_dir is for runs on vectors; images are files")
    if run.embeds_vectors:
        examples, rows, missing, _ = rows_of_vectors(run, data_dir, files)
    else:
        found = read_pictures(run, [Path(file) for file in files])
        examples, missing = found.images, (*found.skipped, *found.left_out)
        rows = np.arange(len(examples))
    if missing:
        raise unreadable(run, files, missing)
    return gallery.search(run.embed(examples, rows), count, threshold=threshold)


def load_its_run(gallery: Gallery, moved: str | Path | None = None) -> Run:
    """The run that a gallery was made with, from where it was, or from where it has moved to.

    Raises:
        ValueError: as :func:`~margin_jax.load_run`, and for another run.
    """
    try:
        run = load_run(gallery.run if moved is None else moved)
    except ValueError as error:
        hint = "" if moved is not None else "; if it has moved, --run says where to"
        raise ValueError(f"{error}{hint}") from error
    gallery.check_run(run)
    return run


def draw_answers(
    gallery: Gallery, run: Run, answers: Sequence[tuple[str, Answer]], threshold: float
) -> "Figure":
    """A row for each query: its picture, then its neighbours, those beyond the threshold in grey.

    Args:
        gallery, run: of one another; of pictures.
        answers: the file of each query, with its answer.
        threshold: that was searched with.
    """
    paths = [Path(file) for file, _ in answers]
    for _, answer in answers:
        for found in answer.neighbours:
            paths.append(Path(gallery.folders[gallery.sources[found.row]], found.name))
    pictures = _to_look_at(run, paths)
    rows = []
    for file, (identity, neighbours) in answers:
        said = "unknown" if identity is None else f"found: {one_line(Path(identity))}"
        row = [Tile([pictures[Path(file)]], ["searched", said, one_line(Path(file))])]
        for found in neighbours:
            near = found.distance <= threshold
            path = Path(gallery.folders[gallery.sources[found.row]], found.name)
            words = [f"{found.distance:.4f}", one_line(Path(found.identity)), one_line(path)]
            row.append(Tile([pictures[path]], words, "black" if near else GREY))
        rows.append(row)
    title = f"The nearest in {gallery.path}; grey: beyond the threshold of {threshold:.4f}"
    return plot_tiles(rows, title)


def _to_look_at(run: Run, paths: Sequence[Path]) -> dict[Path, np.ndarray | None]:
    """Pictures of files, larger than the network may see them; None where a file is gone."""
    unique = sorted(set(paths))
    size, channels = size_and_channels(run)
    found = read_images(unique, max(size, _LOOK), channels, reading=reading_of(run.config))
    rows = {path: row for row, path in enumerate(found.kept)}
    return {
        path: found.images[np.array([rows[path]])][0] if path in rows else None for path in unique
    }
