"""Which gallery images are near each query, and at which place its own identity comes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.evaluation.blocks import in_blocks
from margin_jax.evaluation.roc import check_finite
from margin_jax.losses.distances import DistanceFn


def search(
    metric: DistanceFn, gallery: tuple[np.ndarray, ...], queries: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is near each query; both sides are vectors, identities and groups.

    Returns the distance of the nearest image, float64[m]; how many are nearer than the nearest of
    the query's identity, int[m]; and how many candidates are of its identity, int[m].
    """
    enrolled = [jnp.asarray(part) for part in gallery]
    n, m = len(gallery[0]), len(queries[0])
    found = []
    for rows, padded in in_blocks(np.arange(m), n):
        *parts, bad = _block(metric, *enrolled, *(part[padded] for part in queries))
        check_finite(int(np.sum(bad[: len(rows)])), len(rows) * n)
        found.append([np.asarray(part)[: len(rows)] for part in parts])
    nearest, rank, candidates = (np.concatenate(part) for part in zip(*found, strict=True))
    return nearest.astype(np.float64), rank, candidates


@functools.partial(jax.jit, static_argnums=0)
def _block(
    metric: DistanceFn,
    x: Array,
    whose: Array,
    own: Array,
    q: Array,
    of_query: Array,
    other: Array,
) -> tuple[Array, Array, Array, Array]:
    """As :func:`search`, and how many distances of each query are not finite."""
    tile = metric(q, x).astype(jnp.float32)
    bad = jnp.count_nonzero(~jnp.isfinite(tile), axis=1)
    same = whose[None, :] == of_query[:, None]
    candidate = ~(same & (own[None, :] == other[:, None]))
    right = same & candidate
    # Counted, not sorted, which takes a hundred times as long.
    place = jnp.argmin(jnp.where(right, tile, jnp.inf), axis=1)[:, None]  # ties: the lower index
    best = jnp.take_along_axis(tile, place, axis=1)
    before = (tile < best) | ((tile == best) & (jnp.arange(len(x))[None, :] < place))
    nearest = jnp.min(jnp.where(candidate, tile, jnp.inf), axis=1)
    rank = jnp.count_nonzero(candidate & before, axis=1)
    return nearest, rank, jnp.count_nonzero(right, axis=1), bad
