"""Save and restore a pytree by epoch, with Orbax behind it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoint:
    """The newest pytree saved in a folder; each save replaces the one before.

    A save is atomic (a killed process leaves the old one or the new one) and returns before the
    disk is done; :meth:`close`, or leaving a ``with`` block, waits for it.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    @property
    def epoch(self) -> int | None:
        """The epoch of what is saved; None if nothing is."""
        epoch: int | None = self._manager.latest_step()
        return epoch

    def save(self, epoch: int, tree: Any) -> None:
        """Saves the arrays of `tree` as those of `epoch`, unless that epoch is already there.

        It is after a resume, if the process was killed between two of its saves.
        """
        with _whole():
            if epoch != self.epoch:
                self._manager.save(epoch, args=ocp.args.StandardSave(tree))

    def restore(self, like: Any) -> Any:
        """What was saved, in the structure, types and placement of `like`.

        Raises:
            ValueError: if what was saved has another structure or is damaged.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            with _whole():
                # Orbax finds out as well, but in many threads, each with its own traceback.
                saved = self._manager.item_metadata(self.epoch)
                if _shapes(saved.tree) != _shapes(like):
                    raise ValueError("other names or shapes")
                return self._manager.restore(self.epoch, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(
                f"can not restore {self._manager.directory}: it is damaged, or another network or "
                "another version saved it"
            ) from error

    def wait(self) -> None:
        """Returns when everything saved is on the disk."""
        with _whole():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the disk, too."""
        with _whole():
            self._manager.wait_until_finished()
            self._manager.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name, whatever the containers; a random key is saved as its data."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        shapes[jax.tree_util.keystr(path, simple=True, separator="/")] = tuple(leaf.shape)
    return shapes


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Keeps Ctrl-C waiting for a moment: in the middle of it Orbax leaves its threads astray."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set():
        raise KeyboardInterrupt
