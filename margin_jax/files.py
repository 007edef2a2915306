"""Files and folders that are whole or not there, and JSON that every reader takes."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Two letters and more, and one stroke: as a path has it, s3://bucket is s3:/bucket.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(name: str, value: str | Path) -> Path:
    """A path of this machine; `name` says what for, if it is none.

    Raises:
        ValueError: for the address of a bucket or of another service, an empty text, or the home
            folder of nobody.
    """
    text = os.fspath(value)
    if not text:
        raise ValueError(f"{name} must be a path; got an empty text")
    if _ADDRESS.match(text):
        raise ValueError(
            f"{name} must be a path of this machine; got {text}: mount what is there as a folder, "
            "or copy it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        who = Path(text).parts[0]
        raise ValueError(f"{name} must be a path; there is no home folder of {who}") from None


def check_file(name: str, path: Path) -> None:
    """Refuses a path that no file can be written to, before the work.

    Raises:
        ValueError: for such a path.
    """
    real = path.resolve()  # a link stays, and its file is replaced
    if path.is_dir() or not real.parent.is_dir():
        parent = real.parent if path.is_symlink() else path.parent
        what = "that is a folder" if path.is_dir() else f"there is no folder {parent}"
        raise ValueError(f"{name} must be a file in a folder; got {path}: {what}")
    if path.exists() and not path.is_file():  # it would be replaced
        raise ValueError(f"{name} must be a file; got {path}: that is a device or a pipe")
    try:
        with tempfile.TemporaryFile(dir=real.parent):  # rights alone do not tell
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def parse_json(text: str) -> Any:
    """What strict JSON says.

    Raises:
        ValueError: for what is none: NaN and infinities, and what is nested too deeply, too.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not allowed")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a file of strict JSON says.

    Raises:
        ValueError: if it is none; the message names the file.
        OSError: if it cannot be read.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def sha256(data: bytes) -> str:
    """The digest, as text."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write in, which takes the name `path` when the block ends without error.

    Raises:
        OSError: if the disk is full, say; what had the name is kept.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it may not even have been made
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with writing(path) as file:
        file.write(text.encode())


def write_npz(file: BinaryIO, **arrays: Any) -> None:
    """Writes arrays, compressed.

    Made in memory first: on a full disk, a zip over a file fails a second time when it is
    collected, in Python 3.11.
    """
    import numpy as np  # slow to import

    made = io.BytesIO()
    np.savez_compressed(made, **arrays)
    file.write(made.getvalue())


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to write in, which takes the name `target` when the block ends without error.

    What had the name is removed then: whether it may be is for the caller to ask before. A process
    that is killed leaves `target` as it was, and what it wrote in ``TARGET.partial-...``. Killed
    between the two renames at the end, it leaves both beside where `target` was.

    Raises:
        OSError: with the name of the folder, if the disk is full, say.
    """
    target = target.resolve()  # through links, so that it is the folder that is replaced
    # Not of the process's number, which is the same each time in a container.
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    earlier = partial.with_name(f"{partial.name}-earlier")
    try:
        partial.mkdir(parents=True)
        try:
            yield partial
            if target.exists():
                target.rename(earlier)
            partial.rename(target)
        finally:
            if earlier.exists() and not target.exists():
                earlier.rename(target)
            for path in (partial, earlier):
                shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror or error}") from error


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds a line of JSON; OSError, with the file's name, if the disk is full, say."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(to_json(value) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinity, which it does not have, become null."""

    def plain(v: Any) -> Any:
        if isinstance(v, dict):
            return {key: plain(item) for key, item in v.items()}
        if isinstance(v, list | tuple):
            return [plain(item) for item in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def short(value: object) -> str:
    """What came, in a line that is not long."""
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_at_most(path: Path, most: int) -> bytes:
    """The content of a file that is a file, and no longer than it can be.

    Raises:
        ValueError: if not.
    """
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"there is no file {path.name}")
    if path.stat().st_size > most:
        size = path.stat().st_size
        raise ValueError(f"{path.name} has {size:,} bytes, and can have {most:,}")
    return path.read_bytes()
