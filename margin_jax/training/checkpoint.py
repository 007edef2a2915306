"""Save and restore a training by step, with Orbax behind it."""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

T = TypeVar("T")

ARRAYS, RECORD = "arrays", "record"
_MOMENT = 0.5  # seconds
# Paths without signs that mean something to Orbax or TensorStore.
_PLAIN = re.compile(r"[\w/. -]*")


class SaveError(OSError):
    """What Orbax, TensorStore or the operating system say, in one line."""


class Checkpoint:
    """The newest save in a folder: a pytree of arrays, and a record that JSON can hold.

    Arrays are saved from the host, which is half the work, so they must be on every host of a job,
    of which the first one writes. Each save replaces the one before. It is atomic (a killed process
    leaves the old one or the new one, both parts of it) and returns before the disk is done;
    :meth:`close`, or leaving a ``with`` block, waits for it. Beside them lie digests, by which a
    save is proven after it was written, and checked whenever it is restored. In a job of several
    processes all of them have to call everything.

    Args:
        folder: any path; it is made.
        read_only: nothing is made or removed, as another process may be about to save there.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        # Orbax's v1, experimental so far, has it in `training.Checkpointer`, and reads what lies
        # here: save and restore become `save_checkpointables` and `load_checkpointables`, without
        # `args`; asynchronous directories and partial restores are asked for in its `Context`. It
        # has no `read_only`, which must then be seen to here.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(n=1),
            cleanup_tmp_directories=True,  # what a kill leaves unfinished
            # Else a disk that cannot be written to is noticed after a time-out of minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        handlers = {ARRAYS: ocp.PyTreeCheckpointHandler(), RECORD: ocp.JsonCheckpointHandler()}
        registry = ocp.handlers.create_default_handler_registry(**handlers)
        self._folder, self._saved = folder, time.monotonic()
        self._unproven: tuple[int, dict[str, Any]] | None = None

        with contextlib.ExitStack() as opened:
            opened.enter_context(_quiet())

            def make() -> ocp.CheckpointManager:
                if not read_only:
                    folder.mkdir(parents=True, exist_ok=True)
                path = opened.enter_context(_plain(folder.absolute()))
                return ocp.CheckpointManager(path, options=options, handler_registry=registry)

            self._manager = _attempt(make, f"cannot open {folder}")
            self._open = opened.pop_all()

    @property
    def step(self) -> int | None:
        """The step of what is saved; None if nothing is."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def age(self) -> float:
        """Seconds since the last save, or since this was opened."""
        return time.monotonic() - self._saved

    def save(self, step: int, arrays: dict[str, chex.ArrayTree], record: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a record as those of `step`, which no save had before.

        Raises:
            SaveError: if the disk is full, say; perhaps not of this save but of the one before.
        """
        self.wait()
        host = jax.tree.map(np.asarray, _without_keys(arrays))
        signed = {"record": record, "sha256": _digests(host, record)}
        both = {ARRAYS: ocp.args.PyTreeSave(host), RECORD: ocp.args.JsonSave(signed)}
        self._saved = time.monotonic()
        save = functools.partial(
            self._manager.save, step, args=ocp.args.Composite(**both), force=True
        )
        _attempt(save, f"cannot save step {step} in {self._folder}")
        some = min(host, key=lambda name: sum(v.nbytes for v in jax.tree.leaves(host[name])))
        self._unproven = step, jax.eval_shape(lambda: {some: host[some]})

    def restore(
        self, like: dict[str, chex.ArrayTree]
    ) -> tuple[dict[str, chex.ArrayTree], dict[str, Any]]:
        """``(arrays, record)`` as saved; the arrays as NumPy has them, but for random keys.

        Args:
            like: what to restore of the arrays, in the structure, shapes and types that they have;
                of the uppermost names some may be left out.

        Raises:
            ValueError: if what was saved has another structure or is damaged.
        """
        try:
            return _attempt(lambda: self._restore(self.step, like), "it says")
        except SaveError as error:
            raise ValueError(
                f"cannot restore {self._folder}: it is damaged, or of another network, optimiser, "
                f"schedule or version ({error})"
            ) from None

    def _restore(
        self, step: int | None, like: dict[str, chex.ArrayTree]
    ) -> tuple[dict[str, chex.ArrayTree], dict[str, Any]]:
        target = jax.eval_shape(_without_keys, like)
        # Orbax finds out as well, but in many threads, each with its own traceback.
        saved = dict(self._manager.item_metadata(step)[ARRAYS].tree)
        if _described({name: saved[name] for name in like}) != _described(target):
            raise ValueError("other names, shapes or types")
        places = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        arrays = ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)
        both = ocp.args.Composite(**{ARRAYS: arrays, RECORD: ocp.args.JsonRestore()})
        found = self._manager.restore(step, args=both)
        record, told = found[RECORD]["record"], found[RECORD]["sha256"]
        digests = _digests(found[ARRAYS], record)
        if other := sorted(name for name in digests if digests[name] != told[name]):
            raise ValueError(f"not what was saved: {', '.join(other)}")
        return jax.tree.map(_with_key, found[ARRAYS], like), record

    def wait(self) -> None:
        """Returns when everything saved is on the disk, and can be read from there.

        Raises:
            SaveError: if it cannot be.
        """
        unproven, self._unproven = self._unproven, None
        _attempt(self._manager.wait_until_finished, f"cannot save in {self._folder}")
        if unproven is not None:
            # The smallest part, of a run its best weights: a third of what was written.
            prove = functools.partial(self._restore, *unproven)
            _attempt(prove, f"cannot read what was saved in {self._folder}")

    def close(self) -> None:
        """Waits for the disk, too."""
        with self._open:
            try:
                self.wait()
            finally:
                _attempt(self._manager.close, f"cannot close {self._folder}")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder by a path that Orbax takes as it is: it reads brackets and stars as a pattern."""
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    if not _PLAIN.fullmatch(tempfile.gettempdir()):
        raise ValueError(f"TMPDIR must be a path of letters; got {tempfile.gettempdir()}")
    with tempfile.TemporaryDirectory(prefix="margin-jax-") as room:
        link = Path(room, "link")
        link.symlink_to(folder)
        yield link


def _digests(arrays: dict[str, chex.ArrayTree], record: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the record, and of all arrays under each uppermost name."""
    told = {RECORD: hashlib.sha256(json.dumps(record, sort_keys=True).encode())}
    for name, tree in arrays.items():
        told[f"{ARRAYS}/{name}"] = digest = hashlib.sha256()
        # By name: what restores them may have other containers.
        for path, leaf in sorted(_named(tree).items()):
            digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return {name: digest.hexdigest() for name, digest in told.items()}


def _worth_showing(record: logging.LogRecord) -> bool:
    """Not what Orbax thinks of leftovers, nor tracebacks of what is raised in words."""
    if str(record.msg).startswith("Failed to json parse Metadata"):
        return False  # times of saves that a crash has left empty: nothing here reads them
    if not record.exc_info:
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname
    frames = traceback.walk_tb(record.exc_info[2])
    files = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
    return not any("orbax" in file for file in files)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _without_keys(tree: chex.ArrayTree) -> chex.ArrayTree:
    """The same with the data of random keys in their place."""
    return jax.tree.map(lambda v: jax.random.key_data(v) if _is_key(v) else v, tree)


def _with_key(data: Any, like: Any) -> Any:
    if not _is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def _named(tree: chex.ArrayTree) -> dict[str, Any]:
    """The leaves by name, whatever the containers."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _described(tree: chex.ArrayTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and types by name."""
    return {name: (tuple(v.shape), str(v.dtype)) for name, v in _named(tree).items()}


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
        # Once the exception is freed, Orbax's pending reads and writes come to their end.
        gc.collect()
        time.sleep(_MOMENT)
    raise SaveError(f"{failure}: {said}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what threads of a failed save or restore print, each with its own traceback.

    And warnings of Orbax; only as long as a checkpoint is open, as a user may want them of others.
    """
    before = sys.unraisablehook
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    worth_showing = functools.partial(_worth_showing)  # one of its own, which can be taken away
    for logger in loggers:
        logger.addFilter(worth_showing)

    def hook(told: Any) -> None:
        if "Event loop is closed" not in str(told.exc_value):
            before(told)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(worth_showing)


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
