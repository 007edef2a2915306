"""Arrays of an .npz file, mapped where they lie: what ``np.load`` would read into memory."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

_LOCAL = struct.Struct("<4s22xHH")  # the head of a file inside: its sign, two lengths at its end
_READ = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_Form: TypeAlias = tuple[tuple[int, ...], bool, np.dtype]


def read_npz(path: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the arrays that a file has, and what else is in it.

    Of a file that ``np.savez`` wrote they are mapped: rows are read when they are asked for. What
    ``np.savez_compressed`` wrote is decompressed into memory. Nothing is unpickled.

    Raises:
        ValueError: for a file that cannot be read, is no .npz, is damaged, or holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [member.removesuffix(".npy") for member in archive.namelist()]
            found = {
                name: _read(path, archive, archive.getinfo(f"{name}.npy"))
                for name in names
                if f"{name}.npy" in archive.namelist()
            }
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no .npz file: {error}") from error
    return found, [name for name in inside if name not in found]


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    try:
        with archive.open(member) as file:
            (shape, by_columns, dtype), head = _form(file), file.tell()
            size = dtype.itemsize * int(np.prod(shape, dtype=object))
            if head + size != member.file_size:
                raise ValueError(f"its shape {shape} is not what it holds")
            if size == 0:
                return np.empty(shape, dtype)
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                values = np.frombuffer(file.read(), dtype)
                return values.reshape(shape, order="F" if by_columns else "C")
    except ValueError as error:
        raise ValueError(f"cannot read {member.filename} of {path}: {error}") from error
    with open(path, "rb") as whole:
        whole.seek(member.header_offset)
        sign, name, more = _LOCAL.unpack(whole.read(_LOCAL.size))
        start = member.header_offset + _LOCAL.size + name + more
        if sign != b"PK\3\4" or start + member.file_size > path.stat().st_size:
            raise zipfile.BadZipFile(f"{member.filename} is not where it should be")
    mapped = np.memmap(path, dtype, "r", start + head, shape, "F" if by_columns else "C")
    return np.asarray(mapped)


def _form(file: IO[bytes]) -> _Form:
    """Shape, whether columns come first, and dtype.

    Raises:
        ValueError: for another version of the format, or for objects, which would be unpickled.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READ:
        raise ValueError(f"version {version} of the format is not one for plain arrays")
    shape, by_columns, dtype = _READ[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled; save plain arrays")
    return shape, by_columns, dtype
