"""Images from files: decoded once and held in memory, or anew whenever they are asked for."""

import functools
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from margin_jax.data.decode import USUAL, Decoded, Encoded, Reading, decode, one_line, openable

_BLOCK = 256  # images that are read before the next ones are asked for
_TASK = 8


class StreamedImages:
    """uint8[n, size, size, channels] like an array, decoded in threads when rows are asked for.

    Args:
        encoded: where to read the images of some rows.
        rows: int[n], the rows.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        reading: how they are read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        encoded: Encoded,
        rows: np.ndarray,
        image_size: int,
        channels: int,
        reading: Reading = USUAL,
    ) -> None:
        self.encoded = encoded
        self.rows = rows
        self.reading = reading
        self.shape = (len(rows), image_size, image_size, channels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: "np.ndarray | slice") -> np.ndarray:
        rows = self.rows[index]
        files = self.encoded(rows)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        decoded = _decode_all(files, *self.shape[2:], self.reading)
        for row, file, image, read in zip(rows, files, images, decoded, strict=True):
            if isinstance(read, str):
                name = one_line(file) if isinstance(file, Path) else f"image {row}"
                raise ValueError(f"{name} could be read before, and now cannot: {read}")
            image[:] = read.pixels  # a grey image fills all channels alike
        return images

    def only(self, index: np.ndarray) -> "StreamedImages":
        """Some of the images, still to be decoded."""
        return StreamedImages(self.encoded, self.rows[index], *self.shape[2:], self.reading)


Images: TypeAlias = np.ndarray | StreamedImages


class Loaded(NamedTuple):
    """Images that were asked for.

    Attributes:
        images: of the readable rows.
        kept: int[n], these rows.
        unread: why not, of each other row.
        notes: what was done to some of them, for a person.
    """

    images: Images
    kept: np.ndarray
    unread: dict[int, str]
    notes: tuple[str, ...]


def load_images(
    encoded: Encoded,
    count: int,
    image_size: int,
    channels: int | None = None,
    memory_limit: float = float("inf"),
    reading: Reading = USUAL,
) -> Loaded:
    """Decodes and resizes images, each of them once to see that it can be.

    They are known by their content, whatever a file is called. Images become squares, and
    keep their shape. They are turned as their EXIF says; of an animation the first picture counts,
    of 16 bits the upper 8; what is transparent is laid on white.
    Skipped are damaged files, numbers of 32 bits or floating point, and pictures of more pixels
    than Pillow deems safe (89 million, its ``Image.MAX_IMAGE_PIXELS``).

    Args:
        encoded: where to read the images of some rows.
        count: how many rows there are.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB). Default: grey if every one of them is grey.
        memory_limit: in bytes; larger sets are not held in memory.
        reading: what is done to them on the way.

    Warns:
        UserWarning: for numbers of 16 bits that use fewer, or more, than `reading` says.
    """
    hold = count * image_size**2 * (channels or 3) <= memory_limit
    images = np.empty((count if hold else 1, image_size, image_size, channels or 1), np.uint8)
    kept: list[int] = []
    unread: dict[int, str] = {}
    transparent = oblong = deep = highest = 0
    with warnings.catch_warnings(action="ignore"):  # what Pillow doubts is read or skipped
        for start in range(0, count, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, count))
            decoded = _decode_all(encoded(rows), image_size, channels, reading)
            for row, read in zip(rows.tolist(), decoded, strict=True):
                if isinstance(read, str):
                    unread[row] = read
                    continue
                if read.pixels.shape[-1] > images.shape[-1]:  # the first in colour
                    grey, images = images, np.empty((*images.shape[:-1], 3), np.uint8)
                    images[: len(kept)] = grey[: len(kept)]
                images[len(kept) if hold else 0] = read.pixels
                transparent += read.transparent
                oblong += read.oblong
                deep += read.highest is not None
                highest = max(highest, read.highest or 0)
                kept.append(row)
    notes = []
    if transparent:
        done = "laid on white" if reading.transparency == "white" else "transparency ignored"
        notes.append(f"{transparent:,} of {len(kept):,} pictures are transparent: {done}")
    if oblong:
        done = {"pad": "padded", "crop": "cropped", "stretch": "stretched"}[reading.fit]
        notes.append(f"{oblong:,} of {len(kept):,} pictures are not square: {done}")
    if deep and (told := _told_of_depth(deep, highest, reading.bits)):
        notes.append(told)
        warnings.warn(told, stacklevel=2)  # now, too: it is the training that is spoilt
    found = np.array(kept, int)
    if hold:
        return Loaded(images[: len(kept)], found, unread, tuple(notes))
    streamed = StreamedImages(encoded, found, image_size, images.shape[-1], reading)
    return Loaded(streamed, found, unread, tuple(notes))


def _told_of_depth(count: int, highest: int, bits: int) -> str:
    """What to say of numbers of 16 bits that come out dark, below a quarter, or partly white."""
    used = min(b for b in (8, 10, 12, 14, 16) if highest < 2**b)
    of = f"{count:,} pictures of 16 bits use {used}, their highest number is {highest:,}"
    if used < bits:
        greys = (highest >> (bits - 8)) + 1
        return f"{of}: they have {greys} greys left; --bits {used} scales them"
    if highest >= 2**bits:
        return f"{of}: values above {2**bits - 1:,} become white with --bits {bits}"
    return ""


def _decode_all(
    files: "Sequence[Path | BinaryIO]", image_size: int, channels: int | None, reading: Reading
) -> "Iterator[Decoded | str]":
    openable()  # here, as modules had better not be loaded in many threads

    def decode_some(files: "Sequence[Path | BinaryIO]") -> "list[Decoded | str]":
        return [decode(file, image_size, channels, reading) for file in files]

    # Several a task: handing one over costs as much as decoding a small image.
    tasks = [files[start : start + _TASK] for start in range(0, len(files), _TASK)]
    return itertools.chain.from_iterable(_threads().map(decode_some, tasks))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
