"""The inception network of FaceNet, against the table that describes it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_jax.models.nn2 import NN2, Block, Inception, l2_pool, max_pool

# Of the published table: pixels a side (for images of 224), channels, thousands of parameters.
TABLE = {
    "conv1": (112, 64, 9),
    "conv2": (56, 192, 115),
    "inception3a": (28, 256, 164),
    "inception3b": (28, 320, 228),
    "inception3c": (14, 640, 398),
    "inception4a": (14, 640, 545),
    "inception4b": (14, 640, 595),
    "inception4c": (14, 640, 654),
    "inception4d": (14, 640, 722),
    "inception4e": (7, 1024, 717),
    "inception5a": (7, 1024, 1600),
    "inception5b": (7, 1024, 1600),
}


@functools.cache
def shapes(net, size, channels=3, batch=2):
    """What initialisation and evaluation would give, without the work."""
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
    variables = jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), images)
    run = functools.partial(
        net.apply, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    features, captured = jax.eval_shape(run, variables, images)
    outputs = {
        name: layer["__call__"][0]
        for name, layer in captured["intermediates"].items()
        if name != "__call__"
    }
    return variables, features, outputs


def random_variables(net, shape, seed=0):
    """Weights of the usual sizes, by numpy: to compile sixty generators takes half a minute."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(
        functools.partial(net.init, train=False), jax.random.key(0), jnp.zeros(shape)
    )

    def draw(leaf):
        if leaf.ndim == 4:
            return rng.normal(0, math.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        return rng.uniform(0.5, 1.5, leaf.shape)

    return jax.tree.map(lambda leaf: draw(leaf).astype(leaf.dtype), like)


def test_parameters_are_those_of_the_table():
    params = shapes(NN2(), 224)[0]["params"]
    # The bias of a BatchNorm stands for the convolution's; its scale is not in the table.
    counts = dict.fromkeys(TABLE, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[0].key.removesuffix("_reduce")
        counts[name] += math.prod(leaf.shape) if path[-1].key != "scale" else 0
    for name, (_, _, thousands) in TABLE.items():
        # The table rounds down or up, and the last two blocks to hundreds of thousands.
        rounding = 1000 if thousands < 1000 else 50_000
        assert abs(counts[name] - 1000 * thousands) < rounding, name
    fully_connected = 1024 * 128 + 128
    assert round((sum(counts.values()) + fully_connected) / 1e6, 1) == 7.5


@pytest.mark.parametrize("size", [220, 224])
def test_sizes_are_those_of_the_table(size):
    _, features, outputs = shapes(NN2(), size)
    assert features.shape == (2, 1024)
    for name, (side, channels, _) in TABLE.items():
        expected = math.ceil(size / (224 // side))
        assert outputs[name].shape == (2, expected, expected, channels), name
    assert outputs["inception5b"].shape[1] == 7


@pytest.mark.parametrize(("size", "left"), [(28, 4), (64, 8)])
def test_a_small_image_keeps_pixels_with_the_small_stem(size, left):
    variables, features, outputs = shapes(NN2(small_stem=True), size, channels=1)
    assert features.shape == (2, 1024)
    assert outputs["inception5b"].shape == (2, left, left, 1024)
    assert variables["params"]["conv1"]["conv"]["kernel"].shape == (7, 7, 1, 64)


def test_features_tell_images_apart():
    net = NN2()
    images = np.random.default_rng(1).normal(size=(3, 28, 28, 1)).astype(np.float32)
    variables = random_variables(net, images.shape)
    features = np.asarray(jax.jit(functools.partial(net.apply, train=False))(variables, images))
    assert features.shape == (3, 1024)
    assert np.all(np.isfinite(features))
    alive = features.std(axis=0) > 1e-3
    assert alive.mean() > 0.3  # 1 × 1 pixel is left, and ReLU leaves about half


def test_computes_in_the_dtype_and_keeps_float32():
    variables, features, outputs = shapes(NN2(dtype=jnp.bfloat16), 32)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(jnp.float32)}


BLOCK = Block(2, (3, 4), (2, 3), "l2", 5)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (BLOCK, (2, 7, 6, 2 + 4 + 3 + 5)),
        (BLOCK._replace(one=0, pool="max", project=0, stride=2), (2, 4, 3, 4 + 3 + 3)),
    ],
)
def test_a_block_trains(block, shape):
    net = Inception(block)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    x[0, :4] = 0  # where a root is pooled
    variables = random_variables(net, x.shape)

    @functools.partial(jax.grad, has_aux=True)
    def gradient(both):
        params, x = both
        y, updated = net.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y * y), (y, updated["batch_stats"])

    (by_params, by_x), (y, batch_stats) = jax.jit(gradient)((variables["params"], x))
    assert y.shape == shape
    if not block.project:
        np.testing.assert_array_equal(y[..., -3:], max_pool(x, 2))
    assert np.all(np.isfinite(by_x))
    for leaf in jax.tree.leaves(by_params):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)
    moved = jax.tree.map(lambda a, b: np.any(a != b), variables["batch_stats"], batch_stats)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_are_of_the_pixels_inside(stride):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    greatest, root = max_pool(x, stride), l2_pool(jnp.asarray(x), stride)
    assert root.shape == greatest.shape == (2, math.ceil(5 / stride), math.ceil(7 / stride), 3)
    for i, row in enumerate(range(0, 5, stride)):
        for j, column in enumerate(range(0, 7, stride)):
            window = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            np.testing.assert_array_equal(greatest[:, i, j], window.max((1, 2)))
            expected = np.sqrt(np.mean(window**2, (1, 2)))
            np.testing.assert_allclose(root[:, i, j], expected, rtol=1e-6)


def test_l2_pool_at_zero_and_in_bfloat16():
    gradient = jax.grad(lambda x: jnp.sum(l2_pool(x)))
    np.testing.assert_array_equal(gradient(jnp.zeros((1, 4, 4, 1))), 0)
    x = jnp.full((1, 4, 4, 1), 1e-4, jnp.bfloat16)
    assert l2_pool(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(l2_pool(x), x)
