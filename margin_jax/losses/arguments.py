"""What the loss may be given: checked, in words, before anything is computed."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from margin_jax.devices.meshes import gathered


def check_rows(
    name: str,
    labels_name: str,
    where_name: str,
    rows: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """Checked rows in at least float32, padding of ones, their labels and their mask."""
    x, given = gathered(jnp.asarray(rows)), known_labels(labels)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point; got {x.dtype}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape [rows, dim], neither of them 0; got {x.shape}")
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{labels_name} must be integers; got {given.dtype}")
    check_fit(labels_name, given)
    y = gathered(jnp.asarray(given))
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{labels_name} must have shape {x.shape[:1]}, one for each row of {name}; "
            f"got {y.shape}"
        )
    # The cast is outside the custom gradient, so the gradient comes back in the type given.
    x = x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
    if where is None:
        return x, y, jnp.ones(y.shape, bool)
    real = gathered(jnp.asarray(where))
    if real.dtype != jnp.bool_:
        raise TypeError(f"{where_name} must be boolean; got {real.dtype}")
    if real.shape != y.shape:
        raise ValueError(f"{where_name} must have shape {y.shape}; got {real.shape}")
    # Not even NaN in the padding may reach a gradient (0 × NaN is NaN), nor a division by the
    # length of a row, which a distance of the user's own may do.
    return jnp.where(real[:, None], x, 1), y, real


def known_labels(labels: ArrayLike) -> Array | np.ndarray:
    """On the host unless they are JAX's, so that what 32 bits do not hold is seen before it is cut.

    Also a column of a table or a tensor of another library.
    """
    on_device = any(
        isinstance(part, Array) or hasattr(part, "__jax_array__")
        for part in jax.tree.leaves(labels)
    )
    return jnp.asarray(labels) if on_device else np.asarray(labels)


def check_fit(name: str, labels: object) -> None:
    """Refuses an array of NumPy that JAX would cut to 32 bits, without a word.

    Raises:
        ValueError: for such labels.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return
    dtype = jax.dtypes.canonicalize_dtype(labels.dtype)
    if dtype != labels.dtype and not np.array_equal(labels, labels.astype(dtype)):
        raise ValueError(f"{name} must fit {dtype}; got {labels.min()} to {labels.max()}")


def of_one_type(labels: Array, reference_labels: Array) -> tuple[Array, Array]:
    """Both in a type that holds all of either, since one is looked up in the other."""
    dtypes = labels.dtype, reference_labels.dtype
    common = jax.dtypes.canonicalize_dtype(jnp.promote_types(*dtypes))
    if common.kind == "f" or not all(np.can_cast(dtype, common) for dtype in dtypes):
        raise TypeError(
            f"no integer type in use holds labels and reference_labels; got {dtypes[0]} and "
            f"{dtypes[1]}"
        )
    return labels.astype(common), reference_labels.astype(common)


def check_margin(margin: ArrayLike, dtype: jnp.dtype, rows: int | None = None) -> Array:
    """The margin; finite if its value is known without waiting for a device.

    Args:
        margin: a scalar or, with `rows`, one for each.
        dtype: of what is returned.
        rows: how many.
    """
    if isinstance(margin, list | tuple) and all(isinstance(m, numbers.Real) for m in margin):
        margin = np.asarray(margin)
    if isinstance(margin, np.ndarray) and margin.dtype.kind in "USTMm":
        raise TypeError(f"margin must be a number, such as state.margin; got {margin.dtype}")
    if isinstance(margin, numbers.Real | np.ndarray) and not np.all(np.abs(margin) < 1e38):
        raise ValueError(f"margin must be below 1e38 and finite; got {margin}")
    if isinstance(margin, int | np.integer | np.ndarray) and np.asarray(margin).dtype.kind in "iuO":
        margin = np.asarray(margin, float)  # before it is cut to 32 bits
    try:
        mu = jnp.asarray(margin)
    except (TypeError, ValueError):
        kind = type(margin).__name__
        raise TypeError(f"margin must be a number, such as state.margin; got {kind}") from None
    if mu.shape not in ((), (rows,)):
        each = "" if rows is None else f", or of shape ({rows},), one for each anchor"
        raise ValueError(f"margin must be a scalar{each}; got shape {mu.shape}")
    if not (jnp.issubdtype(mu.dtype, jnp.floating) or jnp.issubdtype(mu.dtype, jnp.integer)):
        raise TypeError(f"margin must be a real number; got {mu.dtype}")
    return mu.astype(dtype)
