"""One tile of distances: every positive of an anchor against all of its negatives, one by one.

The gradient of a hinge with respect to the distances is nothing but counts: an active triplet adds
+1 to d(a,p) and −1 to d(a,n). So one look at a triplet yields its loss, its kind and its gradient.
Time is that of N compare-and-adds for each positive of each anchor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from margin_jax.losses.distances import DistanceFn
from margin_jax.losses.windows import Windows, kth_positive, negatives

MININGS = ("all", "semihard", "hard", "batch_hard")


class Terms(NamedTuple):
    """What a triplet contributes; hashable, since it is static.

    Attributes:
        distance: ``f(x[B, D], y[N, D]) -> [B, N]``, differentiable and pure.
        mining: which triplets count in the loss: "all" active ones, "semihard", "hard", or
            "batch_hard": one for each anchor.
        swap: whether the negative's distance is the smaller of d(a,n) and d(p,n).
        soft: whether the loss is softplus(v) of the violation v instead of max(0, v).
        implementation: "loop", "sorted", or "auto": whichever is faster.
    """

    distance: DistanceFn
    mining: str
    swap: bool = False
    soft: bool = False
    implementation: str = "auto"


class Compared(NamedTuple):
    """What comparing positives with negatives gives for the anchors of one tile.

    Attributes:
        loss: float[B], each anchor's sum.
        semihard, hard: int32[B], counts.
        sum_ap, sum_ap_squared: float[B], sums of d(a,p) and of its square.
        to_tile: float[B, N], gradient of the sum of `loss` with respect to the tile.
        to_margin: float[B], with respect to the margin, a sum for each anchor.
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


def compare(
    tile: Array,
    margin: Array,
    window: Windows,
    largest: Array,
    mining: str,
    with_gradient: bool,
) -> Compared:
    """Each positive against all negatives: the plain loss, whose gradient is counts.

    Args:
        tile: float[B, N], the distances.
        margin: float[], μ, or float[B], of every anchor its own.
        window: the columns of every anchor of the tile.
        largest: int32[], columns of the largest window; 0 to compare nothing.
        mining, with_gradient: what is summed, and whether its gradient is made too.
    """
    row = jnp.arange(tile.shape[0])
    # At infinity, whatever is not a negative is beyond every margin, so it is never active.
    to_negative = jnp.where(negatives(window, tile.shape[1]), tile, jnp.inf)

    def add_positive(k: Array, carry: Compared) -> Compared:
        p, exists = kth_positive(window, k, tile.shape[1])
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
            to_tile=(carry.to_tile - chosen.astype(tile.dtype)).at[row, p].add(count)
        )

    return _for_each_positive(largest, add_positive, _nothing(tile, 0.0))


def compare_values(
    tile: Array,
    references: Array,
    margin: Array,
    window: Windows,
    largest: Array,
    terms: Terms,
    with_gradient: bool,
) -> Compared:
    """As :func:`compare`, for losses that need the value of every triplet: swap and soft.

    The swap measures d(p, n) from the k-th positive of every anchor, one more tile of distances and
    one more vjp for each k. A tie between d(a,n) and d(p,n) belongs to d(a,n).
    """
    row = jnp.arange(tile.shape[0])
    negative = negatives(window, tile.shape[1])
    margin = margin[:, None] if margin.ndim else margin

    def add_positive(k: Array, carry: Compared) -> Compared:
        p, exists = kth_positive(window, k, tile.shape[1])
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
            to_margin=carry.to_margin + to_p,
            to_references=to_references,
        )

    return _for_each_positive(largest, add_positive, _nothing(tile, jnp.zeros_like(references)))


def compare_hardest(
    tile: Array,
    margin: Array,
    window: Windows,
    counted: Compared,
    soft: bool,
    with_gradient: bool,
) -> Compared:
    """The farthest positive of every anchor against its nearest negative, and no other triplet.

    Of equal distances it is the first one. The counts remain those of all triplets, as `counted`.
    """
    column = jnp.arange(tile.shape[1], dtype=jnp.int32)[None, :]
    start, stop, itself, _ = (v[:, None] for v in window)
    to_positive = jnp.where(
        (start <= column) & (column < stop) & (column != itself), tile, -jnp.inf
    )
    to_negative = jnp.where(negatives(window, tile.shape[1]), tile, jnp.inf)
    d_ap, d_an = jnp.max(to_positive, axis=1), jnp.min(to_negative, axis=1)
    exists = (d_ap > -jnp.inf) & (d_an < jnp.inf)
    reach = jnp.where(exists, d_ap + margin, 0)
    d_an = jnp.where(exists, d_an, 0)
    violation = reach - d_an
    chosen = exists if soft else exists & (d_an < reach)
    value = jax.nn.softplus(violation) if soft else violation
    slope = jnp.where(chosen, jax.nn.sigmoid(violation) if soft else 1.0, 0.0).astype(tile.dtype)
    to_tile = counted.to_tile
    if with_gradient:
        p, n = jnp.argmax(to_positive, axis=1)[:, None], jnp.argmin(to_negative, axis=1)[:, None]
        signs = (column == p).astype(tile.dtype) - (column == n).astype(tile.dtype)
        to_tile = slope[:, None] * signs
    return counted._replace(loss=jnp.where(chosen, value, 0.0), to_tile=to_tile, to_margin=slope)


def _nothing(tile: Array, to_references: Array | float) -> Compared:
    """The sums before the first positive."""
    rows = jnp.zeros_like(tile, shape=tile.shape[:1])
    counts = jnp.zeros_like(rows, dtype=jnp.int32)
    to_tile = jnp.zeros_like(tile)
    return Compared(rows, counts, counts, rows, rows, to_tile, rows, to_references)


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
    largest: Array, add: Callable[[Array, Compared], Compared], start: Compared
) -> Compared:
    """Adds the k-th positive of every anchor, for every k up to the largest window of the tile."""
    compared: Compared = jax.lax.fori_loop(0, largest, add, start)
    return compared
