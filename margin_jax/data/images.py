"""Images from files: decoded once and held in memory, or anew whenever they are asked for."""

import functools
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

_BLOCK = 256  # images that are read before the next ones are asked for
_TASK = 8
_ORIENTATION = 0x0112  # the tag of EXIF

# Where the images of some rows can be read.
Encoded: TypeAlias = Callable[[np.ndarray], Sequence["Path | BinaryIO"]]


class StreamedImages:
    """uint8[n, size, size, channels] like an array, decoded in threads when rows are asked for.

    Args:
        encoded: where to read the images of some rows.
        rows: int[n], the rows.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, encoded: Encoded, rows: np.ndarray, image_size: int, channels: int) -> None:
        self.encoded = encoded
        self.rows = rows
        self.shape = (len(rows), image_size, image_size, channels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: "np.ndarray | slice") -> np.ndarray:
        rows = self.rows[index]
        files = self.encoded(rows)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        decoded = _decode_all(files, *self.shape[2:])
        for row, file, image, read in zip(rows, files, images, decoded, strict=True):
            if isinstance(read, str):
                name = one_line(file) if isinstance(file, Path) else f"image {row}"
                raise ValueError(f"{name} could be read before, and now can not: {read}")
            image[:] = read  # a grey image fills all channels alike
        return images

    def only(self, index: np.ndarray) -> "StreamedImages":
        """Some of the images, still to be decoded."""
        return StreamedImages(self.encoded, self.rows[index], *self.shape[2:])


Images: TypeAlias = np.ndarray | StreamedImages


def load_images(
    encoded: Encoded,
    count: int,
    image_size: int,
    channels: int | None = None,
    memory_limit: float = float("inf"),
) -> tuple[Images, np.ndarray, dict[int, str]]:
    """Decodes and resizes images, each of them once to see that it can be.

    Images become squares, without keeping their aspect ratio. They are turned as their EXIF says;
    of an animation the first picture counts, of 16 bits the upper 8; transparency is dropped.
    Skipped are damaged files, numbers of 32 bits or floating point, and pictures of more pixels
    than Pillow deems safe (89 million, its ``Image.MAX_IMAGE_PIXELS``).

    Args:
        encoded: where to read the images of some rows.
        count: how many rows there are.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB). Default: grey if every one of them is grey.
        memory_limit: in bytes; larger sets are not held in memory.

    Returns:
        ``(images of the readable rows, int[n] these rows, why not of the others)``.
    """
    hold = count * image_size**2 * (channels or 3) <= memory_limit
    images = np.empty((count if hold else 1, image_size, image_size, channels or 1), np.uint8)
    kept: list[int] = []
    unread: dict[int, str] = {}
    with warnings.catch_warnings(action="ignore"):  # what Pillow doubts is read or skipped
        for start in range(0, count, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, count))
            decoded = _decode_all(encoded(rows), image_size, channels)
            for row, read in zip(rows.tolist(), decoded, strict=True):
                if isinstance(read, str):
                    unread[row] = read
                    continue
                if read.shape[-1] > images.shape[-1]:  # the first in colour
                    grey, images = images, np.empty((*images.shape[:-1], 3), np.uint8)
                    images[: len(kept)] = grey[: len(kept)]
                images[len(kept) if hold else 0] = read
                kept.append(row)
    found = np.array(kept, int)
    if hold:
        return images[: len(kept)], found, unread
    return StreamedImages(encoded, found, image_size, images.shape[-1]), found, unread


def one_line(path: Path) -> str:
    """A path that can be printed: its line ends, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def _decode_all(
    files: "Sequence[Path | BinaryIO]", image_size: int, channels: int | None
) -> "Iterator[np.ndarray | str]":
    def decode(files: "Sequence[Path | BinaryIO]") -> "list[np.ndarray | str]":
        return [_decode(file, image_size, channels) for file in files]

    # Several a task: handing one over costs as much as decoding a small image.
    tasks = [files[start : start + _TASK] for start in range(0, len(files), _TASK)]
    return itertools.chain.from_iterable(_threads().map(decode, tasks))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


def _decode(file: "Path | BinaryIO", size: int, channels: int | None) -> "np.ndarray | str":
    """uint8[size, size, 1 or 3], or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            return "not a file"  # a named pipe would be waited for
        with Image.open(file) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                return f"{image.width} x {image.height} pixels are more than Pillow deems safe"
            # Pillow has 16 bits of a PGM as I, and scales them.
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                return "numbers of 32 bits, whose range nothing tells"
            # A JPEG is decoded at a half to an eighth of its size, where that is enough.
            image.draft(None, (2 * size, 2 * size))
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            image.info.clear()  # or what follows trips over odd metadata when it passes them on
            if turned:
                ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
            if image.mode.startswith("I"):
                upright = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            grey = channels == 1 or (channels is None and upright.mode in ("1", "L", "LA", "La"))
            mode = "L" if grey else "RGB"
            if upright.mode != mode:
                upright = upright.convert(mode)
            if upright.size != (size, size):
                upright = upright.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(upright).reshape(size, size, -1)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # each decoder has its own kinds
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
