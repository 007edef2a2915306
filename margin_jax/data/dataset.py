"""What a dataset is here: images of identities, in memory."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageDataset:
    """Images with the identity of each.

    Attributes:
        images: uint8[images, height, width, channels], channels 1 (grey) or 3 (RGB).
        labels: int32[images], an index into `identities`.
        identities: their names, in order.
        files: where each image comes from, for a person.
        groups: int32[identities]; identities of one group stay on one side of a split, and pairs
            across identities of one group are the hard ones.
        skipped: "file: reason" of each file that could not be read.
    """

    images: np.ndarray
    labels: np.ndarray
    identities: tuple[str, ...]
    files: tuple[str, ...]
    groups: np.ndarray
    skipped: tuple[str, ...] = ()

    def first(self, identities: int) -> "ImageDataset":
        """The first so many identities only."""
        rows = np.flatnonzero(self.labels < identities)
        return ImageDataset(
            self.images[rows],
            self.labels[rows],
            self.identities[:identities],
            tuple(self.files[row] for row in rows),
            self.groups[:identities],
            self.skipped,
        )
