import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj

N, DIM, CLASSES = 12, 4, 5
MARGINS = (0.0, 0.3, 1.2)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x, proxies = rng.normal(size=(N, DIM)), rng.normal(size=(CLASSES, DIM))
    return proxies, x, rng.integers(0, CLASSES, N)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("loss", [mj.ArcFaceLoss(8.0), mj.CosFaceLoss(8.0)], ids=["arc", "cos"])
def test_oracle(loss, margin):
    """Value, counts and gradients; at 1.2 some angles are beyond π."""
    proxies, x, labels = batch()
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    angular = isinstance(loss, mj.ArcFaceLoss)

    def expected(proxies, x):
        options = {"angular": angular, "scale": 8.0, "where": where}
        return oracle.classifier(proxies, x, labels, lambda *_: margin, **options)

    if angular and margin == 1.2:
        own = [oracle.cosine_similarity(v, proxies[y]) for v, y in zip(x, labels, strict=True)]
        assert sum(math.acos(c) + margin > math.pi for c in own) >= 2

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, stats), (to_proxies, to_x) = differentiate(proxies, x, labels, margin, where=where)
        assert value.dtype == to_x.dtype == jnp.float64
    loss_value, counts = expected(proxies, x)
    np.testing.assert_allclose(value, loss_value, rtol=1e-9)
    assert stats.totals() == counts
    assert min(counts["easy"], counts["hard"]) > 0
    slopes = (
        oracle.slope(lambda v: expected(v, x)[0], proxies),
        oracle.slope(lambda v: expected(proxies, v)[0], x),
    )
    np.testing.assert_allclose(to_proxies, slopes[0], atol=1e-7)
    np.testing.assert_allclose(to_x, slopes[1], atol=1e-7)


def test_distances_of_its_triplets():
    proxies, x, labels = batch()
    _, stats = jax.jit(mj.CosFaceLoss())(proxies, x, labels, 0.2)
    away = 1 - np.array([[oracle.cosine_similarity(v, w) for w in proxies] for v in x])
    own = labels[:, None] == np.arange(CLASSES)
    np.testing.assert_allclose(stats.sum_ap, away[own], rtol=1e-5)
    np.testing.assert_allclose(stats.sum_an, (away * ~own).sum(1), rtol=1e-5)
    np.testing.assert_allclose(stats.sum_an_squared, (away**2 * ~own).sum(1), rtol=1e-5)
    assert set(np.asarray(stats.positives)) == {1}
    assert set(np.asarray(stats.negatives)) == {CLASSES - 1}


@pytest.mark.parametrize("towards", [1, -1])
@pytest.mark.parametrize("margin", [0.0, 0.5, math.pi])
def test_gradients_are_finite_where_the_angle_has_none(towards, margin):
    """At its own proxy, opposite to it, and of a length of 0."""
    proxies = np.eye(3, dtype=np.float32)
    x = np.concatenate([towards * proxies * [[1], [1e-20], [1e20]], np.zeros((1, 3))])
    labels = np.array([0, 1, 2, 0])
    differentiate = jax.jit(jax.value_and_grad(mj.ArcFaceLoss(), argnums=(0, 1, 3), has_aux=True))
    (value, _), gradients = differentiate(proxies, x.astype(np.float32), labels, margin)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    assert not np.any(gradients[1][3])


def test_arcface_cuts_its_margin():
    """Else the cosine would come back, and a wide margin be an easy one."""
    proxies, x, labels = batch()
    loss = jax.jit(mj.ArcFaceLoss())
    value = loss(proxies, x, labels, jnp.float32(math.pi))[0]
    np.testing.assert_array_equal(loss(proxies, x, labels, jnp.float32(7))[0], value)


def test_a_label_beyond_the_classes_is_not_silent():
    proxies, x, labels = batch()
    loss = jax.jit(mj.ArcFaceLoss())
    for beyond in (CLASSES, -1):
        labels[3] = beyond
        assert np.isnan(loss(proxies, x, labels, 0.2)[0])
        masked = loss(proxies, x, labels, 0.2, where=np.arange(N) != 3)
        assert np.isfinite(masked[0])


def test_labels_of_few_bits():
    proxies, x, labels = np.ones((300, DIM), np.float32), *batch()[1:]
    loss = jax.jit(mj.CosFaceLoss())
    assert loss(proxies, x, labels.astype(np.int8), 0.2)[0] == loss(proxies, x, labels, 0.2)[0]


def test_the_loss_learns_digits_of_made_up_classes():
    """A few steps of it alone: proxies and embeddings move towards each other."""
    proxies, x, labels = (v.astype(np.float32) if v.dtype == float else v for v in batch())
    loss = mj.ArcFaceLoss(8.0)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for _ in range(60):
        (value, stats), (to_proxies, to_x) = step(proxies, x, labels, 0.3)
        proxies, x = proxies - 0.5 * to_proxies, x - 0.5 * to_x
    assert value < 0.5
    assert stats.easy_fraction == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x, y: mj.ArcFaceLoss()(p[:1], x, y, 0.2), r"\[classes, 4\], of at least 2 cla"),
        (lambda p, x, y: mj.ArcFaceLoss()(p[:, 1:], x, y, 0.2), r"as embeddings; got \(5, 3\)"),
        (lambda p, x, y: mj.ArcFaceLoss()(p, x, y + 1, 0.2), "labels must be from 0 to 4, .* to 5"),
        (lambda p, x, y: mj.ArcFaceLoss()(p, x, y, -0.2), "must be at least 0; got -0.2"),
        (lambda p, x, y: mj.ArcFaceLoss()(p, x, y, np.array(-0.2)), "must be at least 0; got -0.2"),
        (lambda p, x, y: mj.ArcFaceLoss()(p, x, y, [0.2]), "margin must be a scalar"),
        (lambda p, x, y: mj.ArcFaceLoss()({}, x, y, 0.2), "proxies must be an array; got dict"),
        (
            lambda p, x, y: mj.ArcFaceLoss()(p * 1j, x, y, 0.2),
            "must be floating point; got complex",
        ),
        (lambda p, x, y: mj.CosFaceLoss(math.inf), "scale must be above 0 and finite; got inf"),
        (lambda p, x, y: mj.CosFaceLoss().init(jax.random.key(0), 4, 1), "at least 2 identities"),
    ],
)
def test_what_it_refuses(call, message):
    proxies, x, labels = batch()
    labels[:2] = 0, CLASSES - 1
    with pytest.raises((ValueError, TypeError), match=message):
        call(proxies, x, labels)


def test_proxies_are_float32_whatever_else_is_64_bits():
    with jax.enable_x64(True):
        assert mj.ArcFaceLoss().init(jax.random.key(0), 4, 3).dtype == jnp.float32
