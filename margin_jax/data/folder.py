"""An image folder: every folder that holds images is one identity, named by its path."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.dataset import ImageDataset
from margin_jax.data.images import (
    NO_FILE,
    NO_IMAGE,
    PICTURES,
    USUAL,
    Images,
    Reading,
    load_images,
    one_line,
)

DEFAULT_SIZE = 64
# What systems and tools keep beside a person's files, often with copies of the pictures; and all
# that begins with a dot. In small letters.
_SYSTEM = (
    *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db"),
    *("desktop.ini", "__macosx", "network trash folder", "temporary items", "@eadir", "#recycle"),
    *("#snapshot", "@recycle", "@recently-snapshot", "@tmp", "lost+found", "__pycache__"),
)


class Found(NamedTuple):
    """Image files that were read.

    Attributes:
        images: as of :func:`~margin_jax.data.images.load_images`.
        kept: the paths of those.
        skipped: "path: reason" of pictures that can not be read.
        left_out: "path: reason" of files that are no pictures.
        notes: what was done to some of them, for a person.
    """

    images: Images
    kept: list[Path]
    skipped: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def load(
    data_dir: Path,
    image_size: int = DEFAULT_SIZE,
    strict: bool = False,
    channels: int | None = None,
    memory_limit: float = float("inf"),
    reading: Reading = USUAL,
) -> ImageDataset:
    """Every image below `data_dir`, as :func:`~margin_jax.data.images.load_images` has it.

    Folders may be nested (``alphabet/character/01.png``) and links. Names are sorted, so the order
    does not depend on the file system. What is hidden or the system's, what is no picture, and what
    lies in no identity's folder is left out and listed.

    Args:
        data_dir: the folder.
        image_size: height and width in pixels.
        strict: an unreadable picture is an error instead of being skipped and listed.
        channels: 1 (grey) or 3 (RGB), whatever the files are. Default: grey if all of them are.
        memory_limit: in bytes; larger sets are decoded anew whenever images are asked for.
        reading: what is done to the images on the way.

    Raises:
        ValueError: no such folder, no readable image, fewer than two identities, or (strict) an
            unreadable file.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise ValueError(f"data_dir must be a folder of images; there is no folder {root}")
    files, left_out = find_files(root)
    paths = [path for path in files if path.parent != root]
    left_out += [f"{one_line(path)}: in no identity's folder" for path in set(files) - set(paths)]
    if not paths:
        raise ValueError(
            f"no images below {root}: expected a folder for each identity with pictures in it"
        )
    found = read_images(paths, image_size, channels, memory_limit, reading)
    skipped = _below(root, found.skipped)
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable file(s) below {root}, first {skipped[0]}")
    identity_of = [str(path.parent.relative_to(root)) for path in found.kept]
    identities = sorted(set(identity_of))
    if len(identities) < 2:
        raise ValueError(
            f"expected at least two identities with readable images below {root}; "
            f"got {len(identities)}"
            + (f" (first unreadable file: {skipped[0]})" if skipped else "")
        )
    index = {identity: i for i, identity in enumerate(identities)}
    return ImageDataset(
        images=found.images,
        labels=np.array([index[identity] for identity in identity_of], np.int32),
        identities=tuple(identities),
        files=tuple(str(path.relative_to(root)) for path in found.kept),
        groups=np.arange(len(identities), dtype=np.int32),
        skipped=skipped,
        left_out=_below(root, (*sorted(left_out), *found.left_out)),
        notes=found.notes,
    )


def find_files(root: Path) -> tuple[list[Path], list[str]]:
    """Every file below a folder, sorted by path, but for what is hidden or the system's.

    A folder that links reach more than once counts once, by the first of its paths.

    Returns:
        ``(files, "path: reason" of each hidden file or folder)``.

    Raises:
        OSError: if a folder can not be listed, whose images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"can not list {one_line(error.filename)}: {error.strerror}") from error

    found, left_out, seen = list[Path](), list[str](), set[str]()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *names) if _is_hidden(name)]
        left_out += [f"{one_line(Path(folder, name))}: hidden or of the system" for name in hidden]
        folders[:] = sorted(set(folders) - set(hidden))  # the order they are walked in
        found += [Path(folder, name) for name in names if name not in hidden]
    return sorted(found), sorted(left_out)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _below(root: Path, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text.removeprefix(f"{one_line(root)}/") for text in texts)


def read_images(
    paths: Sequence[Path],
    image_size: int,
    channels: int | None = None,
    memory_limit: float = float("inf"),
    reading: Reading = USUAL,
) -> Found:
    """Image files, as :func:`~margin_jax.data.images.load_images` has them."""
    loaded = load_images(
        lambda rows: [paths[row] for row in rows],
        len(paths),
        image_size,
        channels,
        memory_limit,
        reading,
    )
    # A note or a table beside the pictures is not a picture that was lost.
    other = {
        row
        for row, reason in loaded.unread.items()
        if reason in (NO_IMAGE, NO_FILE) and paths[row].suffix.lower() not in PICTURES
    }
    reasons = {row: f"{one_line(paths[row])}: {why}" for row, why in loaded.unread.items()}
    return Found(
        loaded.images,
        [paths[row] for row in loaded.kept],
        tuple(text for row, text in reasons.items() if row not in other),
        tuple(text for row, text in reasons.items() if row in other),
        loaded.notes,
    )
