"""Encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from margin_jax.evaluation.embedding import embed_examples
from margin_jax.models.encoder import Encoder
from margin_jax.models.make import make_encoder
from margin_jax.models.small_cnn import l2_normalise, max_pool


def encoder():
    return make_encoder("small_cnn", 16)


def pictures(n, size=28, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


@pytest.mark.parametrize("shape", [(28, 28, 1), (37, 50, 3), (112, 112, 3)])
def test_embeddings_have_length_one_at_any_size(shape):
    net = encoder()
    params, batch_stats = net.init(jax.random.key(0), shape)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    vectors = embed_examples(net.apply, params, batch_stats, images)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1e-3


def test_training_moves_batch_statistics_and_evaluation_does_not():
    net = encoder()
    params, before = net.init(jax.random.key(0), (28, 28, 1))
    apply, images = jax.jit(net.apply, static_argnames="train"), pictures(8)
    train, after = apply(params, before, images, train=True, key=jax.random.key(1))
    evaluated, same = apply(params, before, images, train=False, key=None)
    changed = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), before, after)
    assert all(jax.tree.leaves(changed["module"]))
    assert not changed["mean"]
    jax.tree.map(np.testing.assert_array_equal, same, before)
    assert not np.allclose(train, evaluated)


def test_an_image_embeds_alike_in_any_company():
    net = encoder()
    params, batch_stats = net.init(jax.random.key(0), (28, 28, 1))
    images = pictures(300)  # more than a batch, and no multiple of one
    together = embed_examples(net.apply, params, batch_stats, images)
    for rows in ([0], [255, 256, 299], list(range(5))):
        alone = embed_examples(net.apply, params, batch_stats, images[rows])
        np.testing.assert_allclose(alone, together[rows], atol=1e-6)


def test_normalisation_makes_brightness_and_contrast_irrelevant():
    images = pictures(4) // 2
    brighter = images + 100
    net = encoder()
    params, batch_stats = net.init(jax.random.key(0), (28, 28, 1))
    a, b = (
        embed_examples(
            net.apply,
            params,
            net.with_normalisation(batch_stats, v.mean((0, 1, 2)) / 255, v.std((0, 1, 2)) / 255),
            v,
        )
        for v in (images, brighter)
    )
    assert np.abs(a - embed_examples(net.apply, params, batch_stats, images)).max() > 0.01
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_l2_normalise_at_zero():
    vectors, pull = jax.vjp(jax.jit(l2_normalise), np.zeros((2, 3), np.float32))
    assert not np.any(vectors)
    assert np.all(np.isfinite(pull(np.ones((2, 3), np.float32))[0]))


def test_a_module_that_can_not_be_compiled_for_is_refused():
    class Layers(nn.Module):
        sizes: list

    with pytest.raises(TypeError, match=r"attributes of Layers must be hashable, so tuples"):
        Encoder(Layers([8, 4]))
    assert Encoder(Layers((8, 4))).module.sizes == (8, 4)


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'small_cnn'"):
        make_encoder("smal_cnn", 16)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 2)])
def test_max_pool_takes_the_largest_of_each_four_pixels_and_moves_only_that(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    height, width = -(-shape[0] // 2), -(-shape[1] // 2)
    expected, moved = np.empty((2, height, width, 3), np.float32), np.zeros_like(x)
    for n in range(2):
        for row in range(height):
            for column in range(width):
                for channel in range(3):
                    window = x[n, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel]
                    best = np.unravel_index(np.argmax(window), window.shape)
                    expected[n, row, column, channel] = window[best]
                    moved[n, 2 * row + best[0], 2 * column + best[1], channel] = 1
    pooled, gradient = jax.value_and_grad(lambda x: jnp.sum(max_pool(x)))(jnp.asarray(x))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)
    np.testing.assert_array_equal(gradient, moved)
    assert pooled == pytest.approx(expected.sum(), rel=1e-5)


def test_width_multiplies_the_channels():
    params, _ = make_encoder("small_cnn", 16, width=0.25).init(jax.random.key(0), (28, 28, 1))
    channels = [params[f"Conv_{i}"]["kernel"].shape[-1] for i in range(4)]
    assert channels == [8, 16, 32, 32]
    narrowest, _ = make_encoder("small_cnn", 16, width=1e-3).init(jax.random.key(0), (28, 28, 1))
    assert narrowest["Conv_0"]["kernel"].shape[-1] == 1


def test_a_second_run_compiles_no_initialisation(caplog):
    net = make_encoder("small_cnn", 24)
    net.init(jax.random.key(0), (28, 28, 1))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        net.init(jax.random.key(1), (28, 28, 1))
    assert "Compiling" not in caplog.text
