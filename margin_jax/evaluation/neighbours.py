"""The nearest of many vectors to some queries: exact, a block of the vectors at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.evaluation.roc import check_finite
from margin_jax.losses.distances import DistanceFn, get_distance, origin

# Distances that are on the device at a time, and the most queries that share a pass.
_TILE = 2**22
_QUERIES = 2**10
# Vectors of a block, at most: few queries need not copy much at a time.
_BLOCK = 2**16


def nearest(
    queries: np.ndarray,
    vectors: np.ndarray,
    count: int,
    *,
    distance: str | DistanceFn = "euclidean",
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest vectors to each query, the nearest first; of equals the lower row.

    Args:
        queries: float[q, dim].
        vectors: float[n, dim], perhaps mapped from a file: it is read from the start to the end,
            once for each 1,024 queries, and never held.
        count: at least 1; all of them if there are not as many.
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`.

    Returns:
        ``(float32[q, k] distances, int64[q, k] rows of vectors)``, k the smaller of `count` and n.

    Raises:
        ValueError: shapes that do not fit, no vectors, a count below 1, or queries or distances
            that are not finite.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries and vectors must have shapes (q, dim) and (n, dim); got {queries.shape} and "
            f"{vectors.shape}"
        )
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if len(vectors) == 0:
        raise ValueError("there are no vectors to search")
    if not np.all(np.isfinite(queries)):
        raise ValueError("queries must be finite")
    metric, k = get_distance(distance), min(count, len(vectors))
    parts = [
        _of_some(metric, queries[start : start + _QUERIES], vectors, k)
        for start in range(0, len(queries), _QUERIES)
    ]
    if not parts:
        return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
    distances, rows, bad = (np.concatenate(part) for part in zip(*parts, strict=True))
    check_finite(int(bad.sum(dtype=np.int64)), len(queries) * len(vectors))
    return distances, rows.astype(np.int64)


def _of_some(
    metric: DistanceFn, queries: np.ndarray, vectors: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of as many queries as go through the vectors together; and how many are not finite."""
    # Few shapes, and so few compilations: powers of two.
    padded = np.pad(queries, [(0, (1 << (len(queries) - 1).bit_length()) - len(queries)), (0, 0)])
    size = min(_BLOCK, _TILE // len(padded), 1 << (len(vectors) - 1).bit_length())
    size = max(size, k)
    best = (
        jnp.full((len(padded), k), jnp.inf),
        jnp.full((len(padded), k), len(vectors), jnp.int32),
        jnp.zeros(len(padded), jnp.int32),
    )
    for start in range(0, len(vectors), size):
        block = np.asarray(vectors[start : start + size], np.float32)
        block = np.pad(block, [(0, size - len(block)), (0, 0)])
        best = _better(metric, padded, block, start, len(vectors), best)
    distances, rows, bad = (np.asarray(part)[: len(queries)] for part in best)
    return distances, rows, bad


@functools.partial(jax.jit, static_argnums=0)
def _better(
    metric: DistanceFn,
    queries: Array,
    block: Array,
    start: int,
    end: int,
    best: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """The nearest of those that were found before, and of a block whose first row is `start`."""
    rows = start + jnp.arange(len(block))
    common = origin(metric, block, rows < end)
    tile = metric(queries - common, block - common)
    real, finite = rows < end, jnp.isfinite(tile)
    bad = best[2] + jnp.sum(real & ~finite, axis=1, dtype=jnp.int32)
    tile = jnp.where(real & finite, tile, jnp.inf)
    depth = best[0].shape[1]
    near, places = jax.lax.top_k(-tile, depth)  # of equals the lower index first
    distances = jnp.concatenate([best[0], -near], axis=1)
    found = jnp.concatenate([best[1], rows[places]], axis=1)
    near, places = jax.lax.top_k(-distances, depth)
    return -near, jnp.take_along_axis(found, places, axis=1), bad
