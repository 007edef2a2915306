"""Images from files: decoded once and held in memory, or anew whenever they are asked for."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
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
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for row, image, read in zip(
            rows, images, _decode_all(self.encoded, rows, *self.shape[2:]), strict=True
        ):
            if isinstance(read, str):
                raise ValueError(f"image {row} could be read before, and now can not: {read}")
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
    Skipped are damaged files, and pictures of more pixels than Pillow deems safe (89 million, its
    ``Image.MAX_IMAGE_PIXELS``).

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
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        for row, read in zip(rows, _decode_all(encoded, rows, image_size, channels), strict=True):
            if isinstance(read, str):
                unread[int(row)] = read
                continue
            if read.shape[-1] > images.shape[-1]:  # the first in colour
                images = np.repeat(images, 3, axis=-1)
            images[len(kept) if hold else 0] = read
            kept.append(int(row))
    found = np.array(kept, int)
    if hold:
        return images[: len(kept)], found, unread
    return StreamedImages(encoded, found, image_size, images.shape[-1]), found, unread


def _decode_all(
    encoded: Encoded, rows: np.ndarray, image_size: int, channels: int | None
) -> "list[np.ndarray | str]":
    def decode(files: "Sequence[Path | BinaryIO]") -> "list[np.ndarray | str]":
        return [_decode(file, image_size, channels) for file in files]

    # Several a task: handing one over costs as much as decoding a small image.
    files = encoded(rows)
    tasks = [files[start : start + _TASK] for start in range(0, len(files), _TASK)]
    return list(itertools.chain.from_iterable(_threads().map(decode, tasks)))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


def _decode(file: "Path | BinaryIO", size: int, channels: int | None) -> "np.ndarray | str":
    """uint8[size, size, 1 or 3], or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(file) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                return f"{image.width} x {image.height} pixels are more than Pillow deems safe"
            if image.mode == "F":
                return "floating point numbers, whose range nothing tells"
            # A JPEG is decoded at a half to an eighth of its size, where that is enough.
            image.draft(None, (2 * size, 2 * size))
            if image.getexif().get(_ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):
                values = np.asarray(image)
                if values.max() > 0xFFFF:
                    return "more than 16 bits a pixel"
                upright = Image.fromarray((values // 257).astype(np.uint8))
            else:
                upright = image
            grey = channels == 1 or (channels is None and upright.mode in ("1", "L", "LA", "La"))
            upright = upright.convert("L" if grey else "RGB")
            array = np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        return "not an image"
    except (OSError, ValueError, SyntaxError, EOFError, *bombs) as error:
        return str(error) or type(error).__name__
    return array.reshape(size, size, -1)
