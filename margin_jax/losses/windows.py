"""Where the positives of every anchor are: rows sorted by label, so that they are one window."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType


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


def by_label(labels: Array, real: Array | None) -> Array:
    """int32[rows], the order of the rows by label, padding last."""
    if real is None:
        return jnp.argsort(labels)  # one key: half the time
    return jnp.lexsort((labels, ~real))


def inverse(order: Array) -> Array:
    """int32[rows], where each row went: what sorting the order would give, in linear time."""
    rows = jnp.arange(len(order), dtype=jnp.int32)
    return jnp.zeros_like(rows).at[order].set(rows, unique_indices=True)


def windows_of(
    labels: Array, real: Array, reference_labels: Array, reference_real: Array
) -> Windows:
    """The columns of every anchor, none of which is the anchor itself.

    The references come sorted by :func:`by_label`; the anchors may come in any order.
    """
    n_real = jnp.sum(reference_real, dtype=jnp.int32)
    # Padding stands last; the greatest label keeps the array sorted whatever it was padded with.
    last = np.array(np.iinfo(reference_labels.dtype).max)
    ascending = jnp.where(reference_real, reference_labels, last.astype(reference_labels.dtype))
    # Unrolled, a search is two kernels to compile; as a loop it is eight.
    find = functools.partial(jnp.searchsorted, ascending, labels, method=_method())
    start, stop = (find(side=side).astype(jnp.int32) for side in ("left", "right"))
    start, stop = jnp.minimum(start, n_real), jnp.minimum(stop, n_real)
    return Windows(
        start=start,
        stop=jnp.where(real, stop, start),
        itself=jnp.full_like(start, -1),
        real=jnp.where(real, n_real, 0),
    )


def _method() -> str:
    """How to search: JAX 0.12 can only sort where some axes of a mesh are manual and some not."""
    kinds = set(jax.sharding.get_abstract_mesh().axis_types)
    return "sort" if AxisType.Manual in kinds and len(kinds) > 1 else "scan_unrolled"


def negatives(window: Windows, columns: int) -> Array:
    """bool[B, N]: the negatives of each anchor."""
    column = jnp.arange(columns, dtype=jnp.int32)[None, :]
    start, stop, _, real = (v[:, None] for v in window)
    return ((column < start) | (column >= stop)) & (column < real)


def kth_positive(window: Windows, k: Array, columns: int) -> tuple[Array, Array]:
    """int32[B], the k-th column of each anchor's window, and bool[B], whether it is a positive."""
    p = jnp.minimum(window.start + k, columns - 1)
    return p, (window.start + k < window.stop) & (p != window.itself)
