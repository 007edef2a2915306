"""Files and folders that are whole or not there."""

import os

import pytest

from margin_jax.cli.options import saving
from margin_jax.files import check_file, whole_folder


def fail_in(place):
    with place:
        raise OSError("the disk is full")


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    real, link = tmp_path / "place" / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    with pytest.raises(ValueError, match=r"there is no folder .*place"):
        check_file("out", link)
    real.parent.mkdir()
    for content in (b"old", b"new"):
        check_file("out", link)
        with saving(link) as file:
            file.write(content)
    assert link.is_symlink()
    assert real.read_text() == "new"
    with pytest.raises(OSError, match="the disk is full"):
        fail_in(saving(link))
    assert real.read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"place", "real.json", "link.json"}


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", type(tmp_path)("/dev/null")):
        with pytest.raises(ValueError, match=r"out must be a file; got .*: that is a device or a"):
            check_file("out", path)


def test_what_a_killed_process_left_is_in_nobody_s_way(tmp_path):
    """In a container the next one has the same number."""
    (tmp_path / f"model.partial-{os.getpid()}").mkdir()
    for text in ("first", "second"):
        with whole_folder(tmp_path / "model") as made:
            (made / "file").write_text(text)
        assert (tmp_path / "model" / "file").read_text() == text
    with pytest.raises(OSError, match=r"cannot write .*model: the disk is full"):
        fail_in(whole_folder(tmp_path / "model"))
    assert (tmp_path / "model" / "file").read_text() == "second"
    assert len(list(tmp_path.iterdir())) == 2
