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

Nothing here talks to other devices: anchors may be a device's share and references the gathered
batch. Then time is a share too, and memory, that of one block, falls once a device has fewer rows
than a block.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

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


class Terms(NamedTuple):
    """What a triplet contributes; hashable, since it is static.

    Attributes:
        distance: ``f(x[B, D], y[N, D]) -> [B, N]``, differentiable and pure.
        mining: which active triplets count in the loss: "all", "semihard" or "hard".
        swap: whether the negative's distance is the smaller of d(a,n) and d(p,n).
        soft: whether the loss is softplus(v) of the violation v instead of max(0, v).
    """

    distance: DistanceFn
    mining: str
    swap: bool = False
    soft: bool = False


class Compared(NamedTuple):
    """What comparing positives with negatives gives for the anchors of one tile.

    Attributes:
        loss: float[B], each anchor's sum.
        semihard, hard: int32[B], counts.
        sum_ap, sum_ap_squared: float[B], sums of d(a,p) and of its square.
        to_tile: float[B, N], gradient of the sum of `loss` with respect to the tile.
        to_margin: float[], with respect to the margin.
        to_references: float[N, D], with respect to the references by another way than the tile, or
            0 if there is none.
    """

    loss: Array
    semihard: Array
    hard: Array
    sum_ap: Array
    sum_ap_squared: Array
    to_tile: Array
    to_margin: Array
    to_references: Array | float


def batch_all(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms
) -> tuple[Array, TripletStats]:
    """Sum of ``max(0, d(a,p) − d(a,n) + μ)`` over the selected triplets of every anchor.

    Args:
        anchors: float[A, D].
        references: float[N, D], sorted as `windows` says.
        margin: float[], μ.
        windows: the columns of every anchor.
        terms: the distance, and what is summed of which triplets.

    Returns:
        The sum, float[], differentiable once, in reverse mode, with respect to `anchors`,
        `references` and `margin`; and the statistics of every anchor, which are constants to
        differentiation. A distance that is not finite makes the sum NaN rather than vanish from it.

    Raises:
        TypeError: when it is differentiated a second time.
    """
    # Inside shard_map, what is the same on every device joins what differs from device to device.
    zeros = (
        jnp.zeros_like(v, shape=(), dtype=margin.dtype) for v in (anchors, references, *windows)
    )
    varying = functools.reduce(jnp.add, zeros)
    anchors, references, margin = (v + varying for v in (anchors, references, margin))
    total, stats = _batch_all(anchors, references, margin, windows, terms)
    return total, jax.lax.stop_gradient(stats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _batch_all(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms
) -> tuple[Array, TripletStats]:
    size = _block_size(len(anchors), len(references))
    total, stats, _ = _scan(anchors, references, margin, windows, terms, size, False)
    return total, stats


def _forward(
    anchors: Array, references: Array, margin: Array, windows: Windows, terms: Terms
) -> tuple[tuple[Array, TripletStats], tuple[Array, ...]]:
    anchors, references, margin = _differentiable_once((anchors, references, margin))
    size = _block_size(len(anchors), len(references))
    total, stats, gradient = _scan(anchors, references, margin, windows, terms, size, True)
    return (total, stats), gradient


def _backward(
    terms: Terms, gradient: tuple[Array, ...], cotangents: tuple[Array, object]
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


def _block_size(anchors: int, references: int) -> int:
    """Anchors a block: a tile of about 2^19 distances, but at least 64 rows to feed the matmul."""
    return min(anchors, max(64, 2**19 // references))


# Compiled once also where nobody has put the loss under `jit`; under it, it is as if not there.
@functools.partial(jax.jit, static_argnames=("terms", "size", "with_gradient"), inline=True)
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

    def step(
        carry: tuple[Array, Array], block: tuple[Array, Windows]
    ) -> tuple[tuple[Array, Array], tuple[Array, TripletStats, Array | None]]:
        to_references, to_margin = carry
        x, window = block
        if not with_gradient:
            tile = terms.distance(x, references)
            loss, stats, _ = _tile(tile, references, margin, window, terms, False)
            return carry, (loss, stats, None)
        tile, pull = jax.vjp(terms.distance, x, references)
        loss, stats, compared = _tile(tile, references, margin, window, terms, True)
        to_x, to_y = pull(compared.to_tile)
        to_references += to_y + compared.to_references
        return (to_references, to_margin + compared.to_margin), (loss, stats, to_x)

    start = (jnp.zeros_like(references), jnp.zeros_like(margin))
    # Of ones: a distance of the user's own may divide by a row's length.
    xs = (blocks(anchors, 1), jax.tree.map(blocks, windows))
    (to_references, to_margin), (loss, stats, to_anchors) = jax.lax.scan(step, start, xs)
    stats = jax.tree.map(lambda v: v.reshape(-1)[:rows], stats)
    if to_anchors is None:
        return jnp.sum(loss), stats, ()
    to_anchors = to_anchors.reshape(-1, dim)[:rows]
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
    column = jnp.arange(tile.shape[1], dtype=jnp.int32)
    start, stop, _, real = (v[:, None] for v in window)
    negative = ((column < start) | (column >= stop)) & (column < real)
    if terms.swap or terms.soft:
        compared = _compare_values(tile, references, margin, window, negative, terms, with_gradient)
    else:
        compared = _compare(tile, margin, window, negative, terms.mining, with_gradient)

    size = window.stop - window.start
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


def _kth_positive(window: Windows, k: Array, columns: int) -> tuple[Array, Array]:
    """int32[B], the k-th column of each anchor's window, and bool[B], whether it is a positive."""
    p = jnp.minimum(window.start + k, columns - 1)
    return p, (window.start + k < window.stop) & (p != window.itself)


def _count(first: Array, second: Array) -> tuple[Array, Array]:
    """int32[B] each: the true entries in every row of two masks bool[B, N]."""
    masks = first.astype(jnp.uint32), second.astype(jnp.uint32)
    if first.shape[1] < 2**16:
        # Both in one pass, which is most of the cost of counting: 16 bits for each.
        both = jnp.sum(masks[0] + (masks[1] << 16), axis=1, dtype=jnp.uint32)
        counts = both & 0xFFFF, both >> 16
    else:
        counts = jnp.sum(masks[0], axis=1), jnp.sum(masks[1], axis=1)
    return counts[0].astype(jnp.int32), counts[1].astype(jnp.int32)


def _compare(
    tile: Array,
    margin: Array,
    window: Windows,
    negative: Array,
    mining: str,
    with_gradient: bool,
) -> Compared:
    """Each positive against all negatives: the plain loss, whose gradient is counts."""
    row = jnp.arange(tile.shape[0])
    # At infinity, whatever is not a negative is beyond every margin, so it is never active.
    to_negative = jnp.where(negative, tile, jnp.inf)

    def add_positive(k: Array, carry: Compared) -> Compared:
        p, exists = _kth_positive(window, k, tile.shape[1])
        d_ap = tile[row, p]
        reach = jnp.where(exists, d_ap + margin, -jnp.inf)[:, None]
        active = to_negative < reach
        is_hard = active & (to_negative <= d_ap[:, None])
        chosen = {"all": active, "hard": is_hard, "semihard": active & ~is_hard}[mining]
        n_active, n_hard = _count(active, is_hard)
        n_chosen = {"all": n_active, "hard": n_hard, "semihard": n_active - n_hard}[mining]
        value = jnp.sum(jnp.where(chosen, reach - to_negative, 0.0), axis=1)
        carry = _add(carry, jnp.where(exists, d_ap, 0), value, n_active, n_hard)
        if not with_gradient:
            return carry
        count = n_chosen.astype(tile.dtype)
        return carry._replace(
            to_tile=(carry.to_tile - chosen.astype(tile.dtype)).at[row, p].add(count),
            to_margin=carry.to_margin + jnp.sum(count),
        )

    return _for_each_positive(window, add_positive, _nothing(tile, margin, 0.0))


def _compare_values(
    tile: Array,
    references: Array,
    margin: Array,
    window: Windows,
    negative: Array,
    terms: Terms,
    with_gradient: bool,
) -> Compared:
    """As :func:`_compare`, for losses that need the value of every triplet: swap and soft.

    The swap measures d(p, n) from the k-th positive of every anchor, one more tile of distances and
    one more vjp for each k. A tie between d(a,n) and d(p,n) belongs to d(a,n).
    """
    row = jnp.arange(tile.shape[0])

    def add_positive(k: Array, carry: Compared) -> Compared:
        p, exists = _kth_positive(window, k, tile.shape[1])
        valid = exists[:, None] & negative
        d_ap = tile[row, p][:, None]
        d_n, swapped = tile, jnp.zeros_like(valid)
        if terms.swap:
            d_pn, pull = jax.vjp(terms.distance, references[p], references)
            swapped = d_pn < tile
            d_n = jnp.where(swapped, d_pn, tile)
        violation = d_ap + margin - d_n
        active = valid & (d_n < d_ap + margin)
        is_hard = active & (d_n <= d_ap)
        chosen = {
            "all": valid if terms.soft else active,
            "hard": is_hard,
            "semihard": active & ~is_hard,
        }[terms.mining]
        n_active, n_hard = _count(active, is_hard)
        value = jax.nn.softplus(violation) if terms.soft else violation
        value = jnp.sum(jnp.where(chosen, value, 0.0), axis=1)
        carry = _add(carry, jnp.where(exists, tile[row, p], 0), value, n_active, n_hard)
        if not with_gradient:
            return carry
        slope = jnp.where(chosen, jax.nn.sigmoid(violation) if terms.soft else 1.0, 0.0)
        slope = slope.astype(tile.dtype)
        to_p = jnp.sum(slope, axis=1)
        to_tile = carry.to_tile - jnp.where(swapped, 0.0, slope)
        to_references = carry.to_references
        if terms.swap:
            to_rows, to_all = pull(jnp.where(swapped, -slope, 0.0))
            to_references = (to_references + to_all).at[p].add(to_rows)
        return carry._replace(
            to_tile=to_tile.at[row, p].add(to_p),
            to_margin=carry.to_margin + jnp.sum(to_p),
            to_references=to_references,
        )

    return _for_each_positive(
        window, add_positive, _nothing(tile, margin, jnp.zeros_like(references))
    )


def _nothing(tile: Array, margin: Array, to_references: Array | float) -> Compared:
    """The sums before the first positive."""
    rows = jnp.zeros_like(tile, shape=tile.shape[:1])
    counts = jnp.zeros_like(rows, dtype=jnp.int32)
    to_tile, to_margin = jnp.zeros_like(tile), jnp.zeros_like(margin)
    return Compared(rows, counts, counts, rows, rows, to_tile, to_margin, to_references)


def _add(carry: Compared, d_ap: Array, loss: Array, active: Array, hard: Array) -> Compared:
    """The sums with one more positive of every anchor; all float[B] or int32[B], 0 for none."""
    return carry._replace(
        loss=carry.loss + loss,
        semihard=carry.semihard + active - hard,
        hard=carry.hard + hard,
        sum_ap=carry.sum_ap + d_ap,
        sum_ap_squared=carry.sum_ap_squared + d_ap * d_ap,
    )


def _for_each_positive(
    window: Windows, add: Callable[[Array, Compared], Compared], start: Compared
) -> Compared:
    """Adds the k-th positive of every anchor, for every k up to the largest class of the block."""
    largest = jnp.max(window.stop - window.start)
    compared: Compared = jax.lax.fori_loop(0, largest, add, start)
    return compared
