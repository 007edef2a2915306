"""Saving and restoring, whole or not at all."""

import logging
import os
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_jax.runs.folder import is_saved
from margin_jax.training.checkpoint import Checkpoint

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3), "n": jnp.int32(4)}


def test_the_newest_save_comes_back_as_it_was(tmp_path):
    record = {"count": 2**70, "loss": 0.1, "nothing": None, "names": ["é"]}
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.step is None
        checkpoint.save(1, {"a": {**TREE, "n": jnp.int32(1)}, "b": TREE}, {})
        checkpoint.save(2, {"a": TREE, "b": TREE}, record)
    like = jax.tree.map(jnp.zeros_like, TREE)
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.step == 2
        arrays, told = checkpoint.restore({"a": like, "b": like})
        some, _ = checkpoint.restore({"b": like})
    assert told == record
    for restored in (arrays["a"], arrays["b"], some["b"]):
        np.testing.assert_array_equal(restored["w"], TREE["w"])
        assert restored["n"] == 4
        assert restored["key"] == TREE["key"]
    assert list(some) == ["b"]
    kept = [path.name for path in (tmp_path / "c").iterdir()]
    assert kept == ["2"]


@pytest.mark.parametrize("leave", [Path.mkdir, Path.touch, lambda p: p.symlink_to("nowhere")])
def test_whether_a_run_is_saved_is_said_without_opening_it(tmp_path, leave):
    """Its weights are not drawn then, so both must mean the same."""
    saves = tmp_path / "checkpoints"
    saves.mkdir()
    leave(saves / "3")
    with Checkpoint(saves) as checkpoint:
        assert is_saved(tmp_path) == (checkpoint.step is not None)


def test_arrays_keep_their_types(tmp_path):
    types = ("float32", "float16", "bfloat16", "int32", "uint32", "uint8", "bool")
    tree = {name: jnp.arange(3).astype(name) for name in types} | {"key": jax.random.key(1)}
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"a": tree}, {})
        checkpoint.wait()
        arrays, _ = checkpoint.restore({"a": tree})
    assert {name: leaf.dtype for name, leaf in arrays["a"].items()} == {
        name: leaf.dtype for name, leaf in tree.items()
    }
    assert {type(arrays["a"][name]) for name in types} == {np.ndarray}


@pytest.mark.parametrize(
    "name",
    ["lr[0.1]", "a*b", "**", "what?", "50%", "a#b", "a|b@c", "{x}", "图片", "a\udcffb", "\n"],
)
def test_any_path_will_do(name, tmp_path):
    folder = tmp_path / name / "c"
    with Checkpoint(folder) as checkpoint:
        checkpoint.save(1, {"a": TREE}, {})
        checkpoint.save(2, {"a": TREE}, {})
    (tmp_path / name).rename(tmp_path / "plain")  # it is there, and like any other
    with Checkpoint(tmp_path / "plain" / "c", read_only=True) as checkpoint:
        arrays, _ = checkpoint.restore({"a": TREE})
        assert checkpoint.step == 2
    np.testing.assert_array_equal(arrays["a"]["w"], TREE["w"])
    assert [path.name for path in (tmp_path / "plain" / "c").iterdir()] == ["2"]


def test_a_save_that_can_not_be_read_is_loud(tmp_path, monkeypatch):
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"a": TREE}, {})
        finish = checkpoint._manager.wait_until_finished

        def lose():
            finish()
            shutil.rmtree(tmp_path / "c" / "1" / "arrays" / "d")

        monkeypatch.setattr(checkpoint._manager, "wait_until_finished", lose)
        with pytest.raises(OSError, match=r"cannot read what was saved in .*c: "):
            checkpoint.wait()
        monkeypatch.undo()


def test_what_is_not_what_was_saved_is_refused(tmp_path, monkeypatch):
    """Another weight, or another figure, as a flipped bit makes them."""
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"a": TREE, "b": TREE}, {"loss": 0.25})
        checkpoint.wait()
        restore = checkpoint._manager.restore

        def flip(*args, **kwargs):
            found = restore(*args, **kwargs)
            leaf = found["arrays"]["a"]["w"]
            leaf.view(np.uint8).reshape(-1)[3] ^= 4
            return found

        monkeypatch.setattr(checkpoint._manager, "restore", flip)
        with pytest.raises(ValueError, match=r"damaged.*not what was saved: arrays/a\)"):
            checkpoint.restore({"a": TREE})
        monkeypatch.undo()
        files = (tmp_path / "c" / "1" / "record").iterdir()
        (file,) = [file for file in files if "0.25" in file.read_text()]
        file.write_text(file.read_text().replace("0.25", "0.75"))
        with pytest.raises(ValueError, match=r"damaged.*not what was saved: record\)"):
            checkpoint.restore({"b": TREE})


def test_reading_leaves_alone_what_another_process_saves(tmp_path, caplog):
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"a": TREE}, {})
    half = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    with Checkpoint(tmp_path / "c", read_only=True) as checkpoint:
        checkpoint.restore({"a": TREE})
    assert half.is_dir()
    assert caplog.text == "", "advice of Orbax's, for nobody"


def test_closed_it_leaves_the_logs_of_others_alone(tmp_path):
    before = [list(logging.getLogger(name).filters) for name in ("absl", "asyncio")]
    hook = sys.unraisablehook
    with Checkpoint(tmp_path / "checkpoints") as checkpoint:
        checkpoint.save(1, {"a": TREE}, {})
    assert [logging.getLogger(name).filters for name in ("absl", "asyncio")] == before
    assert sys.unraisablehook is hook


def test_what_a_kill_or_a_crash_leaves_is_cleared_without_a_word(tmp_path, caplog):
    folder = tmp_path / "c"
    with Checkpoint(folder) as checkpoint:
        checkpoint.save(3, {"a": TREE}, {"n": 1})
    for name in ("1", "2", "4.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "3", folder / name)
    (folder / "1" / "_CHECKPOINT_METADATA").write_bytes(b"")
    (folder / "2" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(folder / "2" / "arrays")
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.step == 3
        assert checkpoint.restore({"a": TREE})[1] == {"n": 1}
        checkpoint.save(4, {"a": TREE}, {"n": 2})
    assert {path.name for path in folder.iterdir()} == {"4"}
    assert caplog.text == "", "advice of Orbax's, for nobody"


def test_another_structure_is_a_sentence(tmp_path, capfd):
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"a": TREE}, {})
        checkpoint.wait()
        for other in ({"v": TREE["w"]}, {**TREE, "w": jnp.zeros((5, 5))}):
            with pytest.raises(ValueError, match="of another network, optimiser, schedule"):
                checkpoint.restore({"a": other})
        with pytest.raises(ValueError, match="of another network, optimiser, schedule"):
            checkpoint.restore({"b": TREE})
    assert capfd.readouterr().err == "", "Orbax's threads have their say too"


def test_a_save_that_fails_is_loud_and_leaves_the_one_before(tmp_path, capfd):
    """As on a full disk: no file of this process may grow beyond a limit."""
    big = {"a": {"w": jax.random.normal(jax.random.key(0), (300_000,))}}
    like = {"a": {"w": jnp.zeros(300_000)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, big, {"first": True})
        checkpoint.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            checkpoint.save(2, big, {})
            with pytest.raises(OSError, match=r"cannot save .*File too large"):
                checkpoint.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.step == 1
        arrays, record = checkpoint.restore(like)
    np.testing.assert_array_equal(arrays["a"]["w"], big["a"]["w"])
    assert record == {"first": True}
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_waits_until_a_save_is_whole(tmp_path, monkeypatch):
    with Checkpoint(tmp_path / "c") as checkpoint:
        save, finished = checkpoint._manager.save, []

        def interrupted(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            save(*args, **kwargs)
            finished.append(True)

        monkeypatch.setattr(checkpoint._manager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(1, TREE, {})
        assert finished
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        # Whoever listened before hears of it, not the default.
        told = []
        before = signal.signal(signal.SIGINT, lambda *_: told.append(True))
        checkpoint.save(5, TREE, {})
        signal.signal(signal.SIGINT, before)
        assert told == [True]
        monkeypatch.undo()
        thread = threading.Thread(target=checkpoint.save, args=(6, TREE, {}))
        thread.start()
        thread.join()
        checkpoint.wait()
        assert checkpoint.step == 6
