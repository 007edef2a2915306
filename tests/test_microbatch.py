"""The gradient of a whole batch by parts: whose gradient it is, and that memory falls."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import margin_jax as mj
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows
from margin_jax.models.encoder import Encoder
from margin_jax.models.make import make_encoder

BATCH, SIDE = 24, 6
SCHEDULE = mj.constant(0.1)
AUGMENT = mj.make_augment("flip,shift:1,crop:0.8")


class Plain(nn.Module):
    """Every row for itself."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(6, (3, 3))(images))
        x = nn.Dense(5)(x.reshape(len(x), -1))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Noisy(nn.Module):
    """With BatchNorm and dropout."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(12, use_bias=False)(images.reshape(len(images), -1))
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        x = nn.Dense(5)(nn.Dropout(0.5, deterministic=not train)(x))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def drifting(params, batch_stats, images, *, train, key):
    """Subtracts the mean of all that it has seen before, which is nothing of this part."""
    x = images.reshape(len(images), -1).astype(jnp.float32) / 255.0 - batch_stats["mean"]
    after = {
        "mean": 0.7 * batch_stats["mean"] + 0.3 * x.mean(axis=0),
        "seen": batch_stats["seen"] + 1,
    }
    return jnp.tanh(x @ params), after


@functools.cache
def network(name):
    """(apply_fn, params, batch_stats)."""
    if name == "drifting":
        size = SIDE * SIDE
        params = jax.random.normal(jax.random.key(0), (size, 5)) / size**0.5
        return drifting, params, {"mean": jnp.zeros(size), "seen": jnp.int32(0)}
    encoder = Encoder({"plain": Plain, "noisy": Noisy}[name]())
    return encoder.apply, *encoder.init(jax.random.key(0), (SIDE, SIDE, 1))


def batch(seed=0):
    """Images alike within identities, which lie side by side, as a sampler has them."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8, dtype=np.int32), 3)
    faces = rng.integers(0, 256, (8, SIDE, SIDE, 1))[labels]
    return np.clip(faces + rng.normal(0, 90, faces.shape), 0, 255).astype(np.uint8), labels


@functools.cache
def trained(name, microbatch, *, devices=None, **options):
    """The states after each of two steps, and what these told; for every test that compares."""
    apply_fn, params, batch_stats = network(name)
    optimizer = optax.sgd(0.5, 0.9)
    mesh = None if devices is None else make_mesh(devices, microbatch or BATCH)
    step = mj.make_train_step(apply_fn, optimizer, microbatch=microbatch, mesh=mesh, **options)
    state = mj.create_state(params, batch_stats, optimizer, SCHEDULE, jax.random.key(1))
    state = state if mesh is None else place_copies(state, mesh)
    states, outputs = [], []
    for seed in range(2):
        images, labels = batch(seed)
        if mesh is not None:
            images, labels = place_rows(images, mesh), place_copies(labels, mesh)
        state, output = jax.block_until_ready(step(state, images, labels))
        states.append(state)
        outputs.append(output)
    assert step._cache_size() == 1
    return states, outputs


def assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


def test_it_is_the_step_of_the_whole_batch():
    """Row by row; augmentation and histogram as well; counts exactly."""
    options = {"augment": AUGMENT, "histogram": True}
    states, outputs = trained("plain", 1, **options)
    whole, expected = trained("plain", None, **options)
    for output, other in zip(outputs, expected, strict=True):
        assert min(other.stats.totals().values()) > 0
        assert output.stats.totals() == other.stats.totals()
        np.testing.assert_array_equal(output.stats.hard, other.stats.hard)  # in the batch's order
        assert output.histogram.sum() == other.histogram.sum()
        # Rounding may take a gap over an edge.
        apart = np.cumsum(output.histogram) - np.cumsum(other.histogram)
        assert np.abs(apart).max() <= 1
        # Both have lost digits: they are small sums of large terms.
        assert_close([output.loss, output.gradient_norm], [other.loss, other.gradient_norm], 1e-5)
    assert_close(states[-1].params, whole[-1].params, 1e-6)


def test_a_microbatch_of_the_whole_batch_is_the_step_without():
    (*_, state), outputs = trained("noisy", BATCH)
    (*_, whole), expected = trained("noisy", None)
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.batch_stats, outputs),
        (whole.params, whole.batch_stats, expected),
    )


@pytest.mark.parametrize("name", ["noisy", "drifting"])
def test_it_is_the_gradient_of_the_loss_of_all_parts(name):
    """Against one derivative through a plain loop over the parts, of which all is kept."""
    microbatch, parts = 8, 3
    apply_fn, params, batch_stats = network(name)
    images, labels = batch()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 3)
    keys = list(jax.random.split(key, parts))

    def loss_fn(params):
        embeddings, stats = jnp.zeros((BATCH, 5)), batch_stats
        for part, key in enumerate(keys):
            rows = np.arange(part, BATCH, parts)
            found, stats = apply_fn(params, stats, images[rows], train=True, key=key)
            stats = jax.lax.stop_gradient(stats)
            embeddings = embeddings.at[rows].set(found)
        loss, triplets = mj.batch_all_triplet_loss(embeddings, labels, 0.1)
        return loss, (stats, triplets)

    differentiate = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (stats, triplets)), gradient = differentiate(params)
    (state, _), (output, _) = trained(name, microbatch, histogram=True)
    assert_close(output.loss, loss, 1e-5)
    assert output.stats.totals() == triplets.totals()
    moved = jax.tree.map(lambda before, after: (before - after) / 0.5, params, state.params)
    assert optax.tree.norm(gradient) > 0.01
    assert_close(moved, gradient, 1e-5)  # a difference of parameters has lost some digits
    assert_close(output.gradient_norm, optax.tree.norm(gradient), 1e-5)
    assert_close(state.batch_stats, stats, 1e-6)
    if name == "drifting":
        assert state.batch_stats["seen"] == parts  # an update a part, and not in both passes


def test_dropout_is_another_in_every_part():
    """Equal images in all rows, and no two parts embed them alike."""
    apply_fn, params, batch_stats = network("noisy")
    from margin_jax.training.microbatch import differentiate

    images = np.repeat(batch()[0][:1], BATCH, axis=0)
    images[::2] = 255 - images[::2]  # BatchNorm would make one image zero

    def embed(params, batch_stats, images, key):
        return apply_fn(params, batch_stats, images, train=True, key=key)

    found = differentiate(
        embed,
        lambda _, x: (x.sum(), ()),
        params,
        {},
        batch_stats,
        images,
        jax.random.key(0),
        microbatch=8,
    )
    parts = np.asarray(found.embeddings).reshape(8, 3, 5).swapaxes(0, 1)
    assert not np.allclose(parts[0], parts[1])
    assert not np.allclose(parts[1], parts[2])


def test_it_is_the_same_on_any_number_of_devices():
    (*_, state), outputs = trained("noisy", 8, devices=4, histogram=True)
    (*_, alone), expected = trained("noisy", 8, histogram=True)
    for output, other in zip(outputs, expected, strict=True):
        assert len(output.loss.devices()) == 4
        assert output.stats.totals() == other.stats.totals()
        assert_close(output.loss, other.loss, 1e-5)
        assert_close(output.gradient_norm, other.gradient_norm, 1e-4)
    assert_close((state.params, state.batch_stats), (alone.params, alone.batch_stats), 1e-4)


ENCODER, OPTIMIZER = make_encoder("small_cnn", 8), optax.sgd(0.05)


@functools.cache
def first_state(shape):
    variables = ENCODER.init(jax.random.key(0), shape)
    return mj.create_state(*variables, OPTIMIZER, SCHEDULE, jax.random.key(1))


def compiled(microbatch, devices=1):
    """A step of 96 images, never run."""
    mesh, shape = make_mesh(devices, microbatch or 96), (24, 24, 1)
    state = first_state(shape)
    images = place_rows(np.zeros((96, *shape), np.uint8), mesh)
    labels = place_copies(np.zeros(96, np.int32), mesh)
    step = mj.make_train_step(ENCODER.apply, OPTIMIZER, microbatch=microbatch, mesh=mesh)
    arguments = place_copies(state, mesh), images, labels
    if devices > 1:
        step.trace(*arguments).lower(lowering_platforms=("tpu", "cuda"))  # it does
    return step.lower(*arguments).compile()


def test_memory_is_that_of_a_part():
    """By the compiler's analysis: a twelfth of the rows, and what does not depend on them."""
    whole, parts = (compiled(n).memory_analysis().temp_size_in_bytes for n in (None, 8))
    assert parts < whole / 6


def test_no_image_changes_its_device():
    """Between devices go embeddings, statistics and gradients, all of floats, and no pixels."""
    text = compiled(24, devices=8).as_text()
    collective = r"= \(?(.*?)\)? (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
    moved = re.findall(collective, text)
    assert moved  # the embeddings
    assert not [shapes for shapes in moved if "u8[" in shapes]
    sizes = [
        np.prod([int(n) for n in shape.split(",") if n], dtype=int)
        for shapes in moved
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
    assert max(sizes) <= 96 * 8  # rows × numbers of an embedding


def test_what_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"microbatch must divide the batch, here of 24 rows; got 7"
    ):
        trained("plain", 7)
    with pytest.raises(ValueError, match="microbatch must be at least 1; got 0"):
        mj.make_train_step(drifting, OPTIMIZER, microbatch=0)
    with pytest.raises(ValueError, match=r"microbatch must be a multiple of 4, .*share it; got 6"):
        mj.make_train_step(drifting, OPTIMIZER, microbatch=6, mesh=make_mesh(4, 24))


def test_a_run_by_parts_is_the_run(tiny_fit, tmp_path):
    """And a configuration says at once what cannot be."""
    whole = tiny_fit(tmp_path / "whole", epochs=2)
    run = tiny_fit(tmp_path / "run", epochs=2, microbatch=4)
    for record, expected in zip(run.history, whole.history, strict=True):
        for name in ("valid", "easy", "semihard", "hard", "next_margin"):
            assert record[name] == expected[name]
        for name in ("loss", "gradient_norm", "validation_auc"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5)
    more = {"epochs": 3, "resume": True}
    with pytest.raises(ValueError, match="microbatch is 4, asked for 8; --allow-changes"):
        tiny_fit(tmp_path / "run", **more, microbatch=8)
    assert len(tiny_fit(tmp_path / "run", **more, microbatch=8, allow_changes=True).history) == 3
    with pytest.raises(
        ValueError, match=r"a microbatch of 4 rows cannot be shared .* by 8 devices"
    ):
        tiny_fit(tmp_path / "other", microbatch=4, devices=8)
    assert not (tmp_path / "other").exists()


def test_a_shortened_run_has_a_microbatch_that_divides(monkeypatch):
    monkeypatch.setenv("MARGIN_JAX_SMALL", "1")
    config = mj.TrainConfig(identities_per_batch=36, images_per_identity=3, microbatch=27).shrunk()
    assert (config.batch_size, config.microbatch) == (24, 3)
