"""Networks of Linen and of NNX as pure functions, alone and in a run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import margin_jax as mj
from margin_jax.models import linen

pytestmark = pytest.mark.usefixtures("no_pictures")
FEATURES = 8


def normalised(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class OfLinen(nn.Module):
    @nn.compact
    def __call__(self, examples, *, train):
        x = nn.Dense(12, name="first")(examples)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return normalised(nn.Dense(6, name="last")(x))


class OfNNX(nnx.Module):
    def __init__(self, rngs, rate=0.0, hidden=12):
        self.first = nnx.Linear(FEATURES, hidden, rngs=rngs)
        # Made for evaluation: the mode of training is asked for.
        self.norm = nnx.BatchNorm(hidden, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(rate, deterministic=True, rngs=rngs)
        self.last = nnx.List([nnx.Linear(hidden, 6, rngs=rngs)])
        self.remarks = ["no list of modules"]  # and not hashable

    def __call__(self, examples):
        return normalised(self.last[0](self.drop(nnx.relu(self.norm(self.first(examples))))))


def with_dropout(rngs):
    return OfNNX(rngs, rate=0.3)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    around = rng.normal(0, 1, (40, 1, FEATURES)) + rng.normal(0, 0.7, (40, 6, FEATURES))
    return mj.Dataset.from_arrays(around.reshape(-1, FEATURES), np.repeat(np.arange(40), 6))


@pytest.fixture(scope="module")
def fit(vectors, tmp_path_factory):
    def run(encoder, **options):
        given = {"dataset": "own", "encoder": "own", "identities_per_batch": 8, "epochs": 3}
        given |= {"learning_rate": 1e-2, "out": str(tmp_path_factory.mktemp("runs") / "run")}
        return mj.fit(mj.TrainConfig(**{**given, **options}), dataset=vectors, encoder=encoder)

    return run


@pytest.mark.parametrize("flags", ["", "--xla_backend_optimization_level=1"])
def test_weights_are_drawn_alike_alone_and_in_a_program_of_others(request, monkeypatch, flags):
    """Alone they are compiled apart, with less optimisation."""
    monkeypatch.setenv("XLA_FLAGS", flags)  # read by XLA once, long before
    linen._program.cache_clear()
    request.addfinalizer(linen._program.cache_clear)
    encoder = mj.Encoder(OfLinen())
    init = functools.partial(encoder.init, example_shape=(FEATURES,))
    key = jax.random.key(0)
    alone = init(key)
    for inside in (jax.jit(init)(key), jax.jit(lambda: init(key))()):
        chex.assert_trees_all_close(alone, inside, rtol=1e-6)
    assert jax.eval_shape(lambda: init(key)) == jax.eval_shape(lambda: alone)
    assert np.std(alone[0]["first"]["kernel"]) > 0
    assert (linen._program() is linen._part) == bool(flags)


def equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), tree, other))


def timeless(history):
    clocks = ("seconds", "images_per_second", "data_wait")
    return [{k: v for k, v in record.items() if k not in clocks} for record in history]


def test_the_same_network_of_either_kind_embeds_and_steps_alike():
    linen, of_nnx = mj.Encoder(OfLinen()), mj.Encoder(OfNNX(nnx.Rngs(3)))
    params, batch_stats = of_nnx.init(jax.random.key(0), (FEATURES,))
    given, _ = linen.init(jax.random.key(0), (FEATURES,))
    same = {**params, "last": params["last"][0]}
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, given)
    rng = np.random.default_rng(0)
    examples = jnp.asarray(rng.normal(2, 3, (24, FEATURES)), jnp.float32)
    labels = jnp.arange(24) // 3
    optimizer, schedule = optax.sgd(0.5), mj.constant(0.2)
    states, outputs, embedded = [], [], []
    for encoder, weights in ((linen, same), (of_nnx, params)):
        moved = encoder.with_normalisation(batch_stats, np.full(FEATURES, 2), np.full(FEATURES, 3))
        state = mj.create_state(weights, moved, optimizer, schedule, jax.random.key(1))
        step = mj.make_train_step(encoder.apply, optimizer)
        for _ in range(3):
            state, output = step(state, examples, labels)
        states.append(state)
        outputs.append(output)
        embedded.append(
            encoder.apply(state.params, state.batch_stats, examples, train=False, key=None)[0]
        )
    (a, b), (x, y) = states, embedded
    np.testing.assert_allclose(x, y, atol=1e-5)
    after = {**b.params, "last": b.params["last"][0]}
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-5), a.params, after)
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, atol=1e-5), a.batch_stats, b.batch_stats
    )
    assert not equal(b.batch_stats["module"], batch_stats["module"])
    np.testing.assert_allclose(outputs[0].loss, outputs[1].loss, rtol=1e-5)
    assert outputs[0].stats.totals() == outputs[1].stats.totals()


def test_a_run_of_nnx_goes_on_exactly_and_is_loaded(fit, vectors):
    encoder = mj.Encoder(with_dropout)
    whole = fit(encoder)
    assert whole.report["test"]["auc"] > 0.7
    assert whole.history[2]["loss"] < whole.history[0]["loss"]
    part = fit(encoder, epochs=2)
    out = {"out": str(part.path), "resume": True}
    resumed = fit(mj.Encoder(lambda rngs: OfNNX(rngs, rate=0.3)), **out)
    assert timeless(resumed.history) == timeless(whole.history)
    again = mj.load_run(whole.path, encoder=mj.Encoder(with_dropout(nnx.Rngs(9))))
    assert equal((again.params, again.batch_stats), (whole.params, whole.batch_stats))
    found = again.embed(vectors.examples)
    np.testing.assert_array_equal(found, whole.embed(vectors.examples))
    np.testing.assert_array_equal(found, resumed.embed(vectors.examples))
    with pytest.raises(ValueError, match=r"\(data.json differs in network\)"):
        fit(mj.Encoder(OfNNX), **out)


def test_a_module_that_is_made_is_what_every_run_begins_with():
    module = with_dropout(nnx.Rngs(5))
    kernel = np.asarray(module.first.kernel[...])
    encoder, drawn = mj.Encoder(module), mj.Encoder(with_dropout)
    module.first.kernel[...] = 0 * kernel  # whatever becomes of it
    first, second = (encoder.init(jax.random.key(seed), (FEATURES,)) for seed in (0, 1))
    assert equal(first, second)
    np.testing.assert_array_equal(first[0]["first"]["kernel"], kernel)
    first, second, third = (drawn.init(jax.random.key(seed), (FEATURES,)) for seed in (0, 1, 0))
    assert equal(first, third)
    assert not equal(first[0], second[0])


def test_random_streams_are_a_function_of_the_key():
    encoder = mj.Encoder(lambda rngs: OfNNX(rngs, rate=0.5))
    params, batch_stats = encoder.init(jax.random.key(0), (FEATURES,))
    examples = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, FEATURES)), jnp.float32)

    def embed(train, key):
        return encoder.apply(params, batch_stats, examples, train=train, key=key)

    (a, after), (b, _), (c, _) = (embed(True, jax.random.key(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(a, c)
    assert not np.allclose(a, b)
    assert jax.tree.structure(after) == jax.tree.structure(batch_stats)
    vectors, same = embed(False, None)
    assert same is batch_stats
    np.testing.assert_array_equal(vectors, embed(False, jax.random.key(7))[0])


class Split(nnx.Module):
    """Three noises of streams that lie in one array, and a parameter `train`."""

    def __init__(self, rngs):
        self.rngs = rngs.split(3)
        self.scale = nnx.Param(jnp.ones(FEATURES))

    def __call__(self, examples, *, train):
        if not train:
            return examples * self.scale[...]
        noise = nnx.vmap(lambda rngs: jax.random.normal(rngs(), (FEATURES,)))(self.rngs)
        return examples * self.scale[...] + noise[: len(examples)]


def test_a_network_can_be_told_its_mode_and_own_many_streams():
    encoder = mj.Encoder(Split)
    params, batch_stats = encoder.init(jax.random.key(0), (FEATURES,))
    zeros = jnp.zeros((3, FEATURES))
    noise, _ = encoder.apply(params, batch_stats, zeros, train=True, key=jax.random.key(0))
    assert len(np.unique(noise)) == 3 * FEATURES  # nor do two rows share one
    none, _ = encoder.apply(params, batch_stats, zeros, train=False, key=None)
    assert not none.any()


def test_a_network_is_known_by_its_attributes_whatever_its_weights():
    described = {
        mj.Encoder(module).description((FEATURES,))
        for module in (with_dropout, with_dropout(nnx.Rngs(1)), with_dropout(nnx.Rngs(2)))
    }
    (text,) = described
    assert text.startswith("Encoder(module=OfNNX( drop=Dropout( ")
    assert text.endswith(f"{8 * 12 + 12 + 24 + 12 * 6 + 6} parameters")
    assert "rate=0.3" in text
    assert " at 0x" not in text
    assert "\n" not in text
    others = {
        mj.Encoder(module).description((FEATURES,))
        for module in (OfNNX, lambda rngs: OfNNX(rngs, 0.3, hidden=13))
    }
    assert len(others | described) == 3


@pytest.mark.parametrize("module", [nn.Dense, 3, "small_cnn", jnp.ones(3)], ids=str)
def test_what_is_no_network_is_refused(module):
    with pytest.raises(TypeError, match="takes a module of Linen or NNX, or a function"):
        mj.Encoder(module)
