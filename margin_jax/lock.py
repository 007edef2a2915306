"""One process at a time in a folder.

The lock is the system's own (``flock``), which a process that dies gives back whatever it died of.
It holds between processes of one machine on every file system, and between machines on those that
share locks: NFS with a lock service (a machine that vanishes is given up by the server, after its
lease), SMB, Lustre mounted with ``flock``. Elsewhere (``nolock``, ``local_lock``, Lustre with
``localflock``, most buckets mounted as folders) machines do not see each other's.
"""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

LOCK = ".margin-jax.lock"
# Others may have, and remove, the file so often before this process gives up.
_TRIES = 100
# What a file system says that has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other processes from locking it; removes it if it stays empty.

    Raises:
        ValueError: if another process has locked it; if it cannot be written.

    Warns:
        UserWarning: on a file system that has no locks.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        file = _open(folder)
    except OSError as error:
        raise ValueError(f"cannot write the folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        # Before the lock is given back, or it could be another process's file that is removed.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(file)
        with contextlib.suppress(OSError):  # the first that is not empty
            for path in absent:
                path.rmdir()


def _open(folder: Path) -> int:
    """The locked file, as the number that the system gives it."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # who had it has removed it, or the folder
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _lock(file, folder)
                if os.path.samestat(os.fstat(file), os.stat(folder / LOCK)):
                    _sign(file)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
    raise FileNotFoundError(errno.ENOENT, "it cannot be made", str(folder))


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        raise ValueError(
            f"{folder} is in use by {holder}: wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{folder} lies on a file system without locks ({error.strerror}): make sure that no "
            "other process uses it",
            stacklevel=2,
        )


def _sign(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk, say: it is only for people
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
