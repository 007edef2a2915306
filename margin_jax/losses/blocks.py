"""The exact batch-all core: every valid triplet, none of them listed.

The gradient of a batch-all loss with respect to the distances is nothing but counts: an active
triplet adds +1 to d(a,p) and −1 to d(a,n). So the forward pass yields loss, counts and gradient
together, a block of anchors at a time:

1. rows are sorted by label, so that an anchor's positives are one contiguous window of columns;
2. a block of B anchors makes one B × N tile of distances;
3. the positives of every anchor are compared with its negatives: by a loop over the positives
   (:mod:`~margin_jax.losses.tile`) or, in blocks with a large class, by sorting
   (:mod:`~margin_jax.losses.tile_sorted`). Which one is decided at run time: nothing is declared or
   recompiled;
4. the tile's own vjp turns the counts into the gradient with respect to the embeddings.

Time is that of the distances plus, for each of them, a compare-and-add for each positive or two
binary searches among these, whichever is less; memory is O(B·N + N·D).

Nothing here talks to other devices: anchors may be a device's share and references the gathered
batch. Then time is a share too, and memory, that of one block, falls once a device has fewer rows
than a block.
"""

import functools
from typing import NoReturn

import jax
import jax.numpy as jnp
from jax import Array

from margin_jax.losses.tile import (
    Compared,
    Terms,
    compare,
    compare_hardest,
    compare_values,
)
from margin_jax.losses.tile_sorted import compare_sorted
from margin_jax.losses.windows import Windows, negatives
from margin_jax.stats import TripletStats

IMPLEMENTATIONS = ("auto", "loop", "sorted")

# The largest class that the loop is as fast for; and in so few columns it always is, or nearly.
_FEW, _SMALL = 24, 96


def batch_all(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms, size: int
) -> tuple[Array, TripletStats]:
    """Sum of ``max(0, d(a,p) − d(a,n) + μ)`` over the selected triplets of every anchor.

    Args:
        anchors: float[A, D].
        references: float[N, D], sorted as `windows` says.
        margin: float[], μ, or float[A], of every anchor its own.
        windows: the columns of every anchor.
        terms: the distance, and what is summed of which triplets.
        size: anchors a block (:func:`block_size`).

    Returns:
        The sum, float[], differentiable once, in reverse mode, with respect to `anchors`,
        `references` and `margin`; and the statistics of every anchor, which are constants to
        differentiation. A distance that is not finite, or distances whose sum is not, make the sum
        NaN rather than vanish from it.

    Raises:
        TypeError: when it is differentiated a second time.
    """
    # Inside shard_map, what is the same on every device joins what differs from device to device.
    zeros = (
        jnp.zeros_like(v.reshape(-1)[0], dtype=margin.dtype)
        for v in (anchors, references, *windows)
    )
    varying = functools.reduce(jnp.add, zeros)
    anchors, references, margin = (v + varying for v in (anchors, references, margin))
    total, stats = _batch_all(anchors, references, margin, windows, terms, size)
    return total, jax.lax.stop_gradient(stats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_all(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms, size: int
) -> tuple[Array, TripletStats]:
    total, stats, _ = _scan(anchors, references, margin, windows, terms, size, False)
    return total, stats


def _forward(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms, size: int
) -> tuple[tuple[Array, TripletStats], tuple[Array, ...]]:
    anchors, references, margin = _differentiable_once((anchors, references, margin))
    total, stats, gradient = _scan(anchors, references, margin, windows, terms, size, True)
    return (total, stats), gradient


def _backward(
    terms: Terms, size: int, gradient: tuple[Array, ...], cotangents: tuple[Array, object]
) -> tuple[Array | None, ...]:
    return *(cotangents[0] * g for g in gradient), None


_batch_all.defvjp(_forward, _backward)


@jax.custom_jvp
def _differentiable_once(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The identity, in the way of a derivative of the forward pass that makes the gradient.

    Without it, JAX would complain of a `while_loop` that the user never wrote.
    """
    return arrays


@_differentiable_once.defjvp
def _refuse(primals: object, tangents: object) -> NoReturn:
    raise TypeError(
        "the batch-all triplet loss can be differentiated only once, in reverse mode. To use its "
        "gradient as a constant, take it at jax.lax.stop_gradient(embeddings)"
    )


def block_size(anchors: int, references: int, width: int) -> int:
    """Anchors a block: large enough to feed the processor, small enough to stay near it.

    On a CPU a tile of about 2^18 distances, but at least 64 rows for the matrix product. An
    accelerator wants few, large operations: 2^25 distances, or 1/256 of its memory if that is less;
    about fourteen arrays of that size are there at a time. A distance that is no matrix product may
    hold all differences of coordinates, `width` numbers each.
    """
    device = jax.local_devices()[0]
    distances = 2**18
    if device.platform != "cpu":
        memory = (device.memory_stats() or {}).get("bytes_limit", 2**32)
        # A power of two: it is the same on all hosts of a job, whatever else takes some memory.
        distances = min(2**25, 2 ** ((memory // 1024).bit_length() - 1)) // width
    return min(anchors, max(64, distances // references))


def _scan(
    anchors: Array,
    references: Array,
    margin: Array,
    windows: Windows,
    terms: Terms,
    size: int,
    with_gradient: bool,
) -> tuple[Array, TripletStats, tuple[Array, ...]]:
    """Sum, statistics and (if asked) the gradient of the sum, over blocks of `size` anchors."""
    rows, dim = anchors.shape
    padding = -rows % size  # padded anchors have empty windows: no triplets, no gradient

    def blocks(v: Array, fill: int = 0) -> Array:
        padded = jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1), constant_values=fill)
        return padded.reshape(-1, size, *v.shape[1:])

    each = margin.ndim == 1  # anchor has a margin of its own

    def step(
        carry: tuple[Array, Array], block: tuple[Array, Windows, Array | None]
    ) -> tuple[tuple[Array, Array], tuple[Array, TripletStats, Array | None, Array | None]]:
        to_references, to_margin = carry
        x, window, own = block
        mu = margin if own is None else own
        if not with_gradient:
            tile = terms.distance(x, references)
            loss, stats, _ = _tile(tile, references, mu, window, terms, False)
            return carry, (loss, stats, None, None)
        tile, pull = jax.vjp(terms.distance, x, references)
        loss, stats, compared = _tile(tile, references, mu, window, terms, True)
        to_x, to_y = pull(compared.to_tile)
        to_references += to_y + compared.to_references
        to_own = compared.to_margin
        carry = to_references, to_margin + jnp.sum(to_own)
        return carry, (loss, stats, to_x, to_own if each else None)

    start = (jnp.zeros_like(references), jnp.zeros_like(margin, shape=()))
    # Of ones: a distance of the user's own may divide by a row's length.
    xs = (blocks(anchors, 1), jax.tree.map(blocks, windows), blocks(margin) if each else None)
    (to_references, to_margin), (loss, stats, to_anchors, to_own) = jax.lax.scan(step, start, xs)
    stats = jax.tree.map(lambda v: v.reshape(-1)[:rows], stats)
    if to_anchors is None:
        return jnp.sum(loss), stats, ()
    to_anchors = to_anchors.reshape(-1, dim)[:rows]
    if to_own is not None:
        to_margin = to_own.reshape(-1)[:rows]
    return jnp.sum(loss), stats, (to_anchors, to_references, to_margin)


def _tile(
    tile: Array,
    references: Array,
    margin: Array,
    window: Windows,
    terms: Terms,
    with_gradient: bool,
) -> tuple[Array, TripletStats, Compared]:
    """One tile of distances, float[B, N]: loss and statistics per anchor, and the gradients."""
    negative = negatives(window, tile.shape[1])
    size = window.stop - window.start
    largest = _largest(size)
    if terms.mining == "batch_hard":
        counted = _compare(tile, margin, window, largest, terms._replace(mining="all"), False)
        compared = compare_hardest(tile, margin, window, counted, terms.soft, with_gradient)
    elif terms.swap or terms.soft:
        compared = compare_values(tile, references, margin, window, largest, terms, with_gradient)
    else:
        compared = _compare(tile, margin, window, largest, terms, with_gradient)

    own = (window.start <= window.itself) & (window.itself < window.stop)
    stats = TripletStats(
        semihard=compared.semihard,
        hard=compared.hard,
        positives=size - own.astype(jnp.int32),
        negatives=window.real - size,
        sum_ap=compared.sum_ap,
        sum_an=jnp.sum(jnp.where(negative, tile, 0), axis=1),
        sum_ap_squared=compared.sum_ap_squared,
        sum_an_squared=jnp.sum(jnp.where(negative, tile * tile, 0), axis=1),
    )
    # NaN compares as "not active" and would drop out of the loss: 0 × NaN puts it back.
    loss = compared.loss + 0.0 * (stats.sum_ap + stats.sum_an + margin)
    return loss, stats, compared


def _compare(
    tile: Array,
    margin: Array,
    window: Windows,
    largest: Array,
    terms: Terms,
    with_gradient: bool,
) -> Compared:
    """In the way that is faster for the largest class of the block; both give the same."""
    columns, options = tile.shape[1], (terms.mining, with_gradient)
    usual = columns if columns <= _SMALL else _FEW
    few = {"auto": usual, "loop": columns, "sorted": 0}[terms.implementation]
    by_loop = compare(tile, margin, window, jnp.where(largest > few, 0, largest), *options)
    compared = by_loop
    if columns > few:
        # The length of what is sorted is part of a program. Up to an eighth of the columns it
        # weighs little beside placing them all; so one program for small classes, one for any.
        capacities = [c for c in (columns // 8,) if c > few] + [columns]
        way = jnp.sum(largest > jnp.array([few, *capacities[:-1]], jnp.int32), dtype=jnp.int32)
        sort = functools.partial(compare_sorted, tile, margin, window, *options)
        by_sorting = [functools.partial(sort, capacity) for capacity in capacities]
        compared = jax.lax.switch(way, [lambda: by_loop, *by_sorting])
    active = compared.semihard + compared.hard
    chosen = {"all": active, "semihard": compared.semihard, "hard": compared.hard}[terms.mining]
    return compared._replace(to_margin=chosen.astype(tile.dtype))


@jax.custom_batching.custom_vmap
def _largest(sizes: Array) -> Array:
    """int32[], the greatest of int32[B]; under ``vmap`` that of all, so that one way serves all."""
    return jnp.max(sizes)


@_largest.def_vmap
def _largest_of_all(axis_size: int, batched: list[bool], sizes: Array) -> tuple[Array, bool]:
    return _largest(sizes.reshape(-1)), False
