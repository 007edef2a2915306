"""Pictures of a folder, or vectors of a file, put into a gallery."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.rows import RowNames
from margin_jax.files import local_path
from margin_jax.lock import LOCK, locked
from margin_jax.runs.gallery import (
    BLOCK,
    GALLERY,
    MINE,
    Gallery,
    load_gallery,
    weights_digest,
    write_gallery,
)
from margin_jax.runs.given import read_vectors
from margin_jax.runs.run import Run
from margin_jax.runs.use import embed_folder


class Indexed(NamedTuple):
    """The result of :func:`~margin_jax.index`.

    Attributes:
        gallery: the gallery after the additions.
        added: how many images were added.
        skipped: "path: reason" for each image that could not be read.
        remarks: remarks on other files in the folder, one line each.
    """

    gallery: Gallery
    added: int
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


def index(run: Run, folder: str | Path, out: str | Path) -> Indexed:
    """Makes a gallery of the images in a folder, or adds those that it does not have yet.

    Args:
        run: from :func:`~margin_jax.load_run`.
        folder: a folder of images, nested or not; an image's identity is the name of the folder
            below it that it is in, or else its own name. For a run on vectors, a file of vectors.
        out: the folder of the gallery. Images with new names are added to an existing gallery.

    Raises:
        ValueError: if `out` is a gallery of another run or another kind of folder, `folder` has no
            readable image, several vectors have the same name, or those of a second file have none.
        OSError: if it cannot be written; the old gallery is kept.
    """
    target, source = local_path("out", out), local_path("folder", folder)
    _check_vacant(target)
    with locked(target):
        _check_vacant(target)  # another process could have had it
        old = load_gallery(target) if (target / GALLERY).exists() else _nothing(target, run)
        old.check_run(run)
        if run.embeds_vectors and set(old.folders) - {str(source.absolute())}:
            _check_named(run, source, old)
        found = embed_folder(run, source, without=frozenset(old.names))
        if len(set(found.files)) < len(found.files):
            raise ValueError(f"names in a gallery must be unique; in {source} some are not")
        if not np.all(np.isfinite(found.vectors)):
            raise ValueError(f"{run.path} makes embeddings that are not finite of {source}")
        grown = old
        if found.files:
            folders = list(dict.fromkeys((*old.folders, str(source.absolute()))))
            place = folders.index(str(source.absolute()))
            grown = dataclasses.replace(
                old,
                names=[*old.names, *found.files],
                identities=[*old.identities, *_identities(run, source, found.files)],
                sources=[*old.sources, *[place] * len(found.files)],
                folders=folders,
            )
            starts = range(0, len(old.names), BLOCK)
            blocks = (old.vectors[start : start + BLOCK] for start in starts)
            grown = write_gallery(
                grown, found.vectors.shape[1], itertools.chain(blocks, [found.vectors])
            )
    return Indexed(grown, len(found.files), found.skipped, found.remarks)


def _check_named(run: Run, source: Path, old: Gallery) -> None:
    """Whether the rows of another file have names of their own.

    Raises:
        ValueError: if they are only numbered, as the rows of any file are.
    """
    files = read_vectors(run, source).files
    if isinstance(files, RowNames) and files.are_numbers:
        raise ValueError(
            f"rows of {source} have no names, and {old.path} has those of {old.folders[0]}: names "
            "keep them apart, such as an array files"
        )


def _identities(run: Run, source: Path, files: Sequence[str]) -> list[str]:
    """Of pictures the folder that each lies in, or its own name; of vectors what the file says."""
    if run.embeds_vectors:
        dataset = read_vectors(run, source)
        of = dict(zip(dataset.files, dataset.labels.tolist(), strict=True))
        return [dataset.identities[of[name]] for name in files]
    parents = [str(Path(name).parent) for name in files]
    return [name if parent == "." else parent for name, parent in zip(files, parents, strict=True)]


def _nothing(target: Path, run: Run) -> Gallery:
    """A gallery that nothing is in yet."""
    return Gallery(
        target,
        run.path.absolute(),
        weights_digest(run),
        run.config.distance,
        run.threshold,
        np.empty((0, 0), np.float32),
        (),
        (),
        (),
        (),
    )


def _check_vacant(target: Path) -> None:
    """Whether there is a gallery, what a kill left of the making of one, or nothing.

    Raises:
        ValueError: if something else is there.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"out must be a folder; {target} is a file")
    present = os.listdir(target) if target.is_dir() else []
    other = sorted(name for name in present if name != LOCK and not MINE.fullmatch(name))
    if other:
        raise ValueError(
            f"{target} is not a gallery: it has other files, such as {other[0]}; choose another "
            "--out"
        )
