"""Tiles of pairwise distances: one function a metric, ``(x[B, D], y[N, D]) -> [B, N]``.

Every matrix product asks for the highest precision: the default of TPUs and of recent GPUs rounds
the factors to bfloat16 or TF32, which puts an error of up to 0.06 on distances between unit
vectors, as large as one step of a margin schedule.

All gradients are finite everywhere, and 0 where a distance is 0.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from margin_jax.choices import check_choice

DistanceFn = Callable[[Array, Array], Array]


def dot(x: Array, y: Array) -> Array:
    """``x·y`` of all pairs of rows, at the highest precision."""
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def squared_euclidean(x: Array, y: Array) -> Array:
    """``‖x − y‖²``, computed as ``‖x‖² + ‖y‖² − 2x·y`` so that it runs as one matrix product.

    The absolute error is a few rounding units of ``‖x‖² + ‖y‖²``: about 1e-6 for unit vectors in
    float32. Values that rounding has pushed below 0 are 0, with gradient 0. Rows that lie far from
    0 and near each other are measured from one of them: see :func:`origin`.
    """
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
    return jax.nn.relu(squares - 2.0 * dot(x, y))


def euclidean(x: Array, y: Array) -> Array:
    """``‖x − y‖``, the root of :func:`squared_euclidean`.

    Near zero the root magnifies the error of the square: vectors of length 1 that coincide can
    come out up to about 1e-3 apart in float32. Beyond a distance of 0.1 the error is below 5e-6.
    """
    squared = squared_euclidean(x, y)
    apart = squared != 0  # true of NaN too, which must not turn into 0
    # The inner `where` keeps the root's infinite slope at 0 out of the gradient.
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def unit(v: Array) -> Array:
    """``v / ‖v‖`` of each row; a zero vector stays one, with gradient 0."""
    # The angle does not depend on the length; scaled first, no square can under- or overflow.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=1, keepdims=True))
    zero = scale == 0
    v = v / jnp.where(zero, 1.0, scale)
    squared = jnp.sum(v * v, axis=1, keepdims=True)
    return jnp.where(zero, 0.0, v * jax.lax.rsqrt(jnp.where(zero, 1.0, squared)))


def cosine(x: Array, y: Array) -> Array:
    """``1 − x·y / (‖x‖‖y‖)``, between 0 and 2. A zero vector is at distance 1 from everything."""
    return jax.nn.relu(1.0 - dot(unit(x), unit(y)))


def between_directions(x: Array, y: Array) -> Array:
    """:func:`euclidean` of the rows at length 1."""
    return euclidean(unit(x), unit(y))


def shadow(x: Array, y: Array) -> Array:
    """``| ‖x‖ − x·y / ‖x‖ |``: how far the shadow of y on the axis of x falls from x itself.

    Not symmetric, x being the anchor, and 0 for all y whose shadow is x. A zero vector casts none,
    and has none: it is at distance 0 from everything, with gradient 0. Between vectors of length 1
    it is :func:`cosine`, to rounding.
    """
    axis = unit(x)
    # ‖x‖ as the shadow of x on its own axis: the guard of that one serves both.
    gap = jnp.sum(axis * x, axis=1, keepdims=True) - dot(axis, y)
    return gap * jax.lax.stop_gradient(jnp.sign(gap))


# The two below have no matrix product to lean on. `checkpoint` makes the backward pass compute the
# differences again, so that the [B, N, D] cube stays inside fused loops and never reaches memory.


def _absolute_difference(x: Array, y: Array) -> Array:
    """float[B, N, D]. Its slope where x = y is 0; that of `jnp.abs` is 1."""
    difference = x[:, None, :] - y[None, :, :]
    return difference * jax.lax.stop_gradient(jnp.sign(difference))


@jax.checkpoint
def manhattan(x: Array, y: Array) -> Array:
    """``Σ |x − y|``."""
    return jnp.sum(_absolute_difference(x, y), axis=-1)


@jax.checkpoint
def chebyshev(x: Array, y: Array) -> Array:
    """``max |x − y|``; coordinates that tie for the largest share the gradient equally."""
    return jnp.max(_absolute_difference(x, y), axis=-1)


# Compiled once also where nobody has put what it serves under `jit`.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def origin(distance: DistanceFn, rows: Array, real: Array | None = None) -> Array:
    """float[1, D]: what to take off both factors of a distance, which then cancels less.

    Euclidean distances are the same from any origin, but ``‖x‖² + ‖y‖² − 2x·y`` loses what rows
    have in common: with 128 coordinates of mean 100 and spread 0.01 it is rounding alone. So where
    the rows' common vector is longer than √2 and more than 32 times their spread (the root of the
    mean square of the distance to the mean), the origin is the row nearest the mean, not the mean
    itself, so that whole numbers stay whole. Else it is 0: embeddings of length 1 always keep
    their last bit.

    The error that is left in a squared distance, in float32, of rows about one place (the largest
    in 400 random cases): where the origin moves, 7 rounding units of the squared distances to it,
    as of rows about 0; where it does not, 3e-6, or .0011 of the mean squared distance between rows,
    whichever is more. Of several places far apart no origin helps within each: the error is a few
    rounding units of the square of how far they are.

    No gradient flows through it: distances do not depend on it.

    Args:
        distance: any; of one that is not Euclidean the origin is 0.
        rows: float[N, D], those that give the origin.
        real: bool[N], the rows that count. Those with numbers that are not finite never do.
    """
    if distance not in (euclidean, squared_euclidean):
        return jnp.zeros_like(rows, shape=(1, rows.shape[1]))
    rows = jax.lax.stop_gradient(rows)
    squares = jnp.sum(rows * rows, axis=1)
    counted = jnp.isfinite(squares)
    counted = counted if real is None else counted & real
    rows = jnp.where(counted[:, None], rows, 0)
    count = jnp.maximum(jnp.sum(counted), 1).astype(rows.dtype)
    mean = jnp.sum(rows, axis=0, keepdims=True) / count
    common = jnp.sum(mean * mean)
    spread = jnp.sum(jnp.where(counted, squares, 0)) / count - common
    far = common > jnp.maximum(1000 * spread, 2)
    away = jnp.sum((rows - mean) ** 2, axis=1)
    nearest = jnp.argmin(jnp.where(counted, away, jnp.inf))
    # No `cond`: on an accelerator the host would wait for it, and the rest takes less.
    return jnp.where(far, jax.lax.dynamic_slice_in_dim(rows, nearest, 1, axis=0), 0)


def paired(distance: DistanceFn, x: Array, y: Array) -> Array:
    """float[n]: the distance of each row of x[n, D] to the same row of y[n, D]."""
    return jax.vmap(lambda a, b: distance(a[None], b[None])[0, 0])(x, y)


# Symmetric ones, which compare images after training too; so `shadow` is not among them.
DISTANCES: dict[str, DistanceFn] = {
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
    "manhattan": manhattan,
    "chebyshev": chebyshev,
}


# Those that run as one matrix product; others may hold the differences of all coordinates at once.
PRODUCTS = (euclidean, squared_euclidean, cosine, shadow)


@dataclasses.dataclass(frozen=True)
class OwnDistance:
    """A distance of the user's own: a tile of another shape would broadcast without a word.

    Attributes:
        function: what was given.
    """

    function: DistanceFn

    def __call__(self, x: Array, y: Array) -> Array:
        """Its tile, in the type of the rows.

        Raises:
            ValueError: for another shape.
            TypeError: for what is not floating point.
        """
        tile = jnp.asarray(self.function(x, y))
        if tile.shape != (len(x), len(y)):
            raise ValueError(
                f"a distance must return shape [B, N] for x[B, D] and y[N, D]; got {tile.shape} "
                f"for {x.shape} and {y.shape}"
            )
        if not jnp.issubdtype(tile.dtype, jnp.floating):
            raise TypeError(f"a distance must return floating point; got {tile.dtype}")
        return tile.astype(x.dtype)


def _could_change(distance: DistanceFn) -> bool:
    """Whether it is an object, or a method of one, that stays equal to itself when it changes."""
    if not inspect.ismethod(distance) and (
        inspect.isroutine(distance) or hasattr(distance, "__wrapped__")  # of `jax.jit`
    ):
        return False
    owner = getattr(distance, "__self__", distance)
    held = isinstance(owner, type | functools.partial)
    return not held and type(owner).__hash__ is object.__hash__


def get_distance(distance: str | DistanceFn) -> DistanceFn:
    """The function behind a name of :data:`DISTANCES`; one of the user's own is checked when used.

    Raises:
        ValueError: for an unknown name.
        TypeError: for a function that cannot be hashed, or an object whose values could change.
    """
    if not callable(distance):
        return DISTANCES[check_choice("distance", distance, DISTANCES)]
    try:
        hash(distance)
    except TypeError as error:
        raise TypeError(
            f"a distance must be hashable, since programs are compiled for it; got "
            f"{type(distance).__name__}: {error}"
        ) from None
    if _could_change(distance):
        kind = type(getattr(distance, "__self__", distance)).__name__
        raise TypeError(
            "a distance must be a function or an object that cannot change, such as a frozen "
            f"dataclass, since programs are compiled for it once; got {kind}. What is learned of a "
            "distance belongs to the network, which can apply it to the embeddings"
        )
    known = distance in PRODUCTS or distance in DISTANCES.values()
    return distance if known or isinstance(distance, OwnDistance) else OwnDistance(distance)
