"""From a plan of batches to arrays on the devices, read a few batches ahead in threads.

The plan is the random-access source, so the order is the plan's whatever the threads do, and any
step of it can be the first: (seed, epoch, step) is the whole position of a training in its data.
The training queues steps without waiting for them, so a batch goes to the devices while they still
work on earlier ones.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jax import Array
from jax.sharding import Mesh

from margin_jax.data.dataset import Examples, read_rows
from margin_jax.data.rows import Versions
from margin_jax.devices.meshes import own_rows, place_copies, place_rows

_THREADS, _AHEAD = 2, 4


def load_batches(
    examples: Examples | Versions,
    labels: np.ndarray,
    plan: np.ndarray,
    mesh: Mesh,
    *,
    first_step: int = 0,
    versions: np.ndarray | None = None,
) -> Iterator[tuple[Array, Array]]:
    """Yields ``(examples [batch, ...], labels int32[batch])`` for the rows of the plan.

    The examples, floats as float32, are shared out over the mesh, and a process reads only those of
    its own devices; the labels are on all of it.

    Args:
        examples, labels: of a dataset.
        plan: int[steps, batch], rows of the dataset.
        mesh: the devices.
        first_step: earlier ones are left out.
        versions: int[steps, batch], which rows of `examples` they are, where each example is there
            in several versions, as :func:`~margin_jax.data.views.draw_versions` says.
    """
    steps, where = plan[first_step:], (plan if versions is None else versions)[first_step:]
    own = where[:, own_rows(mesh, plan.shape[1])]
    for rows, read in zip(steps, read_ahead(examples, own), strict=True):
        yield place_rows(read, mesh, len(rows)), place_copies(labels[rows], mesh)


def read_ahead(
    examples: Examples | Versions, plan: Sequence[np.ndarray] | np.ndarray
) -> Iterator[np.ndarray]:
    """``read_rows(examples, rows)`` for each batch of a plan, in order; so do errors come."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read_ahead")
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        for rows in plan:
            waiting.append(pool.submit(read_rows, examples, rows))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when nobody asks for the rest
        # Not by `shutdown(cancel_futures=True)`, which fails while the interpreter goes down.
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=False)
