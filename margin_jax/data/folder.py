"""An image folder: every folder that holds images is one identity, named by its path."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import NO_FILE, NO_IMAGE, PICTURES, USUAL, Reading, one_line
from margin_jax.data.images import Images, load_images

DEFAULT_SIZE = 64
# What systems and tools keep beside a person's files, often with copies of the pictures; and all
# that begins with a dot. In small letters.
_SYSTEM = (
    *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db"),
    *("desktop.ini", "__macosx", "network trash folder", "temporary items", "@eadir", "#recycle"),
    *("#snapshot", "@recycle", "@recently-snapshot", "@tmp", "lost+found", "__pycache__"),
)


_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
REPEATED_NAMES = ("error", "merge", "separate")
_PARTS = {
    *("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"),
    *("query", "gallery", "probe"),
}


class Found(NamedTuple):
    """Image files that were read.

    Attributes:
        images: as of :func:`~margin_jax.data.images.load_images`.
        kept: the paths of those.
        skipped: "path: reason" of pictures that cannot be read.
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
    repeated_names: str = "error",
) -> Dataset:
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
        repeated_names: what folders of one name below different ones are, such as train/anna and
            val/anna: an "error", as nobody may be on both sides of a split; "merge", one identity;
            or "separate", several. Folders that are only numbered (greek/character01) are several.

    Raises:
        ValueError: no such folder, no readable image, fewer than two identities, or (strict) an
            unreadable file.
    """
    root = Path(data_dir)
    check_folder("data_dir", root)
    files, left_out = find_files(root)
    paths = [path for path in files if path.parent != root]
    left_out += [f"{one_line(path)}: in no identity's folder" for path in set(files) - set(paths)]
    if not paths:
        flat = (
            f"; {len(files):,} files lie in no folder of their own: move each identity's into one, "
        )
        flat += "or give the folder above if this is one identity's"
        raise ValueError(
            f"no images below {root}: expected a folder for each identity with its pictures in it, "
            f"such as {Path(root.name, 'anna', '1.jpg')}{flat if files else ''}"
        )
    found = read_images(paths, image_size, channels, memory_limit, reading)
    skipped = _below(root, found.skipped)
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable file(s) below {root}, first {skipped[0]}")
    folders = [path.parent.relative_to(root) for path in found.kept]
    named, notes = _name(sorted(set(folders)), repeated_names)
    notes += _nested(named)
    identity_of = [named[folder] for folder in folders]
    identities = sorted(set(identity_of))
    if len(identities) < 2:
        raise ValueError(
            f"expected at least two identities with readable images below {root}; "
            f"got {len(identities)}"
            + (f" (first unreadable file: {skipped[0]})" if skipped else "")
        )
    index = {identity: i for i, identity in enumerate(identities)}
    return Dataset(
        examples=found.images,
        labels=np.array([index[identity] for identity in identity_of], np.int32),
        identities=tuple(identities),
        files=tuple(str(path.relative_to(root)) for path in found.kept),
        groups=np.arange(len(identities), dtype=np.int32),
        skipped=skipped,
        left_out=_below(root, (*sorted(left_out), *found.left_out)),
        notes=(*found.notes, *notes),
    )


def _name(folders: Sequence[Path], rule: str) -> tuple[dict[Path, str], list[str]]:
    """The identity of each folder, and what to say of them."""
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        # Systems write one name with composed or with single accents.
        by_name.setdefault(unicodedata.normalize("NFC", folder.name), []).append(folder)
    repeated = {name: alike for name, alike in by_name.items() if len(alike) > 1}
    named = {folder: str(folder) for folder in folders}
    if not repeated:
        return named, []
    alike = next(iter(repeated.values()))
    some = f"{len(repeated):,} names of folders are there more than once, such as " + " and ".join(
        one_line(folder) for folder in alike[:2]
    )
    if rule == "merge":
        named |= {folder: name for name, alike in repeated.items() for folder in alike}
        return named, [f"{some}: each name is one identity"]
    if rule == "error" and not _only_numbered(folders):
        raise ValueError(
            f"{some}: --repeated-names merge makes one identity of each name, --repeated-names "
            "separate makes one of each folder"
        )
    return named, [f"{some}: each folder is an identity"]


def _nested(named: dict[Path, str]) -> list[str]:
    """What to say of identities whose folder lies in another's."""
    nested = [
        (folder, above)
        for folder in named
        for above in folder.parents
        if named.get(above, named[folder]) != named[folder]
    ]
    if not nested:
        return []
    count, (inner, outer) = len({folder for folder, _ in nested}), map(one_line, nested[0])
    return [
        f"{count:,} folder(s) of images lie in another one, such as {inner} in {outer}: each is an "
        "identity"
    ]


def _only_numbered(folders: Sequence[Path]) -> bool:
    """Whether all names count within their folder, as characters of alphabets do.

    Names such as character01 to character26 in each say nothing of who they are. Parts of a split
    are another matter: there, a number is the same class in each.
    """
    numbers: dict[tuple[Path, str], list[int]] = {}
    for folder in folders:
        counted = re.fullmatch(r"(.*\D)(\d{1,9})", folder.name, re.ASCII)
        if counted is None or _PARTS & {part.lower() for part in folder.parts}:
            return False
        numbers.setdefault((folder.parent, counted[1]), []).append(int(counted[2]))
    return all(
        sorted(n) in (list(range(len(n))), list(range(1, len(n) + 1))) for n in numbers.values()
    )


def check_folder(what: str, path: Path) -> None:
    """Whether there is a folder.

    Raises:
        ValueError: saying what there is instead.
    """
    if path.is_dir():
        return
    if not path.exists():
        raise ValueError(f"{what} must be a folder of images; there is no folder {path}")
    if path.name.lower().endswith(_ARCHIVES):
        kind = "an archive, which has to be unpacked"
    else:
        kind = "a file: give the folder that it lies in, or one above"
    raise ValueError(f"{what} must be a folder of images; {path} is {kind}")


def find_files(root: Path) -> tuple[list[Path], list[str]]:
    """Every file below a folder, sorted by path, but for what is hidden or the system's.

    A folder that is reached more than once counts once: by its own path, or else the first link.

    Returns:
        ``(files, "path: reason" of each hidden file or folder)``.

    Raises:
        OSError: if a folder cannot be listed, whose images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"cannot list {one_line(error.filename)}: {error.strerror}") from error

    found, left_out, seen = list[Path](), list[str](), set[str]()
    starts = [root]  # and then the links that are met
    for start in starts:
        for folder, folders, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            hidden = [name for name in (*folders, *names) if _is_hidden(name)]
            left_out += [
                f"{one_line(Path(folder, name))}: hidden or of the system" for name in hidden
            ]
            folders[:] = sorted(set(folders) - set(hidden))  # the order they are walked in
            starts += [path for name in folders if (path := Path(folder, name)).is_symlink()]
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
