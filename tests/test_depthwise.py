"""Depthwise convolution, beside XLA's grouped one and beside plain loops."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from margin_jax.models.depthwise import DepthwiseConv, depthwise_conv

NONE, EVEN, ODD = ((0, 0), (0, 0)), ((1, 1), (2, 2)), ((0, 3), (4, 1))
# kernel, strides, rows and columns, padding: the last is more than the filter on one side
CASES = [
    (1, 1, (4, 5), NONE),
    (2, 2, (7, 6), ODD),
    (3, 1, (7, 6), EVEN),
    (3, 2, (7, 6), EVEN),
    (3, 2, (6, 9), ODD),
    (3, 2, (8, 8), NONE),
    (3, 3, (8, 10), ODD),
    (5, 1, (5, 8), EVEN),
    (5, 2, (6, 7), EVEN),
    (5, 2, (9, 8), ODD),
    (2, 1, (6, 7), ODD),
]


def grouped(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def arrays(size, shape=(7, 6), channels=4, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, channels))
    kernel = rng.normal(size=(size, size, 1, channels))
    return x.astype(dtype), kernel.astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def value_and_cotangents(convolve, x, kernel, strides, padding):
    y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, padding), x, kernel)
    to_y = np.random.default_rng(1).normal(size=y.shape)
    return y, *pull(jnp.asarray(to_y, jnp.bfloat16).astype(y.dtype))


@pytest.mark.parametrize(("size", "strides", "shape", "padding"), CASES)
def test_equals_the_grouped_convolution_in_value_and_gradients(size, strides, shape, padding):
    x, kernel = arrays(size, shape)
    ours = value_and_cotangents(depthwise_conv, x, kernel, strides, padding)
    theirs = value_and_cotangents(grouped, x, kernel, strides, padding)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_equals_plain_loops():
    x, kernel = arrays(3, (5, 6))
    strides, ((top, bottom), (left, right)) = 2, ODD
    y, *_ = value_and_cotangents(depthwise_conv, x, kernel, strides, ODD)
    rows, cols = (5 + top + bottom - 3) // 2 + 1, (6 + left + right - 3) // 2 + 1
    expected = np.zeros((2, rows, cols, 4))
    for b, i, j, c, u, v in np.ndindex(2, rows, cols, 4, 3, 3):
        row, col = i * strides + u - top, j * strides + v - left
        if 0 <= row < 5 and 0 <= col < 6:
            expected[b, i, j, c] += x[b, row, col, c] * kernel[u, v, 0, c]
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2])
def test_bfloat16_is_summed_in_float32(strides):
    x, kernel = arrays(5, (16, 16), dtype=jnp.bfloat16)
    ours = value_and_cotangents(depthwise_conv, x, kernel, strides, EVEN)
    wide = (x.astype(np.float32), kernel.astype(np.float32))
    exact = value_and_cotangents(depthwise_conv, *wide, strides, EVEN)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # rounded once, and not after each of up to 512 terms
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=1e-4)


def test_maps_over_images_and_kernels():
    x, kernel = arrays(3)

    def convolve(x, kernel):
        return value_and_cotangents(depthwise_conv, x, kernel, 2, EVEN)

    together = jax.vmap(convolve)(np.stack([x, x + 1]), np.stack([kernel, 2 * kernel]))
    apart = [convolve(x, kernel), convolve(x + 1, 2 * kernel)]
    for a, b in zip(together, zip(*apart, strict=True), strict=True):
        np.testing.assert_allclose(a, np.stack(b), atol=2e-5)


@pytest.mark.parametrize("strides", [1, 2])
def test_only_cpus_sum_shifted_images(strides):
    x, kernel = arrays(3)
    traced = value_and_cotangents.trace(depthwise_conv, x, kernel, strides, EVEN)
    for platform in ("tpu", "cuda", "rocm"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 3, platform  # y and both cotangents
        assert "feature_group_count = 4" in text, platform
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_module_is_flax_grouped_convolution(dtype):
    x, _ = arrays(3)
    ours = DepthwiseConv(3, EVEN, 2, dtype)
    theirs = nn.Conv(
        4, (3, 3), (2, 2), padding=EVEN, feature_group_count=4, use_bias=False, dtype=dtype
    )
    params = jax.jit(ours.init)(jax.random.key(0), x)
    kernel = params["params"]["kernel"]
    made = jax.eval_shape(theirs.init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, made)
    assert kernel.dtype == jnp.float32
    y, expected = (jax.jit(module.apply)(params, x) for module in (ours, theirs))
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.03)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(7, 6), (8, 9)])  # strides meet odd and even ends
def test_same_padding_is_that_of_flax(size, shape):
    x, kernel = arrays(size, shape)
    options = {"padding": "SAME", "feature_group_count": 4, "use_bias": False}
    params = {"params": {"kernel": kernel}}
    theirs = nn.Conv(4, (size, size), (2, 2), **options)
    ours = DepthwiseConv(size, "SAME", 2)
    found, expected = (jax.jit(module.apply)(params, x) for module in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_module_draws_its_kernel_as_flax_does():
    x = jnp.zeros((1, 8, 8, 7))
    modules = DepthwiseConv(3, EVEN), nn.Conv(7, (3, 3), feature_group_count=7, use_bias=False)
    ours, theirs = (jax.jit(module.init)(jax.random.key(3), x) for module in modules)
    chex.assert_trees_all_equal(ours, theirs)
    assert np.std(ours["params"]["kernel"]) > 0.1


def test_strides_beyond_the_kernel_are_refused():
    x, kernel = arrays(2)
    with pytest.raises(ValueError, match="strides"):
        depthwise_conv(x, kernel, 3, NONE)
