"""Values and gradients of PyTorch Metric Learning 2.9.0, in float64.

`experiments/make_loss_golden.py` recorded them. That library has ArcFace's margin in degrees; here
it is in radians.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import margin_jax as mj

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses_golden.json").read_text())
BATCHES = [(np.array(b["embeddings"]), np.array(b["labels"])) for b in GOLDEN["batches"]]


def cases(*names):
    return [case for case in GOLDEN["cases"] if case["name"] in names]


def assert_golden(found, case):
    value, *gradients = found
    np.testing.assert_allclose(value, case["loss"], rtol=1e-9)
    expected = [case[name] for name in ("to_proxies", "to_embeddings") if name in case]
    for gradient, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    "case", cases("arcface", "cosface"), ids=lambda c: f"{c['name']}-{c['margin']}-{c['scale']}"
)
def test_classifiers(case):
    loss = {"arcface": mj.ArcFaceLoss, "cosface": mj.CosFaceLoss}[case["name"]](case["scale"])
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, _), gradients = differentiate(
            np.array(GOLDEN["proxies"]), *BATCHES[0], np.float64(case["margin"])
        )
        assert_golden((value, *gradients), case)


@pytest.mark.parametrize("case", cases("supcon"), ids=lambda c: str(c["temperature"]))
def test_supcon(case):
    loss = mj.SupConLoss(case["temperature"])
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))
        (value, _), to_x = differentiate({}, *BATCHES[0], 0.2)
        assert_golden((value, to_x), case)


@pytest.mark.parametrize("case", cases("dynamic_soft_margin"), ids=lambda c: str(c["bins"]))
def test_dynamic_soft_margin(case):
    """Over three batches, each of which leaves its mark on the histogram."""
    loss = mj.DynamicSoftMarginLoss(case["bins"], case["momentum"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiate(x, labels, state):
        value, _, after = loss({}, x, labels, 0.2, state=state)
        return value, after

    with jax.enable_x64(True):
        state = np.zeros(case["bins"])
        for (x, labels), step in zip(BATCHES, case["steps"], strict=True):
            (found, state), to_x = differentiate(x, labels, state)
            assert_golden((found, to_x), step)
            np.testing.assert_allclose(state, step["histogram"], rtol=1e-9, atol=1e-15)


def test_all_cases_are_here():
    names = [case["name"] for case in GOLDEN["cases"]]
    counts = {name: names.count(name) for name in names}
    assert counts == {"arcface": 6, "cosface": 6, "supcon": 2, "dynamic_soft_margin": 2}
