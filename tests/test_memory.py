"""Cross-batch memory: what is in it, whose loss is taken, and what is counted."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import margin_jax as mj
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows
from margin_jax.training.checkpoint import Checkpoint
from margin_jax.training.record import EpochPart

BATCH, FEATURES, DIM, ROWS = 8, 5, 3, 19
MARGIN, RATE = 0.4, 0.05
OPTIMIZER, SCHEDULE = optax.sgd(RATE), mj.constant(MARGIN)
KINDS = ("valid", "easy", "semihard", "hard")


TRACED = []


def linear(params, batch_stats, images, *, train, key):
    TRACED.append(images.shape)
    return images @ params, batch_stats


def batches(count=6):
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(BATCH, FEATURES)).astype(np.float32),
            rng.permutation(np.array([0, 0, 1, 1, 2, 2, 3, 4], np.int32)),
        )
        for _ in range(count)
    ]


def new_state(rows=ROWS):
    params = np.random.default_rng(1).normal(size=(FEATURES, DIM)).astype(np.float32)
    memory = None if rows is None else mj.Memory.empty(rows, DIM)
    return mj.create_state(params, {}, OPTIMIZER, SCHEDULE, jax.random.key(0), memory=memory)


def steps(train_step, state, data, mesh=None):
    """The state after every step, and what the steps tell."""
    states, outputs = [], []
    for images, labels in data:
        if mesh is not None:
            images, labels = place_rows(images, mesh), place_copies(labels, mesh)
        state, output = jax.block_until_ready(train_step(state, images, labels))
        states.append(state)
        outputs.append(output)
        if len(states) == 1:
            traced = len(TRACED)
    assert len(TRACED) == traced  # nothing is compiled after the first step
    return states, outputs


def test_a_step_gone_wrong_is_not_remembered():
    memory = mj.Memory.empty(4, 2).push(
        jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, jnp.inf]]), jnp.array([0, 1, 2])
    )
    assert memory.real.tolist() == [False, True, False, False]


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [5, 1, 7], [9, 2], [4]])
def test_it_is_a_queue(sizes):
    """Against a deque, with batches that fill it, pass its end, and are larger than it."""
    rng, queue, memory = (
        np.random.default_rng(0),
        collections.deque(maxlen=7),
        mj.Memory.empty(7, 2),
    )
    for size in sizes:
        rows, labels = rng.normal(size=(size, 2)), rng.integers(0, 9, size).astype(np.int32)
        memory = jax.jit(mj.Memory.push)(memory, jnp.asarray(rows, jnp.float32), labels)
        queue.extend(zip(rows.astype(np.float32), labels, strict=True))
        real = np.asarray(memory.real)
        assert list(real) == [False] * (7 - len(queue)) + [True] * len(queue)
        np.testing.assert_array_equal(memory.embeddings[real], [row for row, _ in queue])
        np.testing.assert_array_equal(memory.labels[real], [label for _, label in queue])


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "mean", "mining": "semihard", "distance": "manhattan"}],
)
def test_the_loss_is_that_of_the_batch_and_that_of_the_memory(options):
    """Step by step against the plain loops: loss, gradient, and counts told apart."""
    data = batches()
    train_step = mj.make_train_step(linear, OPTIMIZER, mj.TripletLoss(**options))
    states, outputs = steps(train_step, new_state(), data)
    queue = collections.deque(maxlen=ROWS)
    params = np.asarray(new_state().params, np.float64)
    compared = 0
    for (images, labels), state, output in zip(data, states, outputs, strict=True):
        embeddings = images @ params
        batch = oracle.batch_all(embeddings, labels, MARGIN, **options)
        loss, to_embeddings = batch.loss, batch.to_embeddings
        counts = dict.fromkeys(KINDS, 0)
        if queue:
            rows, of_rows = zip(*queue, strict=True)
            remembered = oracle.batch_all(
                embeddings, labels, MARGIN, references=rows, reference_labels=of_rows, **options
            )
            loss, to_embeddings = loss + remembered.loss, to_embeddings + remembered.to_embeddings
            counts = remembered.counts
        np.testing.assert_allclose(output.loss, loss, rtol=1e-5)
        assert output.stats.totals() == batch.counts
        assert output.memory_stats.totals() == counts
        compared += counts["valid"]
        gradient = images.T @ to_embeddings
        np.testing.assert_allclose(output.gradient_norm, np.linalg.norm(gradient), rtol=1e-4)
        np.testing.assert_allclose(state.params, params - RATE * gradient, rtol=1e-4, atol=1e-6)
        queue.extend(zip(embeddings, labels, strict=True))
        params = np.asarray(state.params, np.float64)
    assert compared > 1000


def test_an_image_that_is_still_remembered_is_a_positive_of_itself():
    """At another time, and so it is where nothing moves: at the distance 0."""
    images, labels = batches(1)[0]
    train_step = mj.make_train_step(linear, optax.sgd(0.0))
    state = new_state().replace(opt_state=optax.sgd(0.0).init(new_state().params))
    _, (first, second) = steps(train_step, state, [(images, labels)] * 2)
    assert first.memory_stats.totals() == dict.fromkeys(KINDS, 0)
    np.testing.assert_array_equal(second.memory_stats.positives, second.stats.positives + 1)
    np.testing.assert_array_equal(second.memory_stats.negatives, second.stats.negatives)
    np.testing.assert_allclose(second.memory_stats.sum_ap, second.stats.sum_ap, atol=1e-3)


def test_in_the_warm_up_it_is_filled_and_not_compared_with():
    data, warmup = batches(), 3
    states, outputs = steps(
        mj.make_train_step(linear, OPTIMIZER, memory_warmup=warmup), new_state(), data
    )
    without, expected = steps(mj.make_train_step(linear, OPTIMIZER), new_state(None), data)
    for step, (output, other) in enumerate(zip(outputs, expected, strict=True)):
        assert other.memory_stats is None
        if step < warmup:
            assert output.memory_stats.totals() == dict.fromkeys(KINDS, 0)
            np.testing.assert_array_equal(output.loss, other.loss)
            np.testing.assert_array_equal(states[step].params, without[step].params)
    assert all(states[warmup - 1].memory.real)
    # From then on with all of it.
    positives = outputs[warmup].memory_stats.positives + outputs[warmup].memory_stats.negatives
    np.testing.assert_array_equal(positives, ROWS)
    assert outputs[warmup].loss > expected[warmup].loss


@functools.cache
def four_steps(devices=None, microbatch=None):
    options = {"histogram": True, "memory_warmup": 1}
    mesh = None if devices is None else make_mesh(devices, microbatch or BATCH)
    train_step = mj.make_train_step(linear, OPTIMIZER, mesh=mesh, microbatch=microbatch, **options)
    state = new_state() if mesh is None else place_copies(new_state(), mesh)
    return steps(train_step, state, batches(4), mesh)


@pytest.mark.parametrize(("devices", "microbatch"), [(4, 4), (8, None)])
def test_on_any_number_of_devices_and_by_parts_it_is_the_same(devices, microbatch):
    """Of rows that the devices do not divide; the memory itself is on all of them."""
    states, outputs = four_steps(devices, microbatch)
    alone, expected = four_steps()
    assert min(expected[-1].memory_stats.totals().values()) > 0
    for output, other in zip(outputs, expected, strict=True):
        assert output.stats.totals() == other.stats.totals()
        assert output.memory_stats.totals() == other.memory_stats.totals()
        np.testing.assert_array_equal(output.memory_stats.hard, other.memory_stats.hard)
        np.testing.assert_allclose(output.loss, other.loss, rtol=1e-5)
    for state, other in zip(states, alone, strict=True):
        assert state.memory.embeddings.sharding.is_fully_replicated
        np.testing.assert_allclose(state.params, other.params, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.memory.embeddings, other.memory.embeddings, atol=1e-5)
        np.testing.assert_array_equal(state.memory.labels, other.memory.labels)
        np.testing.assert_array_equal(state.memory.real, other.memory.real)


def test_an_epoch_counts_both_apart():
    """The schedule sees the batch's triplets, whatever the memory holds."""
    data, train_step = batches(), mj.make_train_step(linear, OPTIMIZER)
    _, outputs = steps(train_step, new_state(), data)
    seen = []

    def update(state, stats):
        seen.append(stats.easy_fraction)
        return state

    _, record = mj.train_epoch(new_state(), train_step, data, mj.Schedule(SCHEDULE.init, update))
    for kind in KINDS:
        assert getattr(record, kind) == sum(output.stats.totals()[kind] for output in outputs)
        assert record.memory[kind] == sum(o.memory_stats.totals()[kind] for o in outputs)
    assert record.memory["valid"] > record.valid
    assert seen == [np.float32(record.easy / record.valid)]
    _, record = mj.train_epoch(new_state(None), train_step, data, SCHEDULE)
    assert record.memory is None


def test_a_part_of_an_epoch_goes_through_json():
    stats = jax.jit(mj.triplet_stats)(*batches(1)[0], MARGIN)
    part = EpochPart(steps=1, memory=mj.EpochTotals().add(stats))
    assert part.memory.valid > 0
    assert EpochPart.from_json(part.to_json()) == part
    before = EpochPart(steps=1).to_json()
    del before["memory"]  # as earlier versions wrote it
    assert EpochPart.from_json(before) == EpochPart(steps=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EarlierState:
    """A train state as it was before there were memories."""

    step: Any
    key: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    schedule: Any


def test_a_checkpoint_from_before_there_were_memories_is_restored(tmp_path):
    state = new_state(None)
    fields = [field.name for field in dataclasses.fields(EarlierState)]
    earlier = EarlierState(**{name: getattr(state, name) for name in fields})
    with Checkpoint(tmp_path / "checkpoints") as checkpoint:
        checkpoint.save(0, {"state": earlier}, {})
    with Checkpoint(tmp_path / "checkpoints") as checkpoint:
        found, _ = checkpoint.restore({"state": state})
        np.testing.assert_array_equal(found["state"].params, state.params)
        assert found["state"].memory is None
        with pytest.raises(ValueError, match="other names, shapes or types"):
            checkpoint.restore({"state": new_state()})


def test_what_does_not_fit_is_refused():
    images, labels = batches(1)[0]
    train_step = mj.make_train_step(linear, OPTIMIZER)
    other = new_state().replace(memory=mj.Memory.empty(4, DIM + 1))
    with pytest.raises(ValueError, match=r"as many columns as embeddings, 3; got shape \(4, 4\)"):
        train_step(other, images, labels)
    memory = mj.Memory.empty(4, DIM)
    with pytest.raises(ValueError, match=r"the memory's 3 numbers; got shape \(8, 5\)"):
        memory.push(jnp.asarray(images), jnp.asarray(labels))
    with pytest.raises(TypeError, match="must fit int32; got uint32"):
        memory.push(jnp.zeros((8, DIM)), jnp.zeros(8, jnp.uint32))
    with pytest.raises(ValueError, match="at least 1 row of 1 number; got 0 of 3"):
        mj.Memory.empty(0, 3)
    with pytest.raises(ValueError, match="memory_warmup must be at least 0; got -1"):
        mj.make_train_step(linear, OPTIMIZER, memory_warmup=-1)
