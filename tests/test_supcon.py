import jax
import numpy as np
import oracle
import pytest

import margin_jax as mj

N, DIM = 12, 4


def batch():
    rng = np.random.default_rng(0)
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    labels = np.array([0, 1, 1, 0, 0, 2, 2, 3, 3, 3, 1, 3])  # 2 is alone once padding is gone
    return rng.normal(size=(N, DIM)), labels, where


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_oracle(temperature):
    x, labels, where = batch()
    loss = mj.SupConLoss(temperature)

    def expected(x):
        return oracle.supcon(x, labels, temperature=temperature, where=where)

    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))
        (value, stats), to_x = differentiate({}, x, labels, 0.3, where=where)
    np.testing.assert_allclose(value, expected(x), rtol=1e-9)
    np.testing.assert_allclose(to_x, oracle.slope(expected, x), atol=1e-7)
    answer = oracle.batch_all(x, labels, 0.3, distance="cosine", where=where)
    assert stats.totals() == answer.counts


def test_the_margin_only_counts():
    x, labels, _ = batch()
    differentiate = jax.jit(jax.value_and_grad(mj.SupConLoss(), argnums=3, has_aux=True))
    (value, stats), to_margin = differentiate({}, x, labels, 0.3)
    (other, counted), _ = differentiate({}, x, labels, 1.0)
    assert to_margin == 0
    assert other == value
    assert counted.totals()["easy"] < stats.totals()["easy"]


def test_a_cold_temperature_neither_overflows_nor_is_silent_about_nan():
    x, labels, _ = batch()
    x = x.astype(np.float32)
    loss = mj.SupConLoss(1e-3)
    differentiate = jax.jit(jax.value_and_grad(lambda x: loss({}, x, labels, 0.3)[0]))
    value, to_x = differentiate(x)
    assert np.isfinite(value)
    assert np.all(np.isfinite(to_x))
    x[3, 1] = np.nan
    assert np.isnan(differentiate(x)[0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_mean_nothing(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0 and finite; got"):
        mj.SupConLoss(temperature)
