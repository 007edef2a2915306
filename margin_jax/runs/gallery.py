"""A gallery: the embeddings of known pictures, in which others are searched.

A folder::

    gallery.json     whose embeddings they are, distance and threshold; which files are in force
    vectors-2.npy    float32[n, dim], mapped into memory when it is searched
    names-2.json     the name and the identity of each row, and the folder that it was read from

A gallery that grows or forgets is written beside the old one, under the next number, and is in
force once ``gallery.json`` says so: whatever kills it before leaves the old one whole.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from margin_jax.evaluation.neighbours import nearest
from margin_jax.files import local_path, read_json, write_text
from margin_jax.lock import locked
from margin_jax.runs.run import Run

GALLERY = "gallery.json"
MINE = re.compile(r"(gallery\.json|vectors-\d+\.npy|names-\d+\.json)(\.partial)?")
_OF_ROWS = ("names", "identities", "sources")  # one for each row
BLOCK = 2**16  # rows that are copied at a time
_MEANING = "the run's own, chosen on its validation pairs: up to it two examples are the same"


class Neighbour(NamedTuple):
    """One of the nearest images in a gallery.

    Attributes:
        distance: to the query.
        name: the image's path, relative to the folder that it was read from; or the vector's name.
        identity: its identity.
        row: its row in the gallery.
    """

    distance: float
    name: str
    identity: str
    row: int


class Answer(NamedTuple):
    """The result for one query.

    Attributes:
        identity: that of the nearest image; None (unknown) if it is farther than the threshold.
        neighbours: nearest first.
    """

    identity: str | None
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Gallery:
    """Embeddings of known images, with the name and the identity of each.

    Attributes:
        path: its folder.
        run: the folder of the run that made the embeddings, at the time.
        weights: SHA-256 of the weights of that run.
        distance: the run's.
        threshold: the run's; examples at most this far apart count as the same identity.
        vectors: float32[n, dim], mapped from a file.
        names: paths of the images, relative to the folders that they were read from; or names of
            vectors.
        identities: the name of the folder that an image is in, or its own name if it is in none.
        folders: the folders that images were read from, or the files of vectors.
        sources: int[n], indices into `folders`.
    """

    path: Path
    run: Path
    weights: str
    distance: str
    threshold: float
    vectors: np.ndarray = field(repr=False)
    names: Sequence[str] = field(repr=False)
    identities: Sequence[str] = field(repr=False)
    folders: Sequence[str]
    sources: Sequence[int] = field(repr=False)

    def search(
        self, embeddings: np.ndarray, count: int = 5, *, threshold: float | None = None
    ) -> list[Answer]:
        """The nearest images of each query, and the identity of the first if it is near enough.

        Exact. The vectors are read from their file in blocks, once for every 1,024 queries.

        Args:
            embeddings: float[queries, dim], as from ``run.embed`` of the gallery's run.
            count: how many neighbours, at least 1.
            threshold: a distance. Default: the gallery's.

        Raises:
            ValueError: an empty gallery, queries of another length, or a count below 1.
        """
        if len(self.names) == 0:
            raise ValueError(f"the gallery {self.path} is empty: index some pictures into it")
        distances, rows = nearest(embeddings, self.vectors, count, distance=self.distance)
        limit = self.threshold if threshold is None else threshold
        answers = []
        for near, of in zip(distances.tolist(), rows.tolist(), strict=True):
            found = tuple(
                Neighbour(distance, self.names[row], self.identities[row], row)
                for distance, row in zip(near, of, strict=True)
            )
            answers.append(Answer(found[0].identity if near[0] <= limit else None, found))
        return answers

    def check_run(self, run: Run) -> None:
        """Checks that a run is the one that made these embeddings.

        Raises:
            ValueError: if it is not.
        """
        if weights_digest(run) != self.weights:
            raise ValueError(
                f"the gallery {self.path} has embeddings of another run than {run.path}: it was "
                f"made with {self.run}"
            )

    def forget(self, names: Collection[str]) -> "Gallery":
        """Removes some images, or all images of some identities; returns the gallery that is left.

        Args:
            names: names of images or identities; a name that is both means the image.

        Raises:
            ValueError: for an unknown name; nothing is removed then.
        """
        with locked(self.path):
            here = load_gallery(self.path)  # another process could have had it
            unknown = set(names) - {*here.names, *here.identities}
            if unknown:
                raise ValueError(
                    f"no picture and no identity of {self.path} is named {min(unknown)!r}"
                )
            pictures = set(names) & set(here.names)
            people = set(names) - pictures
            of = zip(here.names, here.identities, strict=True)
            kept = [i for i, (a, b) in enumerate(of) if a not in pictures and b not in people]
            starts = range(0, len(kept), BLOCK)
            blocks = (here.vectors[kept[start : start + BLOCK]] for start in starts)
            left = dataclasses.replace(
                here,
                names=[here.names[row] for row in kept],
                identities=[here.identities[row] for row in kept],
                sources=[here.sources[row] for row in kept],
            )
            return write_gallery(left, here.vectors.shape[1], blocks)


def load_gallery(path: str | Path) -> Gallery:
    """Loads the gallery in a folder.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    folder = local_path("gallery", path)
    if not (folder / GALLERY).is_file():
        raise ValueError(f"no gallery in {folder}: there is no {GALLERY}")
    for left in (2, 1, 0):
        try:
            said = read_json(folder / GALLERY)
            return _opened(folder, said)
        except FileNotFoundError as error:
            if not left or not (folder / GALLERY).is_file():
                raise ValueError(f"the gallery {folder} is damaged: {error}") from error
            # Or it has grown just now, and the files that it said are gone.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the gallery {folder} is damaged: {error}") from error
    raise AssertionError("unreachable")


def _opened(folder: Path, said: dict[str, Any]) -> Gallery:
    for kind in ("vectors", "names"):
        file, digest = said[kind]["file"], said[kind]["sha256"]
        if Path(file).name != file:
            raise ValueError(f"{file!r} is not one of its files")
        if _digest(folder / file) != digest:
            raise ValueError(f"{file} is not what was written")
    names = read_json(folder / said["names"]["file"])
    count, dim = int(said["count"]), int(said["embedding_size"])
    # An empty file cannot be mapped.
    vectors = np.load(folder / said["vectors"]["file"], mmap_mode="r" if count else None)
    lengths = {len(vectors), *(len(names[name]) for name in ("names", "identities", "sources"))}
    if vectors.shape != (count, dim) or vectors.dtype != np.float32 or lengths != {count}:
        raise ValueError(f"its vectors and names are not {count} of length {dim}")
    return Gallery(
        folder,
        Path(said["run"]),
        said["weights"],
        said["distance"],
        float(said["threshold"]),
        vectors,
        names["names"],
        names["identities"],
        said["folders"],
        names["sources"],
    )


def weights_digest(run: Run) -> str:
    """SHA-256 of all weights that embed, with their names and shapes."""
    found = hashlib.sha256()
    leaves, _ = jax.tree.flatten_with_path((run.params, run.batch_stats))
    for path, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def write_gallery(gallery: Gallery, dim: int, blocks: Iterable[np.ndarray]) -> Gallery:
    """Puts a gallery in force that has these names, and vectors in blocks, beside the one there."""
    folder, number = gallery.path, 1
    is_there = (folder / GALLERY).exists()
    if is_there:
        number += int(read_json(folder / GALLERY)["number"])
    files = {"vectors": f"vectors-{number}.npy", "names": f"names-{number}.json"}
    names = {name: list(getattr(gallery, name)) for name in _OF_ROWS}
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(gallery.names), dim)}
    try:
        with open(folder / files["vectors"], "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block, "<f4").data)
        # Names of files may have bytes that are no text, which only escapes carry.
        (folder / files["names"]).write_text(json.dumps(names), encoding="ascii")
        said = {
            "run": str(gallery.run),
            "weights": gallery.weights,
            "distance": gallery.distance,
            "threshold": gallery.threshold,
            "threshold_means": _MEANING,
            "embedding_size": dim,
            "count": len(gallery.names),
            "folders": list(gallery.folders),
            "number": number,
        }
        said |= {
            kind: {"file": name, "sha256": _digest(folder / name)} for kind, name in files.items()
        }
        write_text(folder / GALLERY, json.dumps(said, indent=2) + "\n")
    except OSError as error:
        was = "; it is as it was" if is_there else ""
        raise OSError(f"cannot write the gallery {folder}: {error.strerror}{was}") from error
    for path in folder.iterdir():
        if MINE.fullmatch(path.name) and path.name not in (GALLERY, *files.values()):
            path.unlink()
    return load_gallery(folder)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
