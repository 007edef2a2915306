"""Encoders as ONNX do in another runtime what they do in JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import margin_jax as mj
from margin_jax import cli
from margin_jax.models import vit
from margin_jax.models.depthwise import DepthwiseConv
from margin_jax.models.make import make_encoder
from margin_jax.runs.onnx_graph import onnx_model
from margin_jax.runs.portable import ONNX

pytestmark = pytest.mark.usefixtures("no_pictures")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnx", reason="needs onnx")


def run(model, examples):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"examples": examples})
    return found


def check(embed, shape, dtype=np.float32, atol=1e-5):
    """For batches of several sizes, of one model."""
    model = onnx_model(embed, shape, dtype, "")
    for count in (1, 3):
        numbers = np.random.default_rng(count).uniform(0, 200, (count, *shape))
        examples = numbers.astype(dtype) / (1 if dtype == np.uint8 else 100)
        examples = examples.astype(dtype)
        expected = jax.jit(embed)(examples)
        assert count == 1 or np.ptp(expected, axis=0).max() > 100 * atol
        np.testing.assert_allclose(run(model, examples), expected, rtol=2e-6, atol=atol)


# All were compared by hand; most compile for long, so their parts follow.
@pytest.mark.parametrize("name", ["small_cnn", "head", "linear", "mlp"])
def test_encoders(name):
    shape = (40,) if name in ("head", "linear") else (32, 32, 3)
    encoder = make_encoder(name, 16)
    params, batch_stats = encoder.init(jax.random.key(0), shape)
    dtype = np.float32 if len(shape) == 1 else np.uint8
    check(lambda x: encoder.apply(params, batch_stats, x, train=False, key=None)[0], shape, dtype)


def test_depthwise_convolutions():
    """Of the form for no platform in particular, a grouped convolution."""
    module = DepthwiseConv(3, "SAME", strides=2)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 7, 6, 4)))
    check(lambda x: module.apply(variables, x).reshape(x.shape[0], -1), (7, 6, 4))


def test_transformers():
    """A block, behind embeddings of places that are resized."""
    module = vit.Block(2, True, jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 7, 8), np.float32))
    variables = jax.tree.map(lambda v: np.asarray(v) + np.float32(0.5), variables)
    learned = jax.random.normal(jax.random.key(1), (1, 1 + 4 * 4, 8))

    def embed(x):
        token = jnp.broadcast_to(learned[:, :1], (x.shape[0], 1, 8))
        x = jnp.concatenate([token, x], axis=1) + vit.resized(learned, (4, 4), (2, 3))
        return module.apply(variables, x)[:, 0]

    check(embed, (6, 8))


def test_pools():
    """As NN2 pools, which takes long to compile."""

    def embed(x):
        squares = nn.avg_pool(x**2, (3, 3), (2, 2), "SAME")
        norms = jnp.sqrt(9 * nn.avg_pool(x * x, (3, 3), (2, 2), "SAME", count_include_pad=False))
        pooled = nn.max_pool(x, (3, 2), (1, 2), ((1, 1), (0, 1)))
        return jnp.concatenate([v.reshape(v.shape[0], -1) for v in (squares, norms, pooled)], 1)

    check(embed, (7, 6, 2))


def test_what_is_shared_by_all_examples():
    token = jnp.arange(4.0)

    def embed(x):
        tokens = jnp.broadcast_to(token, (x.shape[0], 1, 4))
        both = jnp.concatenate([tokens, x], axis=1)
        return (
            jnp.where(both > 0.5, both, 2 * both)[:, ::2].sum(axis=2)
            + both[:, 1, 1:3].min(1)[:, None]
        )

    check(embed, (3, 4))


def test_convolutions():
    kernel = jax.random.normal(jax.random.key(0), (3, 2, 2, 6))

    def embed(x):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            ((1, 0), (2, 1)),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        return jax.nn.gelu(y, approximate=False).reshape(x.shape[0], -1)

    check(embed, (6, 5, 4))


def test_bfloat16_becomes_float32():
    encoder = make_encoder("small_cnn", 16, dtype="bfloat16", width=0.25)
    params, batch_stats = encoder.init(jax.random.key(0), (16, 16, 1))

    def embed(x):
        return encoder.apply(params, batch_stats, x, train=False, key=None)[0]

    examples = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    found = run(onnx_model(embed, (16, 16, 1), np.uint8, ""), examples)
    np.testing.assert_allclose(found, jax.jit(embed)(examples), atol=2e-2)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("embed", "said"),
    [
        (lambda x: jnp.sort(x, axis=1), "it uses sort"),
        (lambda x: jnp.arange(8.0)[x[:, :1].astype(int)], "it looks up computed places"),
        (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), "it pads between pixels"),
        (lambda x: x.reshape(len(x), -1), "it must take any .* x.shape.0. instead of len.x."),
    ],
)
def test_what_has_no_place_in_onnx_is_said(embed, said):
    with pytest.raises(ValueError, match=f"the network cannot be written as ONNX: {said}"):
        onnx_model(embed, (4,), np.float32, "")


def test_a_run(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "vectors.npz", features=rng.normal(size=(80, 12)), labels=np.arange(80) // 4
    )
    data = {"dataset": "vectors", "data_dir": str(tmp_path / "vectors.npz")}
    small = {"epochs": 1, "identities_per_batch": 2, "encoder": "linear"}
    trained = mj.fit(mj.TrainConfig(**small, **data, out=str(tmp_path / "run")))
    with pytest.raises(SystemExit) as error:
        cli.main(["export", str(trained.path), "--out", str(tmp_path / "model"), "--onnx"])
    assert not error.value.code
    assert "encoder.onnx" in capsys.readouterr().out
    vectors = rng.normal(size=(5, 12)).astype(np.float32)
    found = run((tmp_path / "model" / ONNX).read_bytes(), vectors)
    np.testing.assert_allclose(found, trained.embed(vectors), atol=1e-5)
    assert "encoder.onnx" in (tmp_path / "model" / "README.md").read_text()
    assert mj.load_pretrained(tmp_path / "model").threshold == trained.threshold

    monkeypatch.setitem(sys.modules, "onnx", None)  # so that importing it fails
    with pytest.raises(ValueError, match=r"ONNX needs onnx: pip install 'margin-jax\[onnx\]'"):
        trained.export(tmp_path / "other", onnx=True)
    assert not (tmp_path / "other").exists()
