import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj

N, DIM, COUNTS = 12, 4, (50, 2, 7, 400, 9)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x, proxies = rng.normal(size=(N, DIM)), rng.normal(size=(len(COUNTS), DIM))
    return proxies, x, rng.integers(0, len(COUNTS), N)


def margin_of(k, tau, instance):
    def found(label, cosines):
        m = k * (COUNTS[label] / min(COUNTS)) ** -tau
        others = [c for j, c in enumerate(cosines) if j != label]
        wrong = max(others) > cosines[label]
        return m + (instance * m * (1 - cosines[label]) / 2 if wrong else 0)

    return found


LOGS = [math.log(n / sum(COUNTS)) for n in COUNTS]
EFFECTIVE = [(1 - 0.99) / (1 - 0.99**n) for n in COUNTS]


@pytest.mark.parametrize(
    ("options", "of_classes"),
    [
        ({}, {}),
        ({"tau": 0.5, "instance": 0.0}, {}),
        ({"balanced": True, "instance": 2.0}, {"bias": LOGS}),
        ({"reweight_from": 1, "beta": 0.99}, {"weights": EFFECTIVE}),
        ({"reweight_from": 2, "beta": 0.99}, {}),
        ({"reweight_from": 1, "beta": 0.0, "balanced": True}, {"bias": LOGS}),
    ],
)
def test_oracle(options, of_classes):
    proxies, x, labels = batch()
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    loss = mj.BalancingMarginLoss(scale=8.0, counts=COUNTS, **options)
    m = margin_of(0.3, loss.tau, loss.instance)

    def expected(proxies, x):
        options = {"angular": True, "scale": 8.0, "where": where}
        return oracle.classifier(proxies, x, labels, m, **options, **of_classes)

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, stats), (to_proxies, to_x) = differentiate(proxies, x, labels, 0.3, where=where)
    loss_value, counts = expected(proxies, x)
    np.testing.assert_allclose(value, loss_value, rtol=1e-9)
    assert stats.totals() == counts
    assert min(counts["easy"], counts["hard"]) > 0
    np.testing.assert_allclose(
        to_proxies, oracle.slope(lambda v: expected(v, x)[0], proxies), atol=1e-7
    )
    np.testing.assert_allclose(to_x, oracle.slope(lambda v: expected(proxies, v)[0], x), atol=1e-7)


def test_one_margin_for_all_is_arcface():
    proxies, x, labels = batch()
    loss = mj.BalancingMarginLoss(scale=8.0, tau=0.0, instance=0.0, counts=COUNTS)
    value, stats = jax.jit(loss)(proxies, x, labels, 0.3)
    expected, counted = jax.jit(mj.ArcFaceLoss(8.0))(proxies, x, labels, 0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert stats.totals() == counted.totals()


def test_the_rarest_class_has_the_whole_margin():
    """Wherever it stands in the list."""
    margins = mj.BalancingMarginLoss(counts=(20, 5, 10)).class_margins(0.2)
    np.testing.assert_allclose(margins, [0.05, 0.2, 0.1], rtol=1e-6)


def test_a_misclassified_row_has_more_margin():
    proxies, labels = np.eye(2, dtype=np.float32), np.array([0])
    with_part, without = (
        jax.jit(mj.BalancingMarginLoss(instance=part, counts=(5, 5))) for part in (1.0, 0.0)
    )
    for x, more in (([[0.8, 0.6]], False), ([[0.6, 0.8]], True)):
        x = np.array(x, np.float32)
        given = proxies, x, labels, 0.3
        assert (with_part(*given)[0] > without(*given)[0]) == more


def test_weights_begin_in_their_epoch():
    """As `fit` asks for it; a loss of an epoch is as compiled for any later one."""
    loss = mj.BalancingMarginLoss(reweight_from=3)
    epochs = [loss.in_epoch(epoch, COUNTS) for epoch in (1, 2, 3, 4)]
    assert [bound.reweight_from for bound in epochs] == [0, 0, 1, 1]
    assert len(set(epochs)) == 2
    assert {bound.counts for bound in epochs} == {COUNTS}
    never = mj.BalancingMarginLoss().in_epoch(500, np.array(COUNTS))
    assert never == mj.BalancingMarginLoss(counts=COUNTS)


def test_a_run_gives_the_counts_and_leaves_them_alone(monkeypatch, tmp_path):
    """RMSprop's weight decay reaches all that is trained; counts are a part of the loss's value."""
    seen, state = [], []
    call = mj.BalancingMarginLoss.__call__

    def watched(self, params, *args, **options):
        seen.append((self.counts, self.reweight_from))
        state.append(params.shape)
        return call(self, params, *args, **options)

    monkeypatch.setattr(mj.BalancingMarginLoss, "__call__", watched)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(16), rng.integers(2, 9, 16))
    images = rng.integers(0, 256, (len(labels), 6, 6, 1), np.uint8)
    config = mj.TrainConfig(
        loss="balancing_margin:reweight_from=2",
        dataset="own",
        encoder="mlp",
        epochs=2,
        identities_per_batch=4,
        optimizer="rmsprop",
        out=str(tmp_path / "run"),
    )
    run = mj.fit(config, dataset=mj.Dataset.from_arrays(images, labels))
    names = [int(name) for name in run.data["identities"]["train"]]
    counts = tuple(int(np.sum(labels == name)) for name in names)
    assert set(seen) == {(counts, 0), (counts, 1)}
    assert len(set(counts)) > 2
    assert {shape[0] for shape in state} == {len(counts)}
    assert run.config.distance == "cosine"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mj.BalancingMarginLoss(counts=(3, 0, 2)),
            "without training images .* got 0",
        ),
        (lambda: mj.BalancingMarginLoss(counts=(1.5, 2)), "counts must be whole numbers"),
        (lambda: mj.BalancingMarginLoss(counts="34"), "counts must be whole numbers"),
        (lambda: mj.BalancingMarginLoss(tau=-1.0), "tau must be at least 0 and finite; got -1"),
        (lambda: mj.BalancingMarginLoss(instance=math.nan), "instance must be at least 0 .* nan"),
        (lambda: mj.BalancingMarginLoss(beta=1.0), "beta must be at least 0 and below 1; got 1"),
        (lambda: mj.BalancingMarginLoss(reweight_from=-1), "reweight_from must be at least 0"),
        (lambda: mj.BalancingMarginLoss()(*batch(), 0.1), "each of 5 classes; got 0"),
        (lambda: mj.BalancingMarginLoss(counts=(2, 3))(*batch(), 0.1), "5 classes; got 2"),
        (lambda: mj.BalancingMarginLoss(counts=COUNTS)(*batch(), -0.1), "at least 0; got -0.1"),
        (lambda: mj.BalancingMarginLoss().class_margins(0.1), "counts must be given"),
    ],
)
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_new_margin_compiles_nothing():
    proxies, x, labels = batch()
    traced = []

    @jax.jit
    def value(margin):
        traced.append(margin)
        return mj.BalancingMarginLoss(counts=COUNTS)(proxies, x, labels, margin)[0]

    values = {float(value(jnp.float32(k))) for k in (0.0, 0.1, 0.3)}
    assert len(values) == 3
    assert len(traced) == 1
