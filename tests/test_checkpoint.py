"""Saving and restoring, whole or not at all."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_jax.checkpoint import Checkpoint

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3), "n": jnp.int32(4)}


def test_the_newest_save_comes_back_as_it_was(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.epoch is None
        checkpoint.save(1, {**TREE, "n": jnp.int32(1)})
        checkpoint.save(2, TREE)
    with Checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.epoch == 2
        restored = checkpoint.restore(jax.tree.map(jnp.zeros_like, TREE))
    np.testing.assert_array_equal(restored["w"], TREE["w"])
    assert restored["n"] == 4
    assert restored["key"] == TREE["key"]
    kept = [path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()]
    assert kept == ["2"]


def test_another_structure_is_a_sentence(tmp_path):
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, TREE)
        checkpoint.wait()
        for other in ({"v": TREE["w"]}, {**TREE, "w": jnp.zeros((5, 5))}):
            with pytest.raises(ValueError, match="another network or another version"):
                checkpoint.restore(other)


def test_ctrl_c_waits_until_a_save_is_whole(tmp_path, monkeypatch):
    with Checkpoint(tmp_path / "c") as checkpoint:
        save, finished = checkpoint._manager.save, []

        def interrupted(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            save(*args, **kwargs)
            finished.append(True)

        monkeypatch.setattr(checkpoint._manager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(1, TREE)
        assert finished
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.undo()
        thread = threading.Thread(target=checkpoint.save, args=(2, TREE))
        thread.start()
        thread.join()
        checkpoint.wait()
        assert checkpoint.epoch == 2
