import dataclasses
import itertools
import json
import math
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import margin_jax as mj
from margin_jax.losses.base import first_state
from margin_jax.training.epoch import end_epoch, train_steps
from margin_jax.training.step import StepOutput

BATCHES, BATCH, FEATURES, DIM = 7, 12, 5, 4


def apply_fn(params, batch_stats, images, *, train, key):
    """A linear encoder that counts its calls and keeps the key it was given."""
    assert train
    seen = {"calls": batch_stats["calls"] + 1, "key": jax.random.key_data(key)}
    return images @ params["w"] + params["b"], seen


def new_state(schedule, optimizer=None, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "w": jnp.asarray(rng.normal(size=(FEATURES, DIM)), jnp.float32),
        "b": jnp.zeros(DIM, jnp.float32),
    }
    batch_stats = {"calls": jnp.zeros((), jnp.int32), "key": jnp.zeros(2, jnp.uint32)}
    optimizer = optimizer or OPTIMIZER
    return mj.create_state(params, batch_stats, optimizer, schedule, jax.random.key(seed))


def batches(seed=0, count=BATCHES):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(BATCH, FEATURES)).astype(np.float32),
            rng.integers(0, 4, BATCH).astype(np.int32),
        )
        for _ in range(count)
    ]


OPTIMIZER = optax.adam(1e-2)
TRAIN_STEP = mj.make_train_step(apply_fn, OPTIMIZER)  # shared: compiled once


def test_weights_of_a_run_are_numpy_and_can_be_trained_on():
    schedule = mj.dams(margin=0.2)
    state = new_state(schedule)
    numpy_params, numpy_stats = jax.tree.map(np.asarray, (state.params, state.batch_stats))
    other = mj.create_state(numpy_params, numpy_stats, OPTIMIZER, schedule, jax.random.key(0))
    trained, _ = mj.train_epoch(state, TRAIN_STEP, batches(), schedule)
    again, _ = mj.train_epoch(other, TRAIN_STEP, batches(), schedule)
    assert_same(trained, again)


def test_a_state_may_hold_numpy_and_joins_a_part_that_is_placed():
    schedule, second = mj.dams(margin=0.2), jax.devices()[1]
    state = new_state(schedule)
    trained, _ = mj.train_epoch(state, TRAIN_STEP, batches(), schedule)
    restored = jax.tree.map(np.asarray, state.replace(key=None)).replace(key=state.key)
    assert_same(trained, mj.train_epoch(restored, TRAIN_STEP, batches(), schedule)[0])
    placed = state.replace(params=jax.device_put(state.params, second))
    moved, _ = mj.train_epoch(placed, TRAIN_STEP, batches(), schedule)
    assert {d for v in jax.tree.leaves(moved) for d in v.devices()} == {second}
    assert_same(trained, moved)
    kept = mj.create_state({}, {}, OPTIMIZER, schedule, state.key, loss_state=np.zeros(3))
    assert isinstance(kept.loss_state, jax.Array)


@pytest.mark.parametrize("kind", ["plateau", "polyak"])
def test_optimisers_that_want_the_loss_get_it(kind):
    optimizer = {
        "plateau": optax.chain(
            optax.sgd(1e-3), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)
        ),
        "polyak": optax.polyak_sgd(max_learning_rate=0.1),
    }[kind]
    train_step = mj.make_train_step(apply_fn, optimizer)
    state = new_state(mj.constant(0.2), optimizer)
    start = np.asarray(state.params["w"])
    for images, labels in batches():
        state, _ = train_step(state, images, labels)
    assert np.any(np.asarray(state.params["w"]) != start)
    if kind == "plateau":  # no loss falls by all of itself
        assert float(state.opt_state[1].scale) < 1


def snapshot(state):
    """The state's values, keys included, as NumPy copies."""
    return jax.tree.map(np.array, state.replace(key=jax.random.key_data(state.key)))


def assert_same(a, b):
    chex.assert_trees_all_equal(snapshot(a), snapshot(b))


def replay(state, train_step, data):
    """The same steps by hand: the last state, every loss, and the oracle's view of every batch."""
    losses, answers = [], []
    for images, labels in data:
        embeddings = images @ np.array(state.params["w"]) + np.array(state.params["b"])
        answers.append(oracle.batch_all(embeddings, labels, float(state.margin)))
        state, output = train_step(state, images, labels)
        losses.append(float(output.loss))
    return state, losses, answers


def test_an_epoch_is_its_steps_counted_exactly():
    schedule = mj.dams(margin=0.5, threshold=0.0, increase=0.25)
    start = new_state(schedule)
    expected, losses, answers = replay(start, TRAIN_STEP, batches())

    state, record = mj.train_epoch(start, TRAIN_STEP, batches(), schedule)

    assert_same(state, expected.replace(schedule=state.schedule))
    totals = {name: sum(a.counts[name] for a in answers) for name in answers[0].counts}
    assert min(totals.values()) > 0
    for name, total in totals.items():
        assert getattr(record, name) == total
        assert type(getattr(record, name)) is int
    effective = np.concatenate([a.effective for a in answers])
    figures = {
        "loss": np.mean([a.loss for a in answers]),
        "easy_fraction": totals["easy"] / totals["valid"],
        "mean_ap": np.concatenate([a.ap for a in answers]).mean(),
        "mean_an": np.concatenate([a.an for a in answers]).mean(),
        "mean_effective": effective.mean(),
        "std_effective": effective.std(),
    }
    for name, value in figures.items():
        np.testing.assert_allclose(getattr(record, name), value, rtol=1e-5, err_msg=name)
    assert record.loss == np.mean(losses)
    assert (record.epoch, record.steps, record.images) == (1, BATCHES, BATCHES * BATCH)
    assert (record.margin, record.next_margin) == (0.5, 0.75)
    assert record.images_per_second == pytest.approx(record.images / record.seconds)
    values = dataclasses.asdict(record)
    assert values.pop("effective_quantiles") is None
    assert values.pop("memory") is None
    assert all(type(v) in (int, float, bool) for v in values.values())


def test_the_schedule_is_asked_once_with_the_epochs_statistics():
    scalars = [f.name for f in dataclasses.fields(mj.EpochStats) if f.name != "effective_cdf"]
    for name in scalars:

        def update(state, stats, name=name):
            return mj.ScheduleState(getattr(stats, name), state.epoch + 1)

        schedule = mj.Schedule(mj.constant().init, update)
        state, record = mj.train_epoch(new_state(schedule), TRAIN_STEP, batches(), schedule)
        shares = {
            "semihard_fraction": record.semihard / record.valid,
            "hard_fraction": record.hard / record.valid,
        }
        told = shares[name] if name in shares else getattr(record, name)
        assert state.margin == record.next_margin == np.float32(told)
        assert state.schedule.epoch == 1


def test_the_input_is_not_changed():
    schedule = mj.dams(threshold=0.0)
    start, data = new_state(schedule), batches()
    before, data_before = snapshot(start), batches()
    first, record = mj.train_epoch(start, TRAIN_STEP, data, schedule)
    chex.assert_trees_all_equal(snapshot(start), before)
    chex.assert_trees_all_equal(data, data_before)

    # So the same epoch can be run again, to the last bit.
    second, again = mj.train_epoch(start, TRAIN_STEP, data, schedule)
    assert_same(first, second)
    timeless = {"seconds": 0.0, "images_per_second": 0.0, "data_wait": 0.0}
    assert dataclasses.replace(record, **timeless) == dataclasses.replace(again, **timeless)


def test_the_margin_in_force_comes_from_the_state_alone():
    schedule = mj.linear(0.1, 0.5, epochs=5)
    state, margins = new_state(schedule), []
    for epoch in range(1, 4):
        state, record = mj.train_epoch(state, TRAIN_STEP, batches(), schedule)
        assert record.epoch == epoch
        assert record.next_margin == state.margin == state.schedule.margin
        margins.append((record.margin, record.next_margin))
    np.testing.assert_allclose(margins, [(0.1, 0.2), (0.2, 0.3), (0.3, 0.4)], rtol=1e-6)

    # Another margin put into the state is the one that trains.
    wide = dataclasses.replace(state.schedule, margin=jnp.float32(50))
    _, record = mj.train_epoch(state.replace(schedule=wide), TRAIN_STEP, batches(), schedule)
    assert record.margin == 50
    assert record.easy == 0
    assert record.loss > 30


def test_a_changing_margin_never_recompiles():
    traces = 0

    def counted(params, batch_stats, images, *, train, key):
        nonlocal traces
        traces += 1
        return apply_fn(params, batch_stats, images, train=train, key=key)

    schedule = mj.dams(threshold=0.0)
    train_step = mj.make_train_step(counted, OPTIMIZER)
    state, margins = new_state(schedule), set()
    for epoch in range(4):
        state, record = mj.train_epoch(state, train_step, batches(epoch), schedule)
        margins.add(record.margin)
    assert len(margins) == 4
    assert traces == 1
    assert train_step._cache_size() == 1


@dataclasses.dataclass(frozen=True)
class Remembers(mj.TripletLoss):
    """Its state, and so that of the next step, is of a weak type."""

    def init_state(self):
        return jnp.zeros(())

    def __call__(self, *args, state, **options):
        return (*super().__call__(*args, **options), jnp.where(state > 0.4, 0.3, 0.5))


@pytest.mark.parametrize(
    "loss", [mj.TripletLoss(), Remembers()], ids=["triplets", "a loss with a state"]
)
@pytest.mark.parametrize(
    "margin",
    [lambda state: 0.3, lambda state: jnp.where(state.epoch > 0, 0.5, 0.3)],
    ids=["number", "where"],
)
def test_weak_types_never_recompile(margin, loss):
    def update(state, stats):
        return dataclasses.replace(state, margin=margin(state), epoch=state.epoch + 1)

    schedule = mj.Schedule(mj.constant(0.2).init, update)
    train_step = mj.make_train_step(apply_fn, OPTIMIZER, loss)
    state = new_state(schedule).replace(loss_state=first_state(loss))
    for _ in range(3):
        state, record = mj.train_epoch(state, train_step, batches(), schedule)
    assert record.margin == pytest.approx(float(margin(state.schedule)))
    assert train_step._cache_size() == 1


def test_options_reach_the_loss():
    options = {"distance": "cosine", "reduction": "sum", "mining": "semihard"}
    train_step = mj.make_train_step(apply_fn, optax.sgd(0.0), mj.TripletLoss(**options))
    state = new_state(mj.constant(0.4), optax.sgd(0.0))
    images, labels = batches()[0]
    _, output = train_step(state, images, labels)
    embeddings = images @ np.array(state.params["w"])
    answer = oracle.batch_all(embeddings, labels, 0.4, **options)
    assert answer.loss > 0
    np.testing.assert_allclose(output.loss, answer.loss, rtol=1e-5)
    assert output.stats.totals() == answer.counts


def test_steps_carry_batch_stats_and_their_own_keys():
    schedule = mj.constant()
    start = new_state(schedule)
    keys, state = [], start
    for step, (images, labels) in enumerate(batches()):
        state, _ = TRAIN_STEP(state, images, labels)
        keys.append(tuple(np.array(state.batch_stats["key"])))
        expected = jax.random.key_data(jax.random.fold_in(start.key, step))
        np.testing.assert_array_equal(state.batch_stats["key"], expected)
    assert len(set(keys)) == BATCHES
    assert state.batch_stats["calls"] == state.step == BATCHES
    # The key is never spent, so a restored state draws what it would have drawn.
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(start.key))


def test_on_step_is_called_once_a_step_in_order():
    calls = []
    schedule = mj.constant()
    start = new_state(schedule)
    _, losses, answers = replay(start, TRAIN_STEP, batches())
    _, record = mj.train_epoch(
        start, TRAIN_STEP, batches(), schedule, on_step=lambda *call: calls.append(call)
    )
    easy = np.cumsum([a.counts["easy"] for a in answers])
    valid = np.cumsum([a.counts["valid"] for a in answers])
    assert [step for step, _, _ in calls] == list(range(1, BATCHES + 1))
    assert [loss for _, loss, _ in calls] == losses
    np.testing.assert_allclose([share for _, _, share in calls], easy / valid, rtol=1e-12)
    np.testing.assert_allclose(calls[-1][2], record.easy_fraction, rtol=1e-6)


class OnDevice:
    """Stands for an array on a device: whoever turns it into NumPy waits for its step."""

    def __init__(self, value, step, on_read):
        self.value, self.step, self.on_read = value, step, on_read

    def __array__(self, dtype=None, copy=None):
        self.on_read(self.step)
        return np.asarray(self.value, dtype)


def test_the_host_never_waits_for_the_newest_step():
    queued, reads, finished = 0, [], False

    def on_read(step):
        reads.append((step, queued, finished))

    def never(step):
        raise AssertionError(f"the parameters of step {step} were read")

    def train_step(state, images, labels):
        nonlocal queued
        queued += 1
        counts = np.ones(BATCH, np.int32)
        leaves = [OnDevice(counts, queued, on_read) for _ in range(8)]
        stats = mj.TripletStats(*leaves)
        loss = OnDevice(np.float32(queued), queued, on_read)
        return state.replace(params=OnDevice(0, queued, never)), StepOutput(loss, stats)

    def feed():
        nonlocal finished
        yield from batches(count=20)
        finished = True

    schedule = mj.constant()
    _, record = mj.train_epoch(new_state(schedule), train_step, feed(), schedule)

    assert record.steps == 20
    assert record.loss == np.mean(np.arange(1, 21))
    assert {step for step, _, _ in reads} == set(range(1, 21))
    early = [(step, queued) for step, queued, finished in reads if not finished]
    # While batches come, every figure that is read has newer steps queued behind it, ...
    assert all(queued - step >= 1 for step, queued in early)
    # ... and figures are read as training goes, not hoarded until the end of the epoch.
    assert len({step for step, _ in early}) >= 15


@pytest.mark.parametrize("nothing", [[], iter(()), (batch for batch in ())])
def test_no_batches(nothing):
    with pytest.raises(ValueError, match="at least one batch; got none"):
        mj.train_epoch(new_state(mj.constant()), TRAIN_STEP, nothing, mj.constant())


@pytest.mark.parametrize("labels", [np.arange(BATCH), np.zeros(BATCH)], ids=["distinct", "equal"])
def test_batches_without_triplets(labels):
    schedule = mj.dams(threshold=0.0)
    start = new_state(schedule)
    data = [(images, labels.astype(np.int32)) for images, _ in batches(count=2)]
    with pytest.warns(UserWarning, match="epoch 1 had no triplet, so it trained nothing") as told:
        state, record = mj.train_epoch(start, TRAIN_STEP, data, schedule)
    assert told[0].filename == __file__
    # Adam divides a zero gradient by a zero spread: the parameters stay, to the bit.
    chex.assert_trees_all_equal(state.params, start.params)
    assert (record.loss, record.valid, record.easy, record.steps) == (0.0, 0, 0, 2)
    assert math.isnan(record.easy_fraction)
    assert math.isnan(record.mean_effective)
    assert record.next_margin == record.margin  # even at threshold 0: nothing was learnt
    assert state.schedule.epoch == 1


def test_labels_that_32_bits_would_cut_are_refused():
    """`jit` cuts them without a word, and different people become one."""
    labels = np.array([1, 1, 2**32 + 1, 2**32 + 1])
    batches = [(np.ones((4, 2), np.float32), labels)]
    with pytest.raises(ValueError, match="labels must fit int32; got 1 to 4294967297"):
        mj.train_epoch(new_state(mj.dams()), TRAIN_STEP, batches, mj.dams())


def test_one_batch_without_triplets_does_not_spoil_an_epoch():
    schedule = mj.constant()
    data = batches(count=3)
    data[1] = (data[1][0], np.arange(BATCH, dtype=np.int32))
    state, record = mj.train_epoch(new_state(schedule), TRAIN_STEP, data, schedule)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert math.isfinite(record.loss)
    assert 0 < record.easy_fraction < 1
    assert record.steps == 3


def test_steps_without_a_loss_are_counted():
    """Also where an epoch is trained in parts, of which one is kept as JSON."""
    schedule, data = mj.dams(margin=0.2), batches()
    for step in (1, 4):
        data[step][1][:] = 0
    state, part = train_steps(new_state(schedule), TRAIN_STEP, data[:3])
    kept = type(part).from_json(json.loads(json.dumps(part.to_json())))
    state, part = train_steps(state, TRAIN_STEP, data[3:], kept)
    _, record = end_epoch(state, part, schedule)
    assert (record.steps, record.idle_steps) == (BATCHES, 2)
    of_before = part.to_json()
    del of_before["idle_steps"]  # which earlier versions did not have
    assert type(part).from_json(of_before).idle_steps == 0


def test_arrays_on_the_device_need_no_implicit_transfer():
    schedule = mj.dams(threshold=0.0)
    state = new_state(schedule)
    data = [jax.device_put(batch) for batch in batches()]
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, record = mj.train_epoch(state, TRAIN_STEP, data, schedule)
    assert record.next_margin > record.margin


def test_training_separates_the_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, FEATURES))
    labels = np.tile(np.arange(4), 3).astype(np.int32)
    data = [
        ((centres[labels] + rng.normal(size=(BATCH, FEATURES))).astype(np.float32), labels)
        for _ in range(30)
    ]
    schedule = mj.constant(1.0)
    state, first = mj.train_epoch(new_state(schedule), TRAIN_STEP, data, schedule)
    for _ in range(4):
        state, last = mj.train_epoch(state, TRAIN_STEP, data, schedule)
    assert last.easy_fraction > first.easy_fraction + 0.05


@pytest.mark.parametrize(
    ("loss", "norm"), [(0.5, np.inf), (0.5, np.nan), (np.inf, 1.0), (np.nan, 1.0)]
)
def test_a_loss_or_a_gradient_that_is_not_finite_is_named(loss, norm):
    """The third step, also where the loss alone looks well."""

    def train_step(state, images, labels):
        state, output = TRAIN_STEP(state, images, labels)
        if state.step == 3:
            output = output._replace(loss=jnp.float32(loss), gradient_norm=jnp.float32(norm))
        return state, output

    schedule = mj.dams()
    message = rf"epoch 1, step 3 is not finite: loss {loss}, gradient of length {norm}"
    with pytest.raises(mj.DivergedError, match=message) as diverged:
        mj.train_epoch(new_state(schedule), train_step, batches(), schedule)
    copy = pickle.loads(pickle.dumps(diverged.value))  # as a pool of processes hands it on
    assert (copy.epoch, copy.step, str(copy)) == (1, 3, str(diverged.value))


def test_the_seconds_of_an_epoch_in_parts_are_those_of_all_parts(monkeypatch):
    """By a clock that goes on by one whenever it is asked: twice a batch, and at both ends."""
    ticks = itertools.count()
    monkeypatch.setattr("margin_jax.training.epoch.time.perf_counter", lambda: float(next(ticks)))
    schedule = mj.dams()
    state = new_state(schedule)
    state, part = train_steps(state, TRAIN_STEP, batches()[:3])
    assert (part.seconds, part.waited) == (9, 4)  # it also asks, in vain, for a fourth batch
    state, part = train_steps(state, TRAIN_STEP, batches()[3:], part)
    assert (part.seconds, part.waited) == (9 + 11, 4 + 5)
    _, record = end_epoch(state, part, schedule)
    assert (record.seconds, record.data_wait) == (20, 9 / 20)
    assert record.images_per_second == BATCHES * BATCH / 20
