"""An image folder: every folder that holds images is one identity, named by its path."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from margin_jax.data.dataset import ImageDataset
from margin_jax.data.images import Images, load_images, one_line

DEFAULT_SIZE = 64
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load(
    data_dir: Path,
    image_size: int = DEFAULT_SIZE,
    strict: bool = False,
    channels: int | None = None,
    memory_limit: float = float("inf"),
) -> ImageDataset:
    """Every image below `data_dir`, as :func:`~margin_jax.data.images.load_images` has it.

    Folders may be nested (``alphabet/character/01.png``) and links. Names are sorted, so the order
    does not depend on the file system.

    Args:
        data_dir: the folder.
        image_size: height and width in pixels.
        strict: an unreadable file is an error instead of being skipped and listed.
        channels: 1 (grey) or 3 (RGB), whatever the files are. Default: grey if all of them are.
        memory_limit: in bytes; larger sets are decoded anew whenever images are asked for.

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
    images, kept, unread = read_images(paths, image_size, channels, memory_limit)
    skipped = tuple(text.removeprefix(f"{one_line(root)}/") for text in unread)
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
        images=images,
        labels=np.array([index[identity] for identity in identity_of], np.int32),
        identities=tuple(identities),
        files=tuple(str(path.relative_to(root)) for path in kept),
        groups=np.arange(len(identities), dtype=np.int32),
        skipped=skipped,
    )


def find_images(root: Path) -> list[Path]:
    """Every file below a folder that is named like an image, sorted by path.

    A folder that links reach more than once counts once, by the first of its paths.

    Raises:
        OSError: if a folder can not be listed, whose images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"can not list {one_line(error.filename)}: {error.strerror}") from error

    found, seen = [], set[str]()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        folders.sort()  # the order they are walked in
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        found += [Path(folder, name) for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(found)


def read_images(
    paths: Sequence[Path],
    image_size: int,
    channels: int | None = None,
    memory_limit: float = float("inf"),
) -> tuple[Images, list[Path], tuple[str, ...]]:
    """Image files, as :func:`~margin_jax.data.images.load_images` has them.

    Returns:
        ``(images, paths of those, "path: reason" of the others)``.
    """
    images, kept, unread = load_images(
        lambda rows: [paths[row] for row in rows], len(paths), image_size, channels, memory_limit
    )
    skipped = tuple(f"{one_line(paths[row])}: {reason}" for row, reason in unread.items())
    return images, [paths[row] for row in kept], skipped
