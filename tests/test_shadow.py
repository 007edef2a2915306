import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax.losses.distances import shadow

N, DIM = 12, 4


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, DIM)).astype(np.float32), rng.integers(0, 4, N)


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "mean", "mining": "semihard"}, {"reduction": "sum", "soft": True}],
)
def test_oracle(options):
    """Of vectors of any length, of which some cast their shadow beyond the anchor."""
    x, labels = batch()
    answer = oracle.batch_all(x, labels, 0.5, distance="shadow", **options)
    x64 = x.astype(np.float64)
    lengths = np.linalg.norm(x64, axis=1)
    beyond = (x64 @ x64.T / lengths[:, None] > lengths[:, None]) & ~np.eye(N, dtype=bool)
    assert beyond.sum() > 3
    differentiate = jax.jit(jax.value_and_grad(mj.ShadowLoss(**options), argnums=1, has_aux=True))
    (loss, stats), to_x = differentiate({}, x, labels, 0.5)
    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
    np.testing.assert_allclose(to_x, answer.to_embeddings, rtol=1e-4, atol=1e-5)
    assert stats.totals() == answer.counts
    np.testing.assert_allclose(stats.sum_ap, answer.sum_ap, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"reduction": "mean", "soft": True}])
def test_of_unit_vectors_it_is_the_cosine_triplet_loss(options):
    """And half the squared Euclidean one at twice the margin."""
    x, labels = batch()

    def run(loss, margin):
        def of(x):
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
            return loss({}, x, labels, margin)

        return jax.jit(jax.value_and_grad(of, has_aux=True))(x)

    (loss, stats), to_x = run(mj.ShadowLoss(**options), 0.3)
    (cosine, counts), to_x2 = run(mj.TripletLoss("cosine", **options), 0.3)
    np.testing.assert_allclose(loss, cosine, rtol=1e-5)
    np.testing.assert_allclose(to_x, to_x2, rtol=1e-4, atol=1e-6)
    assert stats.totals() == counts.totals()
    if not options:
        (squared, counts), _ = run(mj.TripletLoss("squared_euclidean"), 0.6)
        np.testing.assert_allclose(2 * loss, squared, rtol=1e-5)
        assert stats.totals() == counts.totals()


def test_the_anchor_is_the_axis():
    """Not symmetric; 0 for all that casts its shadow on the anchor itself, and for no anchor."""
    x, y = jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0], [2.0, 5.0], [4.0, 0.0]])
    np.testing.assert_allclose(shadow(x, y), [[1, 0, 2], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(shadow(y[:1], x[:1]), [[0]], atol=1e-6)
    to_x, to_y = jax.grad(lambda x, y: shadow(x, y).sum(), argnums=(0, 1))(x, y)
    assert np.all(np.isfinite(to_x))
    assert not np.any(to_x[1])
    np.testing.assert_allclose(to_y, [[-1, 0], [0, 0], [1, 0]], atol=1e-6)


def test_it_takes_references():
    x, labels = batch()
    given = {"references": x[:5], "reference_labels": labels[:5]}
    found = jax.jit(mj.ShadowLoss())({}, x, labels, 0.5, **given)
    answer = oracle.batch_all(x, labels, 0.5, distance="shadow", **given)
    np.testing.assert_allclose(found[0], answer.loss, rtol=1e-5)
    assert mj.TrainConfig(loss="shadow", memory=16).distance == "cosine"
