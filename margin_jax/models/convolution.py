"""Convolution whose gradients are fast on CPU inside loops, too.

XLA's CPU compiler brings a convolution into the order of axes that its fast kernels want, but not
within ``lax.scan`` and other loops (`JAX issue 12868 <https://github.com/jax-ml/jax/issues/12868>`_).
Those of the gradients, whose axes JAX only renames, are then computed one number at a time, which
takes ten times as long or more. Here they come in that order from the start.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

_AXES = ("NHWC", "HWIO", "NHWC")

Padding = tuple[tuple[int, int], ...]


def conv_general_dilated(
    x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any
) -> Array:
    """``lax.conv_general_dilated`` for ``nn.Conv(..., conv_general_dilated=...)``.

    Args:
        x: float[batch, H, W, C].
        kernel: float[h, w, C, D].
        window_strides, padding: as `lax` has them.
        options: what else `nn.Conv` gives; nothing but the defaults is done here.

    Returns:
        [batch, H', W', D]. Differentiable in reverse mode only.

    Raises:
        ValueError: for other options than the defaults.
    """
    if x.ndim != 4:
        raise ValueError(f"expected images [batch, H, W, C]; got shape {x.shape}")
    dilated = any(
        n != 1 for name in ("lhs_dilation", "rhs_dilation") for n in options.get(name, ())
    )
    grouped = any(options.get(f"{name}_group_count", 1) != 1 for name in ("feature", "batch"))
    typed = any(options.get(name) for name in ("precision", "preferred_element_type"))
    if dilated or grouped or typed:
        raise ValueError(f"expected no dilation, groups, precision or type; got {options}")
    strides = tuple(map(int, window_strides))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(x, kernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_AXES)


def _forward(
    x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, ...], padding: Padding, kept: tuple[Array, Array], to_y: Array
) -> tuple[Array, Array]:
    cotangents: tuple[Array, Array] = lax.platform_dependent(
        *kept,
        to_y,
        cpu=functools.partial(_pull_in_order, strides=strides, padding=padding),
        default=functools.partial(_pull, strides=strides, padding=padding),
    )
    return cotangents


_conv.defvjp(_forward, _backward)


def _pull(
    x: Array, kernel: Array, to_y: Array, strides: tuple[int, ...], padding: Padding
) -> tuple[Array, Array]:
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=_AXES,
    )
    to_x, to_kernel = jax.vjp(convolve, x, kernel)[1](to_y)
    return to_x, to_kernel


def _pull_in_order(
    x: Array, kernel: Array, to_y: Array, strides: tuple[int, ...], padding: Padding
) -> tuple[Array, Array]:
    """Both as convolutions of [N, H, W, C] with [H, W, I, O], those of a 1 × 1 kernel as products.

    As a convolution its second gradient has a kernel of the size of the image, which is slow.
    """
    if kernel.shape[:2] == strides == (1, 1) and not any(map(any, padding)):
        to_x = jnp.einsum("bhwo,io->bhwi", to_y, kernel[0, 0])
        return to_x, jnp.einsum("bhwi,bhwo->io", x, to_y)[None, None]
    sizes = list(zip(x.shape[1:3], kernel.shape, to_y.shape[1:3], strides, padding, strict=False))
    to_x = lax.conv_general_dilated(
        to_y,
        jnp.swapaxes(kernel[::-1, ::-1], 2, 3),
        (1, 1),
        [(k - 1 - low, n + low - (out - 1) * s - 1) for n, k, out, s, (low, _) in sizes],
        lhs_dilation=strides,
        dimension_numbers=_AXES,
    )
    to_kernel = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(to_y, (1, 2, 0, 3)),
        (1, 1),
        [(low, k + (out - 1) * s - n - low) for n, k, out, s, (low, _) in sizes],
        rhs_dilation=strides,
        dimension_numbers=_AXES,
    )
    return to_x, jnp.transpose(to_kernel, (1, 2, 0, 3))
