import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj

N, DIM = 12, 4
LOSSES = {"triplet": mj.FisherTripletLoss, "contrastive": mj.FisherContrastiveLoss}


def batch():
    rng = np.random.default_rng(0)
    labels = np.array([7, 3, 7, 7, 9, 3, 7, 9, 9, 4, 9, 7])
    x = rng.normal(size=(N, DIM)) + 2 * np.eye(10, DIM)[labels % 4]
    return x, labels, np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)


@pytest.mark.parametrize(
    ("lam", "margin", "unit"),
    [(0.01, 0.25, False), (0.8, 1.0, False), (1.0, 6.0, False), (0.8, 1.0, True)],
)
@pytest.mark.parametrize("kind", LOSSES)
def test_oracle(kind, lam, margin, unit):
    """Of classes of unlike sizes; one of a row, one with padding beside it."""
    x, labels, where = batch()
    loss = LOSSES[kind](lam=lam, unit=unit)

    def expected(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x
        return oracle.fisher(x, labels, margin, lam=lam, kind=kind, where=where)

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))
        (value, stats), to_x = differentiate({}, x, labels, margin, where=where)
    loss_value, counts = expected(x)
    np.testing.assert_allclose(value, loss_value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(to_x, oracle.slope(lambda v: expected(v)[0], x), atol=1e-6)
    assert stats.totals() == counts


@pytest.mark.parametrize("kind", LOSSES)
def test_it_is_the_authors_own_over_given_triplets(kind):
    """All of a batch of classes of one size, which sums over pairs weigh alike; U included."""
    rng = np.random.default_rng(1)
    features, kernel = rng.normal(size=(N, 6)), rng.normal(size=(6, DIM))
    labels = np.repeat([0, 1, 2], 4)
    features += 3 * np.eye(3, 6)[labels]
    a, p, n = np.array(
        [
            (a, p, n)
            for a in range(N)
            for p in range(N)
            for n in range(N)
            if a != p and labels[a] == labels[p] != labels[n]
        ]
    ).T
    b, margin, lam, eps = len(a), 3.0, 0.4, 0.05
    given = features[a], features[p], features[n]

    def expected(kernel):
        theirs = {"lam": lam, "eps": b * eps, "kind": kind}
        return oracle.fisher_triplets(*given, kernel, b * margin, **theirs) / b

    loss = LOSSES[kind](lam=lam)

    def ours(kernel):
        ridge = eps * jnp.sum(kernel**2)
        return loss({"ridge": ridge}, features @ kernel, labels, margin)[0]

    with jax.enable_x64(True):
        value, to_kernel = jax.jit(jax.value_and_grad(ours))(kernel)
    assert expected(kernel) > 0
    np.testing.assert_allclose(value, expected(kernel), rtol=1e-9)
    np.testing.assert_allclose(to_kernel, oracle.slope(expected, kernel), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_far_from_0_it_is_the_same(kind):
    """In float32, as nothing is left of sums of squares there; the counts too."""
    x, labels, _ = batch()
    x = np.round(x * 8) / 8  # so that the sum has no rounding
    loss = jax.jit(LOSSES[kind](lam=0.5))
    value, stats = loss({}, x.astype(np.float32), labels, 1.0)
    moved, counts = loss({}, (x + 4096).astype(np.float32), labels, 1.0)
    np.testing.assert_allclose(moved, value, rtol=1e-3)
    assert counts.totals() == stats.totals()


def test_the_last_layer_counts_only_where_it_is_given():
    x, labels, _ = batch()
    x = x.astype(np.float32)
    loss = jax.jit(mj.FisherContrastiveLoss(lam=0.5))
    plain, with_layer = (loss(params, x, labels, 9.0)[0] for params in ({}, {"ridge": 1.2}))
    np.testing.assert_allclose(with_layer - plain, (1.5 - 0.5) * 1.2, rtol=1e-4)


@pytest.mark.parametrize("lam", [0.0, -0.5, 1.01, float("nan")])
def test_lam_beyond_its_range(lam):
    for kind in LOSSES.values():
        with pytest.raises(ValueError, match="lam must be above 0 and at most 1; got"):
            kind(lam=lam)
