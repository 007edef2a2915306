import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj

N, DIM, COUNTS = 12, 4, (50, 2, 7)


def batch():
    rng = np.random.default_rng(0)
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    return rng.normal(size=(N, DIM)), rng.integers(0, len(COUNTS), N), where


def margins_of(x, labels, where, k, tau, instance):
    """By plain loops."""
    found = np.zeros(N)
    for a in range(N):
        others = [j for j in range(N) if where[j] and j != a]
        d = {j: 1 - oracle.cosine_similarity(x[a], x[j]) for j in others}
        positives = [j for j in others if labels[j] == labels[a]]
        negatives = [j for j in others if labels[j] != labels[a]]
        hard = [d[n] < d[p] for p in positives for n in negatives]
        difficulty = 0.0
        if hard:
            difficulty = np.mean(hard) * np.mean([d[p] for p in positives]) / 2
        found[a] = k * (COUNTS[labels[a]] / min(COUNTS)) ** -tau * (1 + instance * difficulty)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"tau": 0.5, "instance": 3.0}, {"reduction": "mean", "mining": "hard", "tau": 0.0}],
)
def test_oracle(options):
    x, labels, where = batch()
    loss = mj.TransplantLoss(counts=COUNTS, **options)
    margins = margins_of(x, labels, where, 0.8, loss.tau, loss.instance)
    kept = {"reduction": loss.reduction, "mining": loss.mining, "where": where}
    answer = oracle.batch_all(x, labels, margins, distance="cosine", **kept)
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(1, 3), has_aux=True))
        (value, stats), (to_x, to_k) = differentiate({}, x, labels, 0.8, where=where)
    np.testing.assert_allclose(value, answer.loss, rtol=1e-9)
    np.testing.assert_allclose(to_x, answer.to_embeddings, atol=1e-12)
    np.testing.assert_allclose(to_k, np.sum(answer.to_margin * margins) / 0.8, rtol=1e-9)
    assert stats.totals() == answer.counts


def test_a_rare_class_has_more_margin_and_a_hard_anchor_too():
    x, labels, where = batch()
    margins = margins_of(x, labels, where, 0.8, 1.0, 1.0)
    assert margins[labels == 1].min() > margins[labels == 2].max() > margins[labels == 0].max()
    plain = functools.partial(mj.TransplantLoss, counts=(9, 9, 9), reduction="sum")
    losses = [plain(instance=part)({}, x.astype(np.float32), labels, 0.8)[0] for part in (0.0, 1.0)]
    assert losses[0] < losses[1]


def test_of_one_size_and_without_difficulty_it_is_the_triplet_loss():
    x, labels, _ = batch()
    loss = mj.TransplantLoss(counts=(9, 9, 9), instance=0.0)
    found = loss({}, x.astype(np.float32), labels, 0.3)
    expected = mj.TripletLoss("cosine")({}, x.astype(np.float32), labels, 0.3)
    assert found[0] == expected[0]
    assert found[1].totals() == expected[1].totals()


def test_a_label_without_a_count_is_not_silent():
    x, labels, _ = batch()
    loss = mj.TransplantLoss(counts=COUNTS)
    for beyond in (3, -1):
        other = jnp.asarray(labels).at[4].set(beyond)
        assert np.isnan(loss({}, x, other, 0.3)[0])
        assert np.isfinite(loss({}, x, other, 0.3, where=np.arange(N) != 4)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mj.TransplantLoss(counts=(3, 0)), "class without training images .* got 0 for cl"),
        (lambda: mj.TransplantLoss(tau=-1.0), "tau must be at least 0 and finite; got -1"),
        (lambda: mj.TransplantLoss(instance=float("nan")), "instance must be at least 0 .* nan"),
        (lambda: mj.TransplantLoss(mining="easy"), "mining must be one of"),
        (lambda: mj.TransplantLoss()({}, *batch()[:2], 0.1), "counts must be given"),
    ],
)
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
