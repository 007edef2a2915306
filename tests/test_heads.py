"""Heads, and the trunk and head of an encoder."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError

from margin_jax.evaluation.embedding import embed_examples
from margin_jax.models.efficientnet import published_head
from margin_jax.models.heads import Head, Siamese
from margin_jax.models.make import Encoder, make_module
from margin_jax.models.mlp import MLP


def pictures(n, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, channels), np.uint8)


@functools.cache
def small(dtype=jnp.float32):
    """A whole encoder of few parameters, and its variables for images of 8 × 8."""
    encoder = Encoder(Siamese(MLP((32, 16), dtype), Head(6, (12,), (0.0, 0.5), dtype)))
    return encoder, *encoder.init(jax.random.key(0), (8, 8, 1))


@pytest.mark.parametrize(
    ("name", "features", "sizes", "dropout"),
    [
        ("efficientnet_b0", 1280, [(1280, 512), (512, 256), (256, 128)], (0, 0.5, 0.3)),
        ("efficientnet_lite0", 1280, [(1280, 512), (512, 256), (256, 128)], (0, 0.5, 0.3)),
        ("mobilenet_v3_small", 1024, [(1024, 128)], (0.2,)),
        ("resnet50", 2048, [(2048, 512), (512, 256), (256, 128)], (0, 0.5, 0.3)),
        ("vit_tiny", 192, [(192, 512), (512, 256), (256, 128)], (0, 0.5, 0.3)),
        ("dinov2_small", 384, [(384, 512), (512, 256), (256, 128)], (0, 0.5, 0.3)),
        ("nn2", 1024, [(1024, 128)], (0,)),
        ("mlp", 256, [(256, 128)], (0,)),
    ],
)
def test_published_heads(name, features, sizes, dropout):
    head = make_module(name, 128, dtype="bfloat16").head
    variables = jax.eval_shape(
        functools.partial(head.init, train=False), jax.random.key(0), jnp.zeros((1, features))
    )
    kernels = [x.shape for x in jax.tree.leaves(variables) if x.ndim == 2]
    assert kernels == sizes
    assert head.dropout == dropout
    assert head.dtype == jnp.bfloat16


def identity_head(size, dropout):
    """y = x + 1 and then y itself, with dropouts before both."""
    head = Head(size, (size,), dropout)
    one = {"kernel": jnp.eye(size), "bias": jnp.ones(size)}
    two = {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}
    return head, {"params": {"Dense_0": one, "Dense_1": two}}


@pytest.mark.parametrize(
    ("dropout", "values"), [((0.5, 0.0), {1, 3}), ((0.0, 0.5), {0, 4}), ((0.0, 0.0), {2})]
)
def test_dropout_stands_before_its_layer(dropout, values):
    head, variables = identity_head(200, dropout)
    x = jnp.ones((20, 200))
    rngs = {"dropout": jax.random.key(0)} if any(dropout) else {}  # without a rate no key is asked
    y = np.asarray(head.apply(variables, x, train=True, rngs=rngs))
    assert set(np.unique(y)) == values
    assert abs(y.mean() - 2) < 0.1  # what is dropped is made up for: half of them
    np.testing.assert_array_equal(head.apply(variables, x, train=False), 2)


def test_relu_is_between_the_layers_and_not_after_them():
    head, variables = identity_head(3, (0.0, 0.0))
    x = jnp.array([[-5.0, 0.0, 5.0]])
    np.testing.assert_array_equal(head.apply(variables, x, train=False), [[0, 1, 6]])
    last = {"kernel": -jnp.eye(3), "bias": jnp.zeros(3)}
    y = head.apply({"params": {**variables["params"], "Dense_1": last}}, x, train=False)
    np.testing.assert_array_equal(y, [[0, -1, -6]])


def test_each_layer_needs_a_rate():
    with pytest.raises(ValueError, match=r"a rate for each of 2 layers; got \(0.5,\)"):
        Head(4, (8,), (0.5,)).init(jax.random.key(0), jnp.zeros((1, 3)), train=False)


def test_dropout_only_in_training_and_by_key():
    encoder, params, batch_stats = small()
    images = jnp.asarray(pictures(5))
    apply = jax.jit(encoder.apply, static_argnames="train")

    def embed(train, seed):
        key = None if seed is None else jax.random.key(seed)
        return np.asarray(apply(params, batch_stats, images, train=train, key=key)[0])

    np.testing.assert_array_equal(embed(True, 1), embed(True, 1))
    assert np.abs(embed(True, 1) - embed(True, 2)).max() > 1e-2
    np.testing.assert_array_equal(embed(False, None), embed(False, 1))
    assert np.abs(embed(True, 1) - embed(False, None)).max() > 1e-2
    with pytest.raises(InvalidRngError, match="dropout"):
        embed(True, None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_embeddings_are_float32_of_length_one(dtype):
    encoder, params, batch_stats = small(dtype)
    vectors = embed_examples(encoder.apply, params, batch_stats, pictures(5))
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_bfloat16_is_near_float32_and_not_the_same():
    (exact, params, stats), (rough, same, _) = small(), small(jnp.bfloat16)
    chex.assert_trees_all_equal(params, same)
    a, b = (embed_examples(e.apply, params, stats, pictures(5)) for e in (exact, rough))
    assert 1e-5 < np.abs(a - b).max() < 0.05


def test_trunk_and_head_are_apart_and_both_train():
    encoder, params, batch_stats = small()
    assert set(params) == {"trunk", "head"}
    images, target = jnp.asarray(pictures(5)), jnp.eye(5, 6)

    @jax.jit
    @jax.grad
    def gradient(params):
        y, _ = encoder.apply(params, batch_stats, images, train=True, key=jax.random.key(0))
        return jnp.sum(y * target)

    for leaf in jax.tree.leaves(gradient(params)):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)


def test_batch_statistics_of_the_trunk_are_apart_too():
    encoder = Encoder(make_module("nn2", 16, small_stem=True))
    params, batch_stats = jax.eval_shape(
        lambda key: encoder.init(key, (28, 28, 1)), jax.random.key(0)
    )
    assert set(params) == {"trunk", "head"}
    assert set(batch_stats["module"]) == {"trunk"}
    images = jax.ShapeDtypeStruct((4, 28, 28, 1), np.uint8)
    train = functools.partial(encoder.apply, train=True, key=jax.random.key(0))
    vectors, after = jax.eval_shape(train, params, batch_stats, images)
    assert (vectors.shape, vectors.dtype) == ((4, 16), np.float32)
    assert jax.tree.structure(after) == jax.tree.structure(batch_stats)


class Channels(nn.Module):
    """Features that are the mean of each channel."""

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.mean(images, axis=(1, 2))


def test_grey_images_are_repeated_for_a_network_of_colour():
    net = Encoder(Siamese(Channels(), Head(4)), colour=True)
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    params, batch_stats = net.init(jax.random.key(0), (8, 8, 1))
    assert params["head"]["Dense_0"]["kernel"].shape == (3, 4)
    batch_stats = net.with_normalisation(batch_stats, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    embed = functools.partial(net.apply, params, batch_stats, train=False, key=None)
    colour = np.repeat(grey, 3, axis=-1)
    np.testing.assert_array_equal(embed(grey)[0], embed(colour)[0])
    assert np.abs(embed(255 - grey)[0] - embed(grey)[0]).max() > 1e-3


def test_mlp_has_the_layers_it_is_told():
    init = functools.partial(MLP().init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    kernels = [x.shape for x in jax.tree.leaves(variables) if x.ndim == 2]
    assert kernels == [(784, 512), (512, 256)]


def test_equal_networks_share_compilations():
    """A step is cached by its encoder."""
    head = published_head(128, jnp.float32)
    first, second = (Encoder(Siamese(MLP((4,)), head)) for _ in range(2))
    assert first is not second
    assert (hash(first), first) == (hash(second), second)
