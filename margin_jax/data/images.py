"""Images from files: decoded once and held in memory, or anew whenever they are asked for."""

import contextlib
import functools
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:  # Pillow is loaded when the first image is
    from PIL import Image

FITS = ("pad", "crop", "stretch")
TRANSPARENCIES = ("white", "ignore")
NO_IMAGE, NO_FILE = "not an image", "not a file"
# What may be opened, known by its content. No other format of Pillow: some start another program
# (PostScript), hold no picture (weather data), or are known by so little that any file can be one.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF"),
    *("PSD", "QOI", "SGI", "SUN", "DDS"),
)
# These have no sign of their own in the file, so the ending has to say it.
_BY_ENDING = {
    **dict.fromkeys((".tga", ".icb", ".vda", ".vst"), "TGA"),
    ".pcx": "PCX",
}
# They look like TIFF, and Pillow would read the thumbnail.
_RAW = (*(".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"),)
# Files of these endings are meant to be pictures.
PICTURES = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".eps", ".gif", ".heic", ".heif", ".hif"),
    *(".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl"),
    *(".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".sgi", ".svg"),
    *(".tif", ".tiff", ".webp", *_BY_ENDING, *_RAW),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_BLOCK = 256  # images that are read before the next ones are asked for
_TASK = 8
_ORIENTATION = 0x0112  # the tag of EXIF

# Where the images of some rows can be read.
Encoded: TypeAlias = Callable[[np.ndarray], Sequence["Path | BinaryIO"]]


class Reading(NamedTuple):
    """How a picture becomes an array. A run keeps it, to read other pictures as its own.

    Attributes:
        fit: how it becomes a square. "pad" keeps all of it and its shape, and repeats its edge,
            which adds no border to look at; "crop" takes the middle; "stretch" gives up its shape.
        transparency: "white" lays what is transparent on white, on which most drawings are made;
            "ignore" takes the colours below, which nobody sees and which often are all black.
        bits: how many of its 16 bits a file uses, as cameras and scanners of 10 or 12 do.
    """

    fit: str = "pad"
    transparency: str = "white"
    bits: int = 16


USUAL = Reading()


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
                raise ValueError(f"{name} could be read before, and now can not: {read}")
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
        return f"{of}: what is above {2**bits - 1:,} is white, by --bits {bits}"
    return ""


def one_line(path: Path) -> str:
    """A path that can be printed: its line ends, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


class _Decoded(NamedTuple):
    """An image and what it was.

    Attributes:
        pixels: uint8[size, size, 1 or 3].
        transparent: whether something of it was.
        oblong: whether it was no square.
        highest: of numbers of 16 bits whose range the file does not tell.
    """

    pixels: np.ndarray
    transparent: bool
    oblong: bool
    highest: int | None


def _decode_all(
    files: "Sequence[Path | BinaryIO]", image_size: int, channels: int | None, reading: Reading
) -> "Iterator[_Decoded | str]":
    _formats()  # here, as modules had better not be loaded in many threads

    def decode(files: "Sequence[Path | BinaryIO]") -> "list[_Decoded | str]":
        return [_decode(file, image_size, channels, reading) for file in files]

    # Several a task: handing one over costs as much as decoding a small image.
    tasks = [files[start : start + _TASK] for start in range(0, len(files), _TASK)]
    return itertools.chain.from_iterable(_threads().map(decode, tasks))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow has."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in (*_FORMATS, *_BY_ENDING.values()) if name in Image.OPEN)


def _decode(
    file: "Path | BinaryIO", size: int, channels: int | None, reading: Reading
) -> "_Decoded | str":
    """An image, or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    ending = file.suffix.lower() if isinstance(file, Path) else ""
    if ending in _RAW:
        return "a raw photograph, which has to be developed first"
    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            return NO_FILE  # a named pipe would be waited for
        formats = [f for f in _formats() if f in _FORMATS or f == _BY_ENDING.get(ending)]
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                return f"{image.width} x {image.height} pixels are more than Pillow deems safe"
            # Pillow has 16 bits of a PGM as I, and scales them.
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                return "numbers of 32 bits, whose range nothing tells"
            oblong, highest = image.width != image.height, None
            scaled = image.format == "PPM" and image.tile[0].codec_name != "raw"
            # A JPEG is decoded at a half to an eighth of its size, where that is enough.
            image.draft(None, (2 * size, 2 * size))
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            # The colour, or the alpha of each colour; of 16 bits Pillow has only 8.
            clear = None if image.mode.startswith("I") else image.info.get("transparency")
            image.info.clear()  # or what follows trips over odd metadata when it passes them on
            if turned:
                ImageOps.exif_transpose(image, in_place=True)
            upright: Image.Image = image
            if image.mode.startswith("I"):
                numbers = np.asarray(image)
                highest = None if scaled else int(numbers.max())
                upper = numbers >> (8 if scaled else reading.bits - 8)
                upright = Image.fromarray(np.minimum(upper, 255).astype(np.uint8))
            grey = upright.mode in ("1", "L", "LA", "La") if channels is None else channels == 1
            mode = "L" if grey else "RGB"
            alpha = _alpha(upright, clear)
            if upright.mode != mode:
                upright = upright.convert(mode)
            if alpha is not None and reading.transparency == "white":
                below, upright = upright, Image.new(mode, upright.size, "white")
                upright.paste(below, mask=alpha)
            pixels = _square(upright, size, reading.fit).reshape(size, size, -1)
            return _Decoded(pixels, alpha is not None, oblong, highest)
    except UnidentifiedImageError:
        return _unidentified(file)
    except Exception as error:  # each decoder has its own kinds
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _square(image: "Image.Image", size: int, fit: str) -> np.ndarray:
    """uint8[size, size] or uint8[size, size, 3]."""
    from PIL import Image

    width, height = image.size
    inner, box = (size, size), None
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif fit == "pad":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
    if image.size != inner or fit == "crop":
        image = image.resize(inner, Image.Resampling.BILINEAR, box)
    pixels = np.asarray(image)
    if inner == (size, size):
        return pixels
    around = [((size - n) // 2, size - n - (size - n) // 2) for n in pixels.shape[:2]]
    return np.pad(pixels, [*around, (0, 0)][: pixels.ndim], mode="edge")


def _alpha(image: "Image.Image", clear: Any) -> "Image.Image | None":
    """How much each pixel covers, if some do not cover all."""
    if image.mode in ("1", "L", "P", "RGB") and clear is not None:
        if isinstance(clear, bytes) and image.mode != "P":
            return None  # not as it should be
        if not isinstance(clear, bytes) and np.max(clear) > 255:
            return None  # of 16 bits, of which Pillow has 8
        image = image.copy()
        image.info["transparency"] = clear
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode not in ("LA", "PA", "RGBA"):
        return None
    alpha = image.getchannel("A")
    return alpha if np.asarray(alpha).min() < 255 else None


def _unidentified(file: "Path | BinaryIO") -> str:
    """Why Pillow does not know what it is."""
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            head = opened.read(12)
    else:
        file.seek(0)
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIC:
        return "HEIC, which needs pip install 'margin-jax[heic]'"
    return NO_IMAGE
