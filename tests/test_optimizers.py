"""Optimisers against PyTorch's update rules, learning rates against their formulas."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from margin_jax.training.checkpoint import Checkpoint
from margin_jax.training.optimizers import (
    LEARNING_RATES,
    OPTIMIZERS,
    learning_rate_schedule,
    make_optimizer,
)

STEPS, PER_EPOCH = 40, 7


def expected_rate(name, step):
    """For a learning rate of 0.5 and 40 steps, 7 an epoch."""
    step = min(step, 39)
    if name == "constant":
        return 0.5
    if name == "exponential":
        return 0.5 * math.exp(math.log(0.01) * step / 39)
    if name == "step97":
        return 0.5 * 0.97 ** sum(step >= k * 2.4 * 7 for k in range(1, 9))
    if step < 4:
        return 0.5 * (step + 1) / 4
    return 0.5 + (0.005 - 0.5) * (step - 3) / 36


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_learning_rates_are_their_formulas(name):
    rate = jax.jit(learning_rate_schedule(name, 0.5, STEPS, PER_EPOCH))
    for step in range(50):
        np.testing.assert_allclose(rate(step), expected_rate(name, step), rtol=1e-5)
        assert rate(step).dtype == jnp.float32


def test_learning_rates_end_where_they_should():
    rates = {
        name: [float(learning_rate_schedule(name, 0.5, STEPS, PER_EPOCH)(s)) for s in range(60)]
        for name in LEARNING_RATES
    }
    assert set(rates["constant"]) == {0.5}
    assert rates["exponential"][0] == 0.5
    assert rates["exponential"][39:] == pytest.approx([0.005] * 21)
    assert rates["exponential"][38] > 0.0051
    assert np.argmax(rates["warmup_linear"]) == 3
    assert rates["warmup_linear"][3] == 0.5
    assert min(rates["warmup_linear"][:39]) > 0.0051
    assert rates["warmup_linear"][39:] == pytest.approx([0.005] * 21)
    changes = np.flatnonzero(np.diff(rates["step97"])) + 1
    assert changes.tolist() == [17, 34]  # 16.8 and 33.6; the third is after the end


def test_a_step_that_falls_on_a_step():
    """12 steps are 2.4 epochs of 5, exactly; so are 84 five times 2.4 epochs of 7."""
    rate = learning_rate_schedule("step97", 1.0, 100, 5)
    assert [float(rate(step)) for step in (11, 12)] == pytest.approx([1, 0.97])
    rate = learning_rate_schedule("step97", 1.0, 100, 7)
    assert [float(rate(step)) for step in (83, 84)] == pytest.approx([0.97**4, 0.97**5])


@pytest.mark.parametrize("name", LEARNING_RATES)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_short_runs_have_a_learning_rate(name, steps):
    rate = learning_rate_schedule(name, 0.5, steps, 1)
    values = [float(rate(step)) for step in range(steps)]
    assert values[0] == 0.5
    assert min(values) >= 0.005 * (1 - 1e-6)


def start(seed=0):
    """Parameters and eight gradients, some of them tiny and some zero."""
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=(4, 5)) for name in ("trunk", "head")}
    sizes = np.array([0, 1e-8, 1e-4, 1, 100])
    gradients = [
        {name: rng.normal(size=(4, 5)) * sizes for name in ("trunk", "head")} for _ in range(8)
    ]
    return jax.tree.map(np.float32, params), jax.tree.map(np.float32, gradients)


def walk(optimizer, params, gradients):
    """The parameters after each step."""
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    path = []
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def pytorch_rule(
    name,
    params,
    gradients,
    rates,
    *,
    b1=0.9,
    b2=0.999,
    eps=None,
    decay=0.9,
    momentum=0.9,
    weight_decay=1e-5,
):
    """What torch.optim documents, one array at a time and in float64."""
    eps = eps or {"adam": 1e-8, "adagrad": 1e-10, "rmsprop": 1e-8}[name]
    theta = params.astype(np.float64)
    m, v, path = np.zeros_like(theta), np.zeros_like(theta), []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g.astype(np.float64)
        if name == "adam":
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        elif name == "adagrad":
            v = v + g**2
            step = g / (np.sqrt(v) + eps)
        else:
            g = g + weight_decay * theta
            v = decay * v + (1 - decay) * g**2
            step = m = momentum * m + g / (np.sqrt(v) + eps)
        theta = theta - rate * step
        path.append(theta)
    return path


@pytest.mark.parametrize("schedule", ["constant", "warmup_linear"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_follow_pytorch(name, schedule):
    params, gradients = start()
    path = walk(make_optimizer(name, 0.01, schedule, 8, 4), params, gradients)
    rates = [float(learning_rate_schedule(schedule, 0.01, 8, 4)(step)) for step in range(8)]
    for part in ("trunk", "head"):
        expected = pytorch_rule(name, params[part], [g[part] for g in gradients], rates)
        for ours, theirs in zip(path, expected, strict=True):
            np.testing.assert_allclose(ours[part], theirs, rtol=1e-5, atol=1e-6)
        assert np.abs(path[-1][part] - params[part])[:, 1:].min() > 1e-4


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("adam:b1=0.5,b2=0.9,eps=0.01", {"b1": 0.5, "b2": 0.9, "eps": 0.01}),
        ("adagrad:eps=0.1", {"eps": 0.1}),
        (
            "rmsprop:decay=0.5,momentum=0,eps=0.1,weight_decay=0.1",
            {"decay": 0.5, "momentum": 0.0, "eps": 0.1, "weight_decay": 0.1},
        ),
    ],
)
def test_a_text_sets_what_the_rule_has(text, parameters):
    params, gradients = start()
    path = walk(make_optimizer(text, 0.01, "constant", 8, 4), params, gradients)
    name, given = text.partition(":")[0], [g["head"] for g in gradients]
    expected = pytorch_rule(name, params["head"], given, [0.01] * 8, **parameters)
    usual = pytorch_rule(name, params["head"], given, [0.01] * 8)
    np.testing.assert_allclose(path[-1]["head"], expected[-1], rtol=1e-5, atol=1e-6)
    assert np.abs(expected[-1] - usual[-1]).max() > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_follow_pytorch_itself(name):
    torch = pytest.importorskip("torch")
    params, gradients = start()
    path = walk(make_optimizer(name, 0.01, "constant", 8, 4), params, gradients)
    tensor = torch.nn.Parameter(torch.tensor(params["head"]))
    options = {"alpha": 0.9, "momentum": 0.9, "weight_decay": 1e-5} if name == "rmsprop" else {}
    kind = {"adam": "Adam", "adagrad": "Adagrad", "rmsprop": "RMSprop"}[name]
    optimizer = getattr(torch.optim, kind)([tensor], lr=0.01, **options)
    for ours, gradient in zip(path, gradients, strict=True):
        tensor.grad = torch.tensor(gradient["head"])
        optimizer.step()
        np.testing.assert_allclose(ours["head"], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_adam_at_a_constant_rate_is_optax_adam_bit_for_bit():
    params, gradients = start()
    ours = walk(make_optimizer("adam", 1e-3, "constant", 8, 4), params, gradients)
    theirs = walk(optax.adam(1e-3), params, gradients)
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_trunk_stays_and_then_starts_afresh(name):
    params, gradients = start()
    optimizer = make_optimizer(name, 0.01, "exponential", 8, 2, freeze=2)
    path = walk(optimizer, params, gradients)
    free = walk(make_optimizer(name, 0.01, "exponential", 8, 2), params, gradients)
    for frozen, other in zip(path, free, strict=True):  # the head knows nothing of it
        np.testing.assert_allclose(frozen["head"], other["head"], rtol=1e-6, atol=1e-7)
    for frozen in path[:4]:
        np.testing.assert_array_equal(frozen["trunk"], params["trunk"])
    assert np.any(free[0]["trunk"] != params["trunk"])
    rates = [float(learning_rate_schedule("exponential", 0.01, 8, 2)(s)) for s in range(4, 8)]
    late = pytorch_rule(name, params["trunk"], [g["trunk"] for g in gradients[4:]], rates)
    for ours, expected in zip(path[4:], late, strict=True):
        np.testing.assert_allclose(ours["trunk"], expected, rtol=1e-5, atol=1e-6)
        assert np.any(ours["trunk"] != params["trunk"])


def test_thawing_compiles_nothing_anew():
    params, gradients = start()
    optimizer = make_optimizer("rmsprop", 0.01, "step97", 8, 2, freeze=1)
    traced = 0

    @jax.jit
    def step(gradient, state, params):
        nonlocal traced
        traced += 1
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, moved = optimizer.init(params), []
    for gradient in gradients:
        before = params
        params, state = step(gradient, state, params)
        moved.append(bool(np.any(params["trunk"] != before["trunk"])))
    assert moved == [False, False] + [True] * 6
    assert traced == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_from_a_checkpoint(name, tmp_path):
    params, gradients = start()
    optimizer = make_optimizer(name, 0.01, "warmup_linear", 8, 3, freeze=1)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in gradients[:4]:
        _, state = update(gradient, state, params)
    with Checkpoint(tmp_path / "c") as checkpoint:
        checkpoint.save(1, {"state": state}, {})
        checkpoint.wait()
        fresh = jax.tree.map(jnp.asarray, optimizer.init(params))
        restored = checkpoint.restore({"state": fresh})[0]["state"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    updates = [update(gradients[4], each, params)[0] for each in (state, restored)]
    chex.assert_trees_all_equal(*updates)


def test_nothing_to_freeze():
    optimizer = make_optimizer("adam", 0.01, "constant", 8, 2, freeze=1)
    with pytest.raises(
        ValueError, match=r"'trunk' still, and the network has none; it has Dense_0"
    ):
        optimizer.init({"Dense_0": jnp.zeros(3)})
    make_optimizer("adam", 0.01, "constant", 8, 2).init({"Dense_0": jnp.zeros(3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "rmsprob"}, "optimizer must be one of .* Did you mean 'rmsprop'"),
        ({"schedule": "step79"}, "learning rate schedule must be one of .* mean 'step97'"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and above 0; got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and above 0; got nan"),
        ({"steps": 0}, "^steps must be at least 1; got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1; got 0"),
        ({"freeze": -1}, "freeze must be at least 0; got -1"),
    ],
)
def test_what_no_run_can_have(changes, message):
    make = functools.partial(make_optimizer, learning_rate=0.01, steps=8, steps_per_epoch=2)
    given = {"text": "adam", "schedule": "constant"}
    make(**given)
    with pytest.raises(ValueError, match=message):
        make(**{**given, **changes})
