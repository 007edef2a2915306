"""One tile of distances by sorting: as :mod:`margin_jax.losses.tile`, whatever the class size.

For one anchor, batch-all is a hinge between all pairs of two sets, its positives and its negatives
(RankSVM: Joachims 2006; Airola et al. 2011). Sorted once, the positives tell of every negative by a
binary search how many of them it is active or hard with, and running sums over them give the loss;
how many negatives have each place, summed up to a positive, is what that one is active with.
Comparisons are those of the loop, so the counts and the gradient of every distance are the same to
the last bit; only the loss is summed in another order.

Time is that of two binary searches for each distance, and for semihard triplets of a third one: it
grows with the logarithm of the class. In the code a *place* is how many of the sorted positives lie
below a distance.
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.losses.tile import Compared
from margin_jax.losses.windows import Windows, negatives

T = TypeVar("T")

_IN_BOUNDS = "promise_in_bounds"  # indices of look-ups, which then need no clamping


def compare_sorted(
    tile: Array,
    margin: Array,
    window: Windows,
    mining: str,
    with_gradient: bool,
    capacity: int,
) -> Compared:
    """As :func:`~margin_jax.losses.tile.compare`, of windows of at most `capacity` columns."""
    columns, dtype = tile.shape[1], tile.dtype
    start, stop, itself, _ = (v[:, None] for v in window)
    negative = negatives(window, columns)

    # The positives of every anchor, ascending. What is none of them, and NaN, comes first, lower
    # than every distance.
    k = jnp.arange(capacity, dtype=jnp.int32)[None, :]
    p = start + k
    exists = (p < stop) & (p != itself)
    d_ap = jnp.where(exists, _look_up(tile, jnp.minimum(p, columns - 1)), 0)
    lowest = _ordered(jnp.asarray(-jnp.inf, dtype)) - 1
    keys = jnp.sort(jnp.where(exists & (d_ap == d_ap), _ordered(d_ap), lowest), axis=1)
    reach = _distances(keys, dtype) + (margin[:, None] if margin.ndim else margin)
    real = (keys > lowest) & (reach == reach)
    reach_keys = jnp.where(real, _ordered(reach), lowest)

    # A negative is active with the positives from `active_from` on, and hard from `hard_from` on.
    keys, reach_keys = _in_memory((keys, reach_keys))
    key, number = _ordered(tile), tile == tile
    beyond = _ordered(jnp.asarray(jnp.inf, dtype))
    active_from = _place(reach_keys, jnp.where(negative & number, key, beyond), right=True)
    not_below = _place(keys, jnp.where(number, key, lowest), right=False)
    active_from, not_below = _in_memory((active_from, not_below))
    hard_from = jnp.maximum(active_from, not_below)
    count = functools.partial(jnp.sum, where=negative, axis=1, dtype=jnp.int32)
    n_active, n_hard = count(capacity - active_from), count(capacity - hard_from)

    reach = jnp.where(real, reach, 0)
    if mining == "semihard":
        chosen = hard_from - active_from
        loss = _sum_between(reach, active_from, hard_from, tile)
    else:
        first = {"all": active_from, "hard": hard_from}[mining]
        chosen = capacity - first
        loss = _sum_to_top(reach, real, first, tile)

    to_tile = jnp.zeros_like(tile)
    if with_gradient:
        changes = {
            "all": [(active_from, 1)],
            "hard": [(hard_from, 1)],
            "semihard": [(active_from, 1), (hard_from, -1)],
        }[mining]
        with_positive = _look_up(
            _in_memory(_counts_up_to(changes, capacity)), jnp.minimum(not_below, capacity - 1)
        )
        column = jnp.arange(columns, dtype=jnp.int32)[None, :]
        positive = (start <= column) & (column < stop) & (column != itself)
        to_tile = jnp.where(positive, with_positive, jnp.where(negative, -chosen, 0)).astype(dtype)
    return Compared(
        loss=jnp.sum(jnp.where(negative, loss, 0), axis=1),
        semihard=n_active - n_hard,
        hard=n_hard,
        sum_ap=jnp.sum(d_ap, axis=1),
        sum_ap_squared=jnp.sum(d_ap * d_ap, axis=1),
        to_tile=to_tile,
        to_margin=jnp.zeros_like(tile, shape=tile.shape[:1]),
        to_references=0.0,
    )


def _in_memory(arrays: T) -> T:
    """What is to be looked up: XLA would fuse what makes it into every look-up, to make it anew."""
    barred: T = jax.lax.optimization_barrier(arrays)
    return barred


def _ordered(values: Array) -> Array:
    """Integers in the order of floats that are not NaN; −0 and 0 are one.

    They are sorted five times as fast as floats on a CPU.
    """
    kind = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    # What the hardware takes for 0 when it compares is 0 here.
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0, values), kind)
    return jnp.where(bits < 0, bits ^ np.iinfo(kind).max, bits)


def _distances(keys: Array, dtype: jnp.dtype) -> Array:
    """The inverse of :func:`_ordered`."""
    bits = jnp.where(keys < 0, keys ^ np.iinfo(keys.dtype).max, keys)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _place(ascending: Array, keys: Array, *, right: bool) -> Array:
    """int32[B, N]: how many of each row of int[B, C] are below a key, or (right) not above it.

    A binary search without a branch: its steps are the same for all keys, and XLA makes them one
    pass over these.
    """
    rows, left = ascending.shape
    table = ascending.reshape(-1)
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * left

    def passed(place: Array) -> Array:
        value = table.at[place].get(mode=_IN_BOUNDS)
        return value <= keys if right else value < keys

    place = first + jnp.zeros_like(keys, dtype=jnp.int32)
    while left > 1:
        half = left // 2
        place = jnp.where(passed(place + (half - 1)), place + half, place)
        left -= half
    return place + passed(place).astype(jnp.int32) - first


def _look_up(table: Array, column: Array) -> Array:
    """[B, N]: ``table[b, column[b, n]]``."""
    first = jnp.arange(table.shape[0], dtype=jnp.int32)[:, None] * table.shape[1]
    return table.reshape(-1).at[first + column].get(mode=_IN_BOUNDS)


def _counts_up_to(changes: list[tuple[Array, int]], capacity: int) -> Array:
    """int32[B, C]: for each place, the sum of the weights of what stands at it or before it."""
    rows = changes[0][0].shape[0]
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * (capacity + 1)
    counts = jnp.zeros_like(changes[0][0], shape=rows * (capacity + 1))
    for place, weight in changes:
        counts = counts.at[first + place].add(weight, mode=_IN_BOUNDS)
    return jnp.cumsum(counts.reshape(rows, capacity + 1)[:, :-1], axis=1, dtype=jnp.int32)


def _sum_to_top(reach: Array, real: Array, first: Array, tile: Array) -> Array:
    """float[B, N]: the sum of ``reach[b, i] − tile[b, n]`` over all i from ``first[b, n]`` on.

    As the sum of ``reach[i] − reach[first]``, which is one of gaps, each taken as often as it is
    crossed, and ``count · (reach[first] − tile)``. Nothing of it is negative, so nothing cancels.
    """
    capacity = reach.shape[1]
    gaps = jnp.where(real[:, :-1], jnp.diff(reach, axis=1), 0)
    crossed = gaps * jnp.arange(capacity - 1, 0, -1, dtype=reach.dtype)[None, :]
    above = jnp.pad(jnp.cumsum(crossed[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    reach, above = _in_memory((reach, above))
    count = (capacity - first).astype(reach.dtype)
    i = jnp.minimum(first, capacity - 1)
    total = _look_up(above, i) + count * (_look_up(reach, i) - tile)
    return jnp.where(count > 0, total, 0)


def _sum_between(reach: Array, first: Array, last: Array, tile: Array) -> Array:
    """float[B, N]: the sum of ``reach[b, i] − tile[b, n]`` over first[b, n] ≤ i < last[b, n].

    Put together from sums over 1, 2, 4, … places, since a difference of two sums to the top would
    cancel.
    """
    capacity = reach.shape[1]
    span, place = last - first, first
    total = jnp.zeros_like(tile)
    sums = jnp.zeros_like(reach)  # of reach[i + j] − reach[i] over j < size
    size = 1
    while size <= capacity:
        i = jnp.minimum(place, capacity - 1)
        taken = (span & size) > 0
        part = _look_up(sums, i) + size * (_look_up(reach, i) - tile)
        total += jnp.where(taken, part, 0)
        place = jnp.where(taken, place + size, place)
        ahead = jnp.pad(reach, ((0, 0), (0, size)), mode="edge")[:, size:]
        sums += jnp.pad(sums, ((0, 0), (0, size)))[:, size:] + size * (ahead - reach)
        sums = _in_memory(sums)
        size *= 2
    return total
