"""The global batch, of which each device of a mesh has a part; without a mesh, one has it all."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Axis = str | tuple[str, ...] | None
T = TypeVar("T")


def rows_of_all(rows: T, axis_name: Axis) -> T:
    """The rows of all devices, of arrays that have a row for each example."""
    if axis_name is None:
        return rows
    every: T = jax.tree.map(lambda v: jax.lax.all_gather(v, axis_name, tiled=True), rows)
    return every


def first_row(rows: Array, axis_name: Axis) -> Array:
    """int32[], where the rows of this device begin in those of all."""
    if axis_name is None:
        return jnp.int32(0)
    place: Array = jax.lax.axis_index(axis_name)
    return place * len(rows)


def is_itself(rows: Array, of_all: Array, axis_name: Axis) -> Array:
    """bool[rows, rows of all], True where a row of this device meets itself."""
    own = first_row(rows, axis_name) + jnp.arange(len(rows), dtype=jnp.int32)
    return own[:, None] == jnp.arange(len(of_all), dtype=jnp.int32)[None, :]


def summed(values: T, axis_name: Axis) -> T:
    """The sums over all devices."""
    if axis_name is None:
        return values
    sums: T = jax.lax.psum(values, axis_name)
    return sums
