"""Depthwise convolution, a filter for every channel: on CPU as a sum of shifted images.

XLA has no kernel for it there: its grouped convolution takes many times as long.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

Padding = tuple[tuple[int, int], tuple[int, int]]


class DepthwiseConv(nn.Module):
    """A filter of its own for every channel, without a bias; see :func:`depthwise_conv`.

    Parameter "kernel": float32[kernel_size, kernel_size, 1, C], named, shaped and drawn as that of
    ``nn.Conv(C, ..., feature_group_count=C)``.

    Attributes:
        kernel_size: rows and columns of the filter.
        padding: zeros added ((top, bottom), (left, right)), or "SAME": TensorFlow's, by the size of
            the image, the odd one at the end.
        strides: step between the places where the filter is applied, down and across.
        dtype: of the computation and of the result.
    """

    kernel_size: int
    padding: Padding | Literal["SAME"]
    strides: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, H, W, C] to dtype[batch, H', W', C]."""
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        padding = self.padding
        if padding == "SAME":
            rows, cols = lax.padtype_to_pads(x.shape[1:3], shape[:2], (self.strides,) * 2, padding)
            padding = (rows, cols)
        return depthwise_conv(x, kernel, self.strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, strides: int, padding: Padding) -> Array:
    """y[b, i, j, c] = Σ_uv x[b, i·s + u − top, j·s + v − left, c] · kernel[u, v, 0, c].

    Differentiable in reverse mode only.

    Args:
        x: float[batch, H, W, C]; zero outside.
        kernel: float[k, k, 1, C], of the same type.
        strides: s, at most k.
        padding: ((top, bottom), (left, right)).

    Returns:
        [batch, (H + top + bottom − k) // s + 1, (W + left + right − k) // s + 1, C], of that type.

    Raises:
        ValueError: if strides exceed k: pixels between would have no part in the result.
    """
    if strides > min(kernel.shape[:2]):
        raise ValueError(
            f"strides must be at most the kernel's size; got {strides}, {kernel.shape}"
        )
    y: Array = lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_by_taps, strides=strides, padding=padding),
        default=functools.partial(_grouped, strides=strides, padding=padding),
    )
    return y


def _forward(
    x: Array, kernel: Array, strides: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: int, padding: Padding, kept: tuple[Array, Array], to_y: Array
) -> tuple[Array, Array]:
    cotangents: tuple[Array, Array] = lax.platform_dependent(
        *kept,
        to_y,
        cpu=functools.partial(_pull_by_taps, strides=strides, padding=padding),
        default=functools.partial(_pull_grouped, strides=strides, padding=padding),
    )
    return cotangents


depthwise_conv.defvjp(_forward, _backward)


def _grouped(x: Array, kernel: Array, strides: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pull_grouped(
    x: Array, kernel: Array, to_y: Array, strides: int, padding: Padding
) -> tuple[Array, Array]:
    convolve = functools.partial(_grouped, strides=strides, padding=padding)
    to_x, to_kernel = jax.vjp(convolve, x, kernel)[1](to_y)
    return to_x, to_kernel


def _by_taps(x: Array, kernel: Array, strides: int, padding: Padding) -> Array:
    """The sum over u and v, written out; `kernel` need not be square here."""
    met = _met(x, kernel, strides, padding)
    weights = _wide(kernel).reshape(len(met), -1)
    terms = [a * w for a, w in zip(met, weights, strict=True)]
    total: Array = functools.reduce(jnp.add, terms)
    return total.astype(x.dtype)


def _pull_by_taps(
    x: Array, kernel: Array, to_y: Array, strides: int, padding: Padding
) -> tuple[Array, Array]:
    """Cotangents of `x` and `kernel`; autodiff's of the sum take 2 to 9 times as long."""
    return _to_x(x, kernel, to_y, strides, padding), _to_kernel(x, kernel, to_y, strides, padding)


def _to_x(x: Array, kernel: Array, to_y: Array, strides: int, padding: Padding) -> Array:
    """Σ_uv to_y[b, (i + top − u) / s, (j + left − v) / s, c] · kernel[u, v, 0, c], where s divides.

    Which u those are depends on i modulo s. So rows a, a + s, … and columns b, b + s, … are a
    convolution of `to_y`, without strides, with every s-th tap backwards.
    """
    (top, _), (left, _) = padding
    batch, height, width, channels = x.shape
    rows = _phases(kernel.shape[0], strides, top, height, to_y.shape[1])
    cols = _phases(kernel.shape[1], strides, left, width, to_y.shape[2])
    parts = [
        [_by_taps(to_y, kernel[u, v][::-1, ::-1], 1, (above, beside)) for v, beside in cols]
        for u, above in rows
    ]
    # [batch, H / s, s, W / s, s, C], rounded up
    together = jnp.stack([jnp.stack(line, axis=3) for line in parts], axis=2)
    together = together.reshape(batch, together.shape[1] * strides, -1, channels)
    return together[:, :height, :width]


def _phases(
    taps: int, strides: int, before: int, size: int, out: int
) -> list[tuple[slice, tuple[int, int]]]:
    """For each a < s: taps that reach places a, a + s, …, and how to pad what they are put to."""
    phases = []
    for place in range(before, before + strides):
        taken = slice(place % strides, None, strides)
        last = len(range(taps)[taken]) - 1
        low = last - place // strides
        phases.append((taken, (low, -(-size // strides) + last - low - out)))
    return phases


def _to_kernel(x: Array, kernel: Array, to_y: Array, strides: int, padding: Padding) -> Array:
    """Σ_bij x[b, i·s + u − top, j·s + v − left, c] · to_y[b, i, j, c].

    One pass over the images serves all taps. The sum over the batch comes after it, on its own:
    XLA divides a pass among the cores by what is not summed.
    """
    terms = tuple(a * _wide(to_y) for a in _met(x, kernel, strides, padding))
    zeros = (jnp.float32(0),) * len(terms)
    by_image = lax.reduce(terms, zeros, lambda a, b: tuple(map(jnp.add, a, b)), (1, 2))
    return jnp.sum(jnp.stack(by_image), axis=1).reshape(kernel.shape).astype(kernel.dtype)


def _met(x: Array, kernel: Array, strides: int, padding: Padding) -> list[Array]:
    """x[b, i·s + u − top, j·s + v − left, c] for each tap (u, v); padding may be negative."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    height, width = (n - k + 1 for n, k in zip(padded.shape[1:3], kernel.shape[:2], strict=True))
    return [
        _wide(padded[:, u : u + height : strides, v : v + width : strides])
        for u in range(kernel.shape[0])
        for v in range(kernel.shape[1])
    ]


def _wide(x: Array) -> Array:
    """In the type of the sums."""
    return x.astype(jnp.float32)
