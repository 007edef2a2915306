"""Encoders of vectors: the published head, and a linear map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj
from margin_jax.models.make import make_encoder


def layers(params):
    return [np.asarray(layer["kernel"]).shape for layer in params["head"].values()]


def test_the_head_is_the_published_one():
    """Vectors through 512 and 256 to the embedding, with ReLU between, and length 1."""
    encoder = make_encoder("head", 128)
    params, stats = encoder.init(jax.random.key(0), (40,))
    assert layers(params) == [(40, 512), (512, 256), (256, 128)]
    x = np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)
    found, _ = encoder.apply(params, stats, jnp.asarray(x), train=False, key=None)
    for i, layer in enumerate(params["head"].values()):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_drops_out_is_half_and_three_tenths():
    encoder = make_encoder("head", 8)
    assert encoder.module.head.dropout == (0.0, 0.5, 0.3)
    params, stats = encoder.init(jax.random.key(0), (4,))
    x = jnp.ones((2, 4))
    one, _ = encoder.apply(params, stats, x, train=True, key=jax.random.key(1))
    assert not np.allclose(one[0], one[1])


def test_sizes_and_rates_are_said_in_the_language_of_all():
    config = mj.TrainConfig(encoder="head:hidden=64/32/16,dropout=0/0/0.1")
    name, parameters = config.encoder_parameters()
    params, _ = make_encoder(name, 8, **parameters).init(jax.random.key(0), (4, 3))
    assert layers(params) == [(12, 64), (64, 32), (32, 16), (16, 8)]
    for wrong in ("hidden=64", "dropout=0.5/1", "hidden=0/2", "hidden=a/b", "dropout=nan/0"):
        _, parameters = mj.TrainConfig(encoder=f"head:{wrong}").encoder_parameters()
        with pytest.raises(
            ValueError, match="encoder head takes sizes up to 65,536 and as many rates"
        ):
            make_encoder(name, 8, **parameters)


def test_linear_is_linear_but_for_the_length():
    encoder = make_encoder("linear", 8)
    params, stats = encoder.init(jax.random.key(0), (4,))
    assert layers(params) == [(4, 8)]
    kernel = np.asarray(params["head"]["Dense_0"]["kernel"])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found, _ = encoder.apply(params, stats, jnp.asarray(x), train=False, key=None)
    expected = (x @ kernel) / np.linalg.norm(x @ kernel, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_it_is_the_encoder_of_vectors_where_none_is_said():
    vectors = {"dataset": "vectors", "data_dir": "v.npz"}
    assert mj.TrainConfig(**vectors).encoder == "head"
    assert mj.TrainConfig(**vectors, encoder="linear").encoder == "linear"
    assert mj.TrainConfig().encoder == "small_cnn"
