"""What a dataset is here: images of identities."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margin_jax.data.images import Images


def remarks(left_out: Sequence[str], notes: Sequence[str]) -> tuple[str, ...]:
    """What a person should know of how files were read, a line each; often nothing."""
    if not left_out:
        return tuple(notes)
    return (f"{len(left_out):,} file(s) or folder(s) left out; first {left_out[0]}", *notes)


@dataclass(frozen=True)
class ImageDataset:
    """Images with the identity of each.

    Attributes:
        images: uint8[images, height, width, channels], channels 1 (grey) or 3 (RGB): an array, or,
            for sets that are not held in memory, what decodes them when rows are asked for.
        labels: int32[images], an index into `identities`.
        identities: their names, in order.
        files: where each image comes from, for a person.
        groups: int32[identities]; identities of one group stay on one side of a split, and pairs
            across identities of one group are the hard ones.
        skipped: "file: reason" of each picture that could not be read.
        left_out: "file: reason" of what lies beside the pictures: hidden files, notes, and so on.
        notes: what was done to some of the pictures, for a person.
    """

    images: Images
    labels: np.ndarray
    identities: tuple[str, ...]
    files: tuple[str, ...]
    groups: np.ndarray
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> "ImageDataset":
        """Your own images in memory.

        Args:
            images: uint8[n, height, width, channels], channels 1 (grey) or 3 (RGB). Files are read
                as squares, so a run on other shapes embeds and compares arrays, not files.
            labels: [n], whatever names an identity: numbers or strings.

        Raises:
            ValueError: for other shapes.
            TypeError: for images that are not uint8.

        Example:
            >>> import numpy as np, margin_jax as mj
            >>> images = np.zeros((4, 8, 8, 1), np.uint8)
            >>> mine = mj.ImageDataset.from_arrays(images, np.array(["bo", "bo", "al", "al"]))
            >>> mine.identities, mine.labels.tolist()
            (('al', 'bo'), [1, 1, 0, 0])
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8:
            raise TypeError(f"images must be uint8, 0 to 255; got {images.dtype}")
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images must have shape [n, height, width, 1 or 3]; got {images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have shape {images.shape[:1]}; got {labels.shape}")
        names, dense = np.unique(labels, return_inverse=True)
        return cls(
            images=images,
            labels=dense.astype(np.int32),
            identities=tuple(map(str, names)),
            files=tuple(f"image {i}" for i in range(len(images))),
            groups=np.arange(len(names), dtype=np.int32),
        )

    def digest(self) -> str:
        """SHA-256 of the labels and of 256 images, spread evenly: to tell other sets by.

        It is the same whether the images are held in memory or not, and soon computed.
        """
        some = np.linspace(0, len(self.labels) - 1, min(len(self.labels), 256)).astype(int)
        found = hashlib.sha256(np.ascontiguousarray(self.labels).data)
        found.update(np.ascontiguousarray(self.images[some]).data)
        return found.hexdigest()

    def first(self, identities: int) -> "ImageDataset":
        """The first so many identities only."""
        rows = np.flatnonzero(self.labels < identities)
        return ImageDataset(
            self.images[rows] if isinstance(self.images, np.ndarray) else self.images.only(rows),
            self.labels[rows],
            self.identities[:identities],
            tuple(self.files[row] for row in rows),
            self.groups[:identities],
            self.skipped,
            self.left_out,
            self.notes,
        )
