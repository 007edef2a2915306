"""Embeddings of many examples, and distances between pairs of them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from margin_jax.data.dataset import Examples
from margin_jax.data.loader import read_ahead
from margin_jax.devices.meshes import local_mesh, own_rows, place_copies, place_rows, replicated
from margin_jax.losses.distances import DistanceFn, get_distance, origin, paired
from margin_jax.models import ApplyFn

_BATCH = 256
# Values of one side that are copied at a time.
_PAIR_VALUES = 2**22


def embed_examples(
    apply_fn: ApplyFn,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    examples: Examples,
    rows: np.ndarray | None = None,
    mesh: Mesh | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """float32[rows, dim]: embeddings in evaluation mode, in batches of one shape.

    The same on every host of a job, all of which have to call it.

    Args:
        apply_fn: the encoder.
        params, batch_stats: its weights.
        examples: of a dataset.
        rows: int[rows], which of them. Default: all of them.
        mesh: devices that share the work, on all of which the weights are. Default: one device.
        on_rows: called with how many are done, after every batch.
    """
    rows = np.arange(len(examples)) if rows is None else rows
    if mesh is None:
        mesh = local_mesh()
        params, batch_stats = place_copies((params, batch_stats), mesh)
    size = max(min(_BATCH, _round_up(len(rows))) // mesh.size, 1) * mesh.size
    own = own_rows(mesh, size)
    plan = [rows[start : start + size] for start in range(0, len(rows), size)]
    vectors, done = [], 0
    for batch, read in zip(
        plan, read_ahead(examples, [batch[own[own < len(batch)]] for batch in plan]), strict=True
    ):
        embedded = embed_batch(apply_fn, params, batch_stats, read, mesh=mesh, size=size)
        vectors.append(embedded[: len(batch)])
        done += len(batch)
        if on_rows is not None:
            on_rows(done)
    return np.concatenate(vectors)


def embed_batch(
    apply_fn: ApplyFn,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    read: np.ndarray,
    *,
    mesh: Mesh,
    size: int,
) -> np.ndarray:
    """float32[size, dim]: embeddings of up to `size` examples in evaluation mode, then of zeros.

    Args:
        apply_fn: the encoder.
        params, batch_stats: its weights, on all devices of the mesh.
        read: examples, those of :func:`~margin_jax.devices.meshes.own_rows` on a host of several.
        mesh: devices that share the work.
        size: of the batch, whatever `read` has, so that one program serves all.
    """
    missing = len(own_rows(mesh, size)) - len(read)
    padded = np.pad(read, [(0, missing)] + [(0, 0)] * (read.ndim - 1))
    placed = place_rows(padded, mesh, size)
    return np.asarray(_embed(apply_fn, mesh, params, batch_stats, placed))


def _round_up(n: int) -> int:
    """The next power of two: few rows do not cost a whole batch, nor each count a compilation."""
    return 1 << (n - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(apply_fn: ApplyFn, mesh: Mesh, params: Any, batch_stats: Any, examples: Array) -> Array:
    vectors = apply_fn(params, batch_stats, examples, train=False, key=None)[0]
    everywhere: Array = jax.lax.with_sharding_constraint(vectors, replicated(mesh))
    return everywhere.astype(jnp.float32)


def pair_distances(
    vectors: Examples, rows: np.ndarray, distance: str | DistanceFn = "euclidean"
) -> np.ndarray:
    """float32[pairs]: the distance between the two vectors of each pair.

    Args:
        vectors: real[n, ...], each row flattened to one vector.
        rows: int[pairs, 2].
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`.
    """
    metric = get_distance(distance)
    size = max(1, _PAIR_VALUES // math.prod(vectors.shape[1:]))
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        missing = min(size, _round_up(len(chunk))) - len(chunk)
        padded = np.pad(chunk, [(0, missing), (0, 0)], mode="edge")
        x, y = (
            vectors[padded[:, side]].reshape(len(padded), -1).astype(np.float32) for side in (0, 1)
        )
        found[start : start + size] = _paired(metric, x, y)[: len(chunk)]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _paired(metric: DistanceFn, x: Array, y: Array) -> Array:
    common = origin(metric, jnp.concatenate([x, y]))
    return paired(metric, x - common, y - common)
