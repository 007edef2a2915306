"""The exact batch-all core: every valid triplet, none of them listed.

The gradient of a batch-all loss with respect to the distances is nothing but counts: an active
triplet adds +1 to d(a,p) and −1 to d(a,n). So the forward pass yields loss, counts and gradient
together, a block of anchors at a time:

1. rows are sorted by label, so that an anchor's positives are one contiguous window of columns;
2. a block of B anchors makes one B × N tile of distances;
3. a loop over the k-th positive of every anchor in the block compares it with all N columns. Its
   bound is the largest class of the block, a traced number: nothing is declared or recompiled;
4. the tile's own vjp turns the counts into the gradient with respect to the embeddings.

Time is that of the distances plus N² compare-and-adds for each positive; memory is O(B·N + N·D).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from margin_jax.distances import DistanceFn
from margin_jax.stats import TripletStats

MININGS = ("all", "semihard", "hard")


class Windows(NamedTuple):
    """Which columns are whose. Columns (references) are sorted by label, real ones first.

    Attributes:
        start, stop: int32[A], the columns of the anchor's own label; empty for padding.
        itself: int32[A], the column that is the anchor itself, or -1.
        real: int32[A], columns before this one are real; 0 for an anchor that is padding, which
            therefore has no negatives either.
    """

    start: Array
    stop: Array
    itself: Array
    real: Array


def batch_all(
    anchors: Array,
    references: Array,
    margin: Array,
    windows: Windows,
    distance: DistanceFn,
    mining: str,
) -> tuple[Array, TripletStats]:
    """Sum of ``max(0, d(a,p) − d(a,n) + μ)`` over the selected triplets of every anchor.

    Args:
        anchors: float[A, D].
        references: float[N, D], sorted as `windows` says.
        margin: float[], μ.
        windows: the columns of every anchor.
        distance: ``f(x[B, D], y[N, D]) -> [B, N]``, differentiable and pure.
        mining: which active triplets count in the loss: "all", "semihard" or "hard".

    Returns:
        The sum, float[], differentiable once with respect to `anchors`, `references` and `margin`;
        and the statistics of every anchor, which are constants to differentiation. A distance that
        is not finite makes the sum NaN rather than vanish from it.
    """
    total, stats = _batch_all(anchors, references, margin, windows, distance, mining)
    return total, jax.lax.stop_gradient(stats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_all(
    anchors: Array,
    references: Array,
    margin: Array,
    windows: Windows,
    distance: DistanceFn,
    mining: str,
) -> tuple[Array, TripletStats]:
    total, stats, _ = _scan(anchors, references, margin, windows, distance, mining, False)
    return total, stats


def _forward(
    anchors: Array,
    references: Array,
    margin: Array,
    windows: Windows,
    distance: DistanceFn,
    mining: str,
) -> tuple[tuple[Array, TripletStats], tuple[Array, ...]]:
    total, stats, gradient = _scan(anchors, references, margin, windows, distance, mining, True)
    return (total, stats), gradient


def _backward(
    distance: DistanceFn, mining: str, gradient: tuple[Array, ...], cotangents: tuple[Array, object]
) -> tuple[Array | None, ...]:
    return *(cotangents[0] * g for g in gradient), None


_batch_all.defvjp(_forward, _backward)


def _block_size(anchors: int, references: int) -> int:
    """Anchors a block: a tile of about 2^19 distances, but at least 64 rows to feed the matmul."""
    return min(anchors, max(64, 2**19 // references))


def _scan(
    anchors: Array,
    references: Array,
    margin: Array,
    windows: Windows,
    distance: DistanceFn,
    mining: str,
    with_gradient: bool,
) -> tuple[Array, TripletStats, tuple[Array, ...]]:
    """Sum, statistics and (if asked) the gradient of the sum, over blocks of anchors."""
    rows, dim = anchors.shape
    size = _block_size(rows, references.shape[0])
    padding = -rows % size  # padded anchors have empty windows: no triplets, no gradient

    def blocks(v: Array) -> Array:
        padded = jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1))
        return padded.reshape(-1, size, *v.shape[1:])

    def step(
        carry: tuple[Array, Array], block: tuple[Array, Windows]
    ) -> tuple[tuple[Array, Array], tuple[Array, TripletStats, Array | None]]:
        to_references, to_margin = carry
        x, window = block
        if not with_gradient:
            loss, stats, _, _ = _tile(distance(x, references), margin, window, mining, False)
            return carry, (loss, stats, None)
        tile, pull = jax.vjp(distance, x, references)
        loss, stats, to_tile, selected = _tile(tile, margin, window, mining, True)
        to_x, to_y = pull(to_tile)
        return (to_references + to_y, to_margin + selected), (loss, stats, to_x)

    start = (jnp.zeros_like(references), jnp.zeros_like(margin))
    xs = (blocks(anchors), jax.tree.map(blocks, windows))
    (to_references, to_margin), (loss, stats, to_anchors) = jax.lax.scan(step, start, xs)
    stats = jax.tree.map(lambda v: v.reshape(-1)[:rows], stats)
    if to_anchors is None:
        return jnp.sum(loss), stats, ()
    to_anchors = to_anchors.reshape(-1, dim)[:rows]
    return jnp.sum(loss), stats, (to_anchors, to_references, to_margin)


def _tile(
    tile: Array, margin: Array, window: Windows, mining: str, with_gradient: bool
) -> tuple[Array, TripletStats, Array, Array]:
    """One tile of distances: loss and statistics per anchor, and the gradient with respect to it.

    Returns:
        The loss of every anchor, float[B]; its statistics; the gradient of the loss's sum with
        respect to the tile, float[B, N]; and with respect to the margin, float[].
    """
    row = jnp.arange(tile.shape[0])
    column = jnp.arange(tile.shape[1], dtype=jnp.int32)
    start, stop, itself, real = (v[:, None] for v in window)
    same = (column >= start) & (column < stop)
    positive = same & (column != itself)
    negative = ~same & (column < real)
    # At infinity, whatever is not a negative is beyond every margin, so it is never active.
    to_negative = jnp.where(negative, tile, jnp.inf)

    def add_positive(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        loss, semihard, hard, to_tile, to_margin = carry
        p = jnp.minimum(window.start + k, tile.shape[1] - 1)
        exists = (window.start + k < window.stop) & (p != window.itself)
        d_ap = tile[row, p]
        reach = jnp.where(exists, d_ap + margin, -jnp.inf)[:, None]
        active = to_negative < reach
        is_hard = active & (to_negative <= d_ap[:, None])
        chosen = {"all": active, "hard": is_hard, "semihard": active & ~is_hard}[mining]
        n_active, n_hard, n_chosen = (
            jnp.sum(mask, axis=1, dtype=jnp.int32) for mask in (active, is_hard, chosen)
        )
        loss += jnp.sum(jnp.where(chosen, reach - to_negative, 0.0), axis=1)
        if with_gradient:
            count = n_chosen.astype(tile.dtype)
            to_tile = (to_tile - chosen.astype(tile.dtype)).at[row, p].add(count)
            to_margin += jnp.sum(count)
        return loss, semihard + n_active - n_hard, hard + n_hard, to_tile, to_margin

    rows = jnp.zeros_like(tile, shape=tile.shape[:1])
    counts = jnp.zeros_like(window.start)
    carry = (rows, counts, counts, jnp.zeros_like(tile), jnp.zeros_like(margin))
    largest = jnp.max(window.stop - window.start)
    loss, semihard, hard, to_tile, to_margin = jax.lax.fori_loop(0, largest, add_positive, carry)

    def total(mask: Array, values: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0), axis=1)

    stats = TripletStats(
        semihard=semihard,
        hard=hard,
        positives=jnp.sum(positive, axis=1, dtype=jnp.int32),
        negatives=jnp.sum(negative, axis=1, dtype=jnp.int32),
        sum_ap=total(positive, tile),
        sum_an=total(negative, tile),
        sum_ap_squared=total(positive, tile * tile),
        sum_an_squared=total(negative, tile * tile),
    )
    # NaN compares as "not active" and would drop out of the loss: 0 × NaN puts it back.
    loss += 0.0 * (stats.sum_ap + stats.sum_an + margin)
    return loss, stats, to_tile, to_margin
