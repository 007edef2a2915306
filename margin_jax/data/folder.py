"""An image folder: every folder that holds images is one identity, named by its path."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from margin_jax.data.dataset import ImageDataset

DEFAULT_SIZE = 64
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load(data_dir: Path, image_size: int = DEFAULT_SIZE, strict: bool = False) -> ImageDataset:
    """Reads, converts and resizes every image below `data_dir`.

    Folders may be nested (``alphabet/character/01.png``). Names are sorted, so the order does not
    depend on the file system. Images are resized to a square without keeping their aspect ratio.
    They are kept grey if every one of them is grey.

    Args:
        data_dir: the folder.
        image_size: height and width in pixels.
        strict: an unreadable file is an error instead of being skipped and listed.

    Raises:
        ValueError: no such folder, no readable image, fewer than two identities, or (strict) an
            unreadable file.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise ValueError(f"data_dir must be a folder of images; there is no folder {root}")
    paths = [
        Path(folder, name)
        for folder, subfolders, names in _walk(root)
        for name in names
        if name.lower().endswith(EXTENSIONS) and Path(folder) != root
    ]
    if not paths:
        raise ValueError(
            f"no images below {root}: expected a folder for each identity with files "
            f"ending in {', '.join(EXTENSIONS)}"
        )
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda path: _read(path, image_size), paths))

    names = [str(path.relative_to(root)) for path in paths]
    skipped = tuple(
        f"{name}: {image}"
        for name, image in zip(names, read, strict=True)
        if isinstance(image, str)
    )
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable file(s) below {root}, first {skipped[0]}")
    kept = [
        (name, str(path.parent.relative_to(root)), image)
        for name, path, image in zip(names, paths, read, strict=True)
        if not isinstance(image, str)
    ]
    identities = sorted({identity for _, identity, _ in kept})
    if len(identities) < 2:
        raise ValueError(
            f"expected at least two identities with readable images below {root}; "
            f"got {len(identities)}"
            + (f" (first unreadable file: {skipped[0]})" if skipped else "")
        )
    index = {identity: i for i, identity in enumerate(identities)}
    channels = max(image.shape[-1] for _, _, image in kept)
    return ImageDataset(
        images=np.stack([np.broadcast_to(im, (*im.shape[:2], channels)) for _, _, im in kept]),
        labels=np.array([index[identity] for _, identity, _ in kept], np.int32),
        identities=tuple(identities),
        files=tuple(name for name, _, _ in kept),
        groups=np.arange(len(identities), dtype=np.int32),
        skipped=skipped,
    )


def _walk(root: Path) -> "list[tuple[str, list[str], list[str]]]":
    return sorted((folder, sorted(subs), sorted(names)) for folder, subs, names in os.walk(root))


def _read(path: Path, size: int) -> "np.ndarray | str":
    """uint8[size, size, 1 or 3], or why it cannot be had."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):  # 16 bits and more: keep the high byte
                values = np.asarray(image, np.float64) / 257.0
                image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
            grey = image.mode in ("1", "L", "LA")
            image = image.convert("L" if grey else "RGB")
            array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError:
        return "not an image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return array.reshape(size, size, -1)
