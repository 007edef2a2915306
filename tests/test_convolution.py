"""Gradients of a convolution, in the order of axes that is fast on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from margin_jax.models.convolution import conv_general_dilated

SAME_ON_EACH_SIDE = ((1, 1), (1, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("side", "kernel", "strides", "padding"),
    [
        (9, 3, 1, "SAME"),
        (10, 3, 2, "SAME"),
        (11, 3, 2, SAME_ON_EACH_SIDE),
        (12, 3, 2, SAME_ON_EACH_SIDE),  # the last row has no part in the result
        (8, 1, 1, "SAME"),
        (8, 1, 1, SAME_ON_EACH_SIDE),
        (9, 1, 2, "SAME"),  # nor has every second row
        (17, 7, 2, "SAME"),
        (13, 5, 3, "VALID"),
    ],
)
def test_it_is_the_convolution_of_jax(side, kernel, strides, padding, dtype):
    """Forwards and backwards, in a loop too, where JAX's own gradients are slow but right."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 3, side, side + 1, 4)), dtype)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 4, 5)), dtype)

    def ours(x, w):
        return conv_general_dilated(x, w, (strides, strides), padding)

    def theirs(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (strides, strides), padding, dimension_numbers=numbers
        )

    def pulled(convolve):
        def one(_, x):
            y, pull = jax.vjp(convolve, x, weights)
            return None, (y, pull(jnp.sin(y)))

        return jax.jit(lambda: lax.scan(one, None, images)[1])()

    for found, expected in zip(*map(jax.tree.leaves, map(pulled, (ours, theirs))), strict=True):
        assert found.dtype == expected.dtype == dtype
        found, expected = (np.asarray(v, np.float32) for v in (found, expected))
        tolerance = 1e-5 if dtype == jnp.float32 else 0.02
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_elsewhere_it_is_that_of_jax():
    """Accelerators have kernels of their own for these gradients, which they know by their axes."""

    def gradients(convolve):
        images, weights = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
        fn = jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), argnums=(0, 1))
        text = jax.jit(fn).trace(images, weights).lower(lowering_platforms=("cuda",)).as_text()
        return sorted(line.split("dim_numbers")[1] for line in text.splitlines() if "dim_n" in line)

    numbers = ("NHWC", "HWIO", "NHWC")
    ours = gradients(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME"))
    theirs = gradients(
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
    )
    assert len(theirs) == 3
    assert ours == theirs


def test_what_it_does_not_do_is_refused():
    images = jnp.zeros((1, 8, 8, 4))
    for options in ({"feature_group_count": 2}, {"kernel_dilation": 2}):
        conv = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **options)
        with pytest.raises(
            ValueError, match=r"expected no dilation, groups, precision or type; got \{"
        ):
            conv.init(jax.random.key(0), images)
