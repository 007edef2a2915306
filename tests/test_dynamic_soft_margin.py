import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows

N, DIM = 12, 4


def batch(seed=0):
    rng = np.random.default_rng(seed)
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    return rng.normal(size=(N, DIM)), rng.integers(0, 4, N), where


@pytest.mark.parametrize(("bins", "shares"), [(32, 2**18), (33, 50)])
def test_oracle(monkeypatch, bins, shares):
    """Over three batches, counted as a whole or in parts; the histogram has no gradient."""
    monkeypatch.setattr("margin_jax.losses.dynamic_soft_margin._SHARES", shares)
    loss = mj.DynamicSoftMarginLoss(bins=bins, momentum=0.2)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(x, labels, where, state):
        value, stats, after = loss({}, x, labels, 0.3, where=where, state=state)
        return value, (stats, after)

    with jax.enable_x64(True):
        state, histogram = np.zeros(bins), np.zeros(bins)
        for seed in range(3):
            x, labels, where = batch(seed)
            (value, (stats, state)), to_x = ours(x, labels, where, state)
            options = {"momentum": 0.2, "where": where}
            expected, after, weights = oracle.dynamic_soft_margin(x, labels, histogram, **options)
            np.testing.assert_allclose(value, expected, rtol=1e-9)
            np.testing.assert_allclose(state, after, rtol=1e-9, atol=1e-12)

            def fixed(x, labels=labels, before=histogram, weights=weights, options=options):
                return oracle.dynamic_soft_margin(x, labels, before, weights=weights, **options)[0]

            np.testing.assert_allclose(to_x, oracle.slope(fixed, x), atol=1e-7)
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            assert stats.totals() == oracle.batch_all(unit, labels, 0.3, where=where).counts
            histogram = after
    assert np.count_nonzero(histogram) > 10


def test_a_batch_without_a_triplet_is_not_remembered():
    x, labels, _ = batch()
    loss = mj.DynamicSoftMarginLoss(16)
    run, start = jax.jit(loss), loss.init_state()
    _, _, state = run({}, x, labels, 0.3, state=start)
    value, _, after = run({}, x, np.zeros_like(labels), 0.3, state=state)
    assert value == 0
    np.testing.assert_array_equal(after, state)
    _, _, still = run({}, x, np.zeros_like(labels), 0.3, state=start)
    np.testing.assert_array_equal(still, start)


def test_differences_at_both_ends_have_a_bin():
    """±2, of vectors opposite to each other; every triplet counts once."""
    x = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0], [1, 0]], np.float32)
    labels, loss = np.array([0, 0, 1, 1, 1]), mj.DynamicSoftMarginLoss(16)
    _, stats, state = jax.jit(loss)({}, x, labels, 0.3, state=loss.init_state())
    assert stats.totals()["valid"] == 18
    np.testing.assert_allclose(np.sum(state), 1, rtol=1e-6)
    # By (anchor, positive, negative): [0, 0, 1], ..., and [1, 1, 1] against 0 the other way round.
    np.testing.assert_allclose(state[0], 8 / 18, rtol=1e-6)
    np.testing.assert_allclose(state[-1], 4 / 18, rtol=1e-6)


@pytest.mark.parametrize(("devices", "microbatch"), [(4, 8), (4, None)])
def test_its_state_goes_from_step_to_step_on_any_number_of_devices(devices, microbatch):
    """And no optimiser changes it, weight decay neither."""
    loss = mj.DynamicSoftMarginLoss(16, 0.3)
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.01))

    def embed(params, batch_stats, rows, *, train, key):
        return rows @ params, batch_stats

    def new_state():
        params = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
        key, schedule = jax.random.key(0), mj.constant(0.3)
        return mj.create_state(params, {}, optimizer, schedule, key, loss_state=loss.init_state())

    mesh = make_mesh(devices, microbatch or 16)
    shared = mj.make_train_step(embed, optimizer, loss, mesh=mesh, microbatch=microbatch)
    alone = mj.make_train_step(embed, optimizer, loss)
    one, many, expected = new_state(), place_copies(new_state(), mesh), loss.init_state()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows, labels = rng.normal(size=(16, 5)).astype(np.float32), np.repeat(np.arange(4), 4)
        vectors = rows @ np.asarray(one.params)
        *_, expected = jax.jit(loss)({}, vectors, labels, 0.3, state=expected)
        one, output = alone(one, rows, labels)
        many, found = shared(many, place_rows(rows, mesh), place_rows(labels, mesh))
        np.testing.assert_allclose(found.loss, output.loss, rtol=1e-5)
        np.testing.assert_allclose(one.loss_state, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(many.loss_state, expected, rtol=1e-5, atol=1e-6)
        assert many.loss_state.sharding.is_fully_replicated
    np.testing.assert_allclose(np.sum(one.loss_state), 1, rtol=1e-5)


def test_its_state_is_the_same_on_every_device():
    x, labels, where = batch()
    loss = mj.DynamicSoftMarginLoss(16)
    mesh = make_mesh(4, N)

    def local(x, labels, where):
        start = loss.init_state()
        return loss({}, x, labels, 0.3, where=where, state=start, axis_name="data")[::2]

    shared = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())
    given = x.astype(np.float32), labels, where
    value, state = jax.block_until_ready(jax.jit(shared)(*given))
    start = loss.init_state()
    expected, _, after = jax.jit(loss)({}, given[0], labels, 0.3, where=where, state=start)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(state, after, rtol=1e-5, atol=1e-7)


def test_a_run_that_goes_on_has_the_histogram(tiny_fit, tmp_path):
    options = {"loss": "dynamic_soft_margin:bins=16,momentum=0.1"}
    whole = tiny_fit(tmp_path / "whole", epochs=2, **options)
    tiny_fit(tmp_path / "part", epochs=1, **options)
    resumed = tiny_fit(tmp_path / "part", epochs=2, resume=True, **options)
    assert resumed.history[1]["loss"] == whole.history[1]["loss"]
    assert whole.history[1]["loss"] < whole.history[0]["loss"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mj.DynamicSoftMarginLoss(bins=1),
            "bins must be a whole number from 2 to 65,536; got 1",
        ),
        (lambda: mj.DynamicSoftMarginLoss(bins=64.0), "a whole number from 2 to 65,536; got 64.0"),
        (lambda: mj.DynamicSoftMarginLoss(momentum=0.0), "momentum must be above 0 and at most 1"),
        (lambda: mj.DynamicSoftMarginLoss(momentum=1.5), "at most 1; got 1.5"),
        (
            lambda: mj.DynamicSoftMarginLoss(8)({}, *batch()[:2], 0.3, state=jnp.zeros(9)),
            r"state must have shape \(8,\), as init_state\(\) gives it; .*; got \(9,\)",
        ),
        (
            lambda: mj.DynamicSoftMarginLoss(8)({}, *batch()[:2], 0.3, state={}),
            r"create_state takes it as loss_state; got dict",
        ),
    ],
)
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
