"""Jobs of several processes, one a host: how they start, agree, and hear that they must stop."""

import contextlib
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from margin_jax.devices.meshes import check_devices

T = TypeVar("T")

# The status of a process that SIGTERM has stopped, as shells have it.
PREEMPTED = 128 + signal.SIGTERM
# Of a process's error, in bytes; the rest of it is not sent to the others.
_MESSAGE = 2_000


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    detect: bool = False,
) -> None:
    """Joins the job that this process is part of, if it is part of one.

    Has to be called before anything else is done with JAX. A launcher that says in the environment
    that it has started several processes (Slurm's ``srun``, Open MPI, a TPU slice on Kubernetes) is
    found out.

    Args:
        coordinator: HOST:PORT of process 0. JAX finds it out where it can.
        processes, process: how many, and which one this is, from 0. Likewise.
        detect: ask JAX for the job even if the environment does not tell (TPU pods).

    Raises:
        ValueError: if something of the job is not known, or not possible.
    """
    given = (coordinator, processes, process)
    if given == (None, None, None) and not detect and not _launched_together():
        return
    if coordinator is not None and ":" not in coordinator:
        raise ValueError(f"coordinator must be HOST:PORT; got {coordinator}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot join the job of coordinator {coordinator}, processes {processes}, process "
            f"{process}: {error}"
        ) from error


def _launched_together() -> bool:
    """Whether the environment of this process is that of one of several."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    several = any(os.environ.get(name, "1") not in ("", "0", "1") for name in counts)
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def check_joined() -> None:
    """Checks that there are devices, and that a process of several has joined the others.

    Raises:
        ValueError: if not; on a TPU pod if its processes have not called :func:`start`.
    """
    check_devices()
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"this is one of {jax.process_count()} processes, and has not joined the others: start "
            "it with --multihost, or call jax.distributed.initialize() first"
        )


def is_first() -> bool:
    """Whether this is the process that writes reports."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T | None:
    """Does something on the first process; the others wait, and fail if it does."""
    return agreed(lambda: action() if is_first() else None)


def agreed(action: Callable[[], T]) -> T:
    """Does something on every process; if it fails on one of them, it fails on all.

    Otherwise the others would wait for the one that gave up until they run into a time-out.

    Raises:
        Exception: what failed here; ValueError, in words, for what failed on another process.
    """
    if jax.process_count() == 1:
        return action()
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    # In words, so that the others can say them; zeros if there are none.
    words = ("" if error is None else str(error) or repr(error)).encode()[:_MESSAGE]
    own = np.frombuffer(words.ljust(_MESSAGE, b"\0"), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(own))
    if error is not None:
        raise error
    for process, told in enumerate(everyone):
        message = told.tobytes().rstrip(b"\0").decode(errors="replace")
        if message:
            raise ValueError(f"process {process} of the job: {message}")
    return result


def from_first(values: T) -> T:
    """The first process's values (a few, that JSON can hold), exactly, on all of them."""
    if jax.process_count() == 1:
        return values
    told = np.frombuffer(json.dumps(values).encode().ljust(_MESSAGE), np.uint8)
    received: T = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(told)).tobytes())
    return received


def check_same(what: str, value: Any) -> None:
    """Refuses to go on with processes that see different things.

    Raises:
        ValueError: on all of them, unless `value` (by its text) is the same everywhere.
    """
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
        everyone = np.asarray(multihost_utils.process_allgather(digest))
        if np.any(everyone != everyone[0]):
            raise ValueError(
                f"the processes of this job do not have the same {what}: start them with the same "
                "options, and with a run folder that all of them see"
            )


class Notice:
    """Whether this job must stop: SIGTERM, with which machines announce that they will vanish."""

    def __init__(self) -> None:
        self.given = False

    def by(self, step: int) -> bool:
        """Whether to stop before this step; asked once a step, with steps that rise by one.

        All processes of a job are told so before the same step, whichever of them got the signal.
        """
        if not self.given and jax.process_count() > 1:
            self.given = bool(multihost_utils.reached_preemption_sync_point(step))
        return self.given


@contextlib.contextmanager
def notice() -> Iterator[Notice]:
    """Within it, SIGTERM does not end the process but gives the :class:`Notice`."""
    told = Notice()
    # In a job JAX itself listens; outside the main thread nobody can.
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(*_: object) -> None:
        told.given = True

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
