"""One file to one picture: which formats are opened, and how a picture becomes a square."""

import contextlib
import functools
import stat
from collections.abc import Callable, Sequence
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


def one_line(path: Path) -> str:
    """A path that can be printed: its line ends, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


class Decoded(NamedTuple):
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


@functools.cache
def openable() -> tuple[str, ...]:
    """Those of the formats that this Pillow has."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in (*_FORMATS, *_BY_ENDING.values()) if name in Image.OPEN)


def decode(
    file: "Path | BinaryIO", size: int, channels: int | None, reading: Reading
) -> "Decoded | str":
    """An image, or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    ending = file.suffix.lower() if isinstance(file, Path) else ""
    if ending in _RAW:
        return "a raw photograph, which has to be developed first"
    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            return NO_FILE  # a named pipe would be waited for
        formats = [f for f in openable() if f in _FORMATS or f == _BY_ENDING.get(ending)]
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                return f"{image.width} x {image.height} pixels are more than Pillow deems safe"
            # Pillow has 16 bits of a PGM as I, and scales them.
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                return "32-bit numbers of unknown range"
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
            return Decoded(pixels, alpha is not None, oblong, highest)
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
