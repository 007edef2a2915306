"""Save and restore a training by step, with Orbax behind it."""

import contextlib
import functools
import gc
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

T = TypeVar("T")

ARRAYS, RECORD = "arrays", "record"
_MOMENT = 0.5  # seconds


class SaveError(OSError):
    """What Orbax, TensorStore or the operating system say, in one line."""


class Checkpoint:
    """The newest save in a folder: a pytree of arrays, and a record that JSON can hold.

    Arrays are saved from the host, which is half the work, so they must be on every host of a job,
    of which the first one writes. Each save replaces the one before. It is atomic (a killed process
    leaves the old one or the new one, both parts of it) and returns before the disk is done;
    :meth:`close`, or leaving a ``with`` block, waits for it. In a job of several processes all of
    them have to call everything.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            cleanup_tmp_directories=True,  # what a kill leaves unfinished
            # Else a disk that can not be written to is noticed after a time-out of minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_no_traceback)
        handlers = {ARRAYS: ocp.PyTreeCheckpointHandler(), RECORD: ocp.JsonCheckpointHandler()}
        self._folder, self._saved = folder, time.monotonic()
        make = functools.partial(
            ocp.CheckpointManager, folder.absolute(), options=options, item_handlers=handlers
        )
        self._manager = _attempt(make, f"can not open {folder}")
        self._open = contextlib.ExitStack()
        self._open.enter_context(_quiet())

    @property
    def step(self) -> int | None:
        """The step of what is saved; None if nothing is."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def age(self) -> float:
        """Seconds since the last save, or since this was opened."""
        return time.monotonic() - self._saved

    def save(self, step: int, arrays: Any, record: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a record as those of `step`, which no save had before.

        Raises:
            SaveError: if the disk is full, say; perhaps not of this save but of the one before.
        """
        host = jax.tree.map(np.asarray, _without_keys(arrays))
        both = {ARRAYS: ocp.args.PyTreeSave(host), RECORD: ocp.args.JsonSave(record)}
        self._saved = time.monotonic()
        save = functools.partial(
            self._manager.save, step, args=ocp.args.Composite(**both), force=True
        )
        _attempt(save, f"can not save step {step} in {self._folder}")

    def restore(self, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """``(arrays, record)`` as saved; the arrays as NumPy has them, but for random keys.

        Args:
            like: what to restore of the arrays, in the structure, shapes and types that they have;
                of the uppermost names some may be left out.

        Raises:
            ValueError: if what was saved has another structure or is damaged.
        """
        try:
            return _attempt(lambda: self._restore(like), "it says")
        except SaveError as error:
            raise ValueError(
                f"can not restore {self._folder}: it is damaged, or of another network, optimiser, "
                f"schedule or version ({error})"
            ) from None

    def _restore(self, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        target = jax.eval_shape(_without_keys, like)
        # Orbax finds out as well, but in many threads, each with its own traceback.
        saved = dict(self._manager.item_metadata(self.step)[ARRAYS].tree)
        if _described({name: saved[name] for name in like}) != _described(target):
            raise ValueError("other names, shapes or types")
        places = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        arrays = ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)
        both = ocp.args.Composite(**{ARRAYS: arrays, RECORD: ocp.args.JsonRestore()})
        found = self._manager.restore(self.step, args=both)
        keys_back = jax.tree.map(_with_key, found[ARRAYS], like)
        return keys_back, found[RECORD]

    def wait(self) -> None:
        """Returns when everything saved is on the disk.

        Raises:
            SaveError: if it can not be.
        """
        _attempt(self._manager.wait_until_finished, f"can not save in {self._folder}")

    def close(self) -> None:
        """Waits for the disk, too."""
        with self._open:
            try:
                self.wait()
            finally:
                _attempt(self._manager.close, f"can not close {self._folder}")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _no_traceback(record: logging.LogRecord) -> bool:
    """Whether a record may be shown: the traceback of an error that is raised in words may not."""
    if not record.exc_info:
        return True
    frames = traceback.walk_tb(record.exc_info[2])
    files = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
    return not any("orbax" in file for file in files)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _without_keys(tree: Any) -> Any:
    """The same with the data of random keys in their place."""
    return jax.tree.map(lambda v: jax.random.key_data(v) if _is_key(v) else v, tree)


def _with_key(data: Any, like: Any) -> Any:
    if not _is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def _described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and types by name, whatever the containers."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(v.shape), str(v.dtype))
        for path, v in jax.tree_util.tree_leaves_with_path(tree)
    }


def _attempt(action: Callable[[], T], failure: str) -> T:
    """Does something with Orbax, whole, and with one sentence for whatever goes wrong.

    Raises:
        SaveError: `failure`, and the first line of what Orbax, TensorStore or the system say.
    """
    with _whole():
        try:
            return action()
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
            said = (str(error).splitlines() or [repr(error)])[0]
        # With its exception out of the world, Orbax's reads and writes come to their end.
        gc.collect()
        time.sleep(_MOMENT)
    raise SaveError(f"{failure}: {said}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what threads of a failed save or restore print, each with its own traceback."""
    before = sys.unraisablehook

    def hook(told: Any) -> None:
        if "Event loop is closed" not in str(told.exc_value):
            before(told)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
            signal.raise_signal(signal.SIGINT)
