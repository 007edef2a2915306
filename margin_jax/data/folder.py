"""An image folder: every folder that holds images is one identity, named by its path."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from margin_jax.data.dataset import ImageDataset

DEFAULT_SIZE = 64
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load(
    data_dir: Path,
    image_size: int = DEFAULT_SIZE,
    strict: bool = False,
    channels: int | None = None,
) -> ImageDataset:
    """Reads, converts and resizes every image below `data_dir`.

    Folders may be nested (``alphabet/character/01.png``). Names are sorted, so the order does not
    depend on the file system. Images are resized to a square without keeping their aspect ratio.
    They are kept grey if every one of them is grey.

    Args:
        data_dir: the folder.
        image_size: height and width in pixels.
        strict: an unreadable file is an error instead of being skipped and listed.
        channels: 1 (grey) or 3 (RGB), whatever the files are.

    Raises:
        ValueError: no such folder, no readable image, fewer than two identities, or (strict) an
            unreadable file.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise ValueError(f"data_dir must be a folder of images; there is no folder {root}")
    paths = [path for path in find_images(root) if path.parent != root]
    if not paths:
        raise ValueError(
            f"no images below {root}: expected a folder for each identity with files "
            f"ending in {', '.join(EXTENSIONS)}"
        )
    read, kept, unread = read_images(paths, image_size, channels)
    skipped = tuple(text.removeprefix(f"{root}/") for text in unread)
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable file(s) below {root}, first {skipped[0]}")
    identity_of = [str(path.parent.relative_to(root)) for path in kept]
    identities = sorted(set(identity_of))
    if len(identities) < 2:
        raise ValueError(
            f"expected at least two identities with readable images below {root}; "
            f"got {len(identities)}"
            + (f" (first unreadable file: {skipped[0]})" if skipped else "")
        )
    index = {identity: i for i, identity in enumerate(identities)}
    return ImageDataset(
        images=read,
        labels=np.array([index[identity] for identity in identity_of], np.int32),
        identities=tuple(identities),
        files=tuple(str(path.relative_to(root)) for path in kept),
        groups=np.arange(len(identities), dtype=np.int32),
        skipped=skipped,
    )


def find_images(root: Path) -> list[Path]:
    """Every file below a folder that is named like an image, sorted by path."""
    found = (
        Path(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )
    return sorted(found)


def read_images(
    paths: Sequence[Path], image_size: int, channels: int | None = None
) -> tuple[np.ndarray, list[Path], tuple[str, ...]]:
    """Decodes and resizes images in threads.

    Args:
        paths: the files.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB). Default: grey if every one of them is grey.

    Returns:
        ``(images uint8[n, size, size, channels], paths of those, "path: reason" of the others)``.
    """
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda path: _read(path, image_size, channels), paths))
    good, skipped = [], []
    for path, image in zip(paths, read, strict=True):
        if isinstance(image, str):
            skipped.append(f"{path}: {image}")
        else:
            good.append((path, image))
    depth = channels or max((image.shape[-1] for _, image in good), default=1)
    images = np.empty((len(good), image_size, image_size, depth), np.uint8)
    for row, (_, image) in zip(images, good, strict=True):
        row[:] = image  # a grey image fills all channels alike
    return images, [path for path, _ in good], tuple(skipped)


def _read(path: Path, size: int, channels: int | None) -> "np.ndarray | str":
    """uint8[size, size, 1 or 3], or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):  # 16 bits and more: keep the high byte
                values = np.asarray(image, np.float64) / 257.0
                image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
            grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            image = image.convert("L" if grey else "RGB")
            array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        return "not an image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return array.reshape(size, size, -1)
