"""Who may be in a folder: one process, until its end, whatever that is."""

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from margin_jax.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from margin_jax.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"in use by process {holder.pid} on .*another folder"),
            locked(folder),
        ):
            raise AssertionError("two at once")
        holder.kill()
    with locked(folder):  # the file that it left is no lock
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_it_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir(), "a folder that was there stays"


def test_there_are_never_two(tmp_path):
    """Though each of them removes the file, and the folder."""
    inside, most, entered = 0, 0, 0

    def enter(seed):
        nonlocal inside, most, entered
        wait = random.Random(seed)
        while entered < 300:
            try:
                with locked(tmp_path / "a" / "b"):
                    inside += 1
                    most, entered = max(most, inside), entered + 1
                    time.sleep(wait.uniform(0, 1e-4))
                    inside -= 1
            except (ValueError, FileNotFoundError):
                time.sleep(wait.uniform(0, 1e-4))

    threads = [threading.Thread(target=enter, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"without locks .*no other process"), locked(tmp_path):
        pass


def test_a_folder_that_can_not_be_made_is_an_error_and_no_endless_wait(tmp_path):
    with pytest.raises(ValueError, match="cannot write"), locked(Path("/proc/none/run")):
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "none" / "none")
    with pytest.raises(ValueError, match="symbolic links"), locked(tmp_path):
        pass
