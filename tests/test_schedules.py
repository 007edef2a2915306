import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj

# The last float32 below the threshold, the threshold, and shares that say nothing or everything.
BELOW = np.nextafter(np.float32(0.95), np.float32(0))
SHARES = np.array([0.5, 0.95, BELOW, 0.96, np.nan, 1.0, 94_999_999 / 1e8, 0.0, 0.949], np.float32)

SCHEDULES = {
    "constant": mj.constant(0.3),
    "linear": mj.linear(0.2, 1.0, epochs=5),
    "linear_down": mj.linear(1.0, 0.2, epochs=7),
    "exponential": mj.exponential(0.1, 1.7, epochs=6),
    "dams": mj.dams(),
    "dams_from_0": mj.dams(margin=0.0, threshold=0.5, increase=0.1),
}


def epoch_stats(easy_fraction):
    share, other = np.float32(easy_fraction), np.float32(0.1)
    return mj.EpochStats(share, *[other] * 6)


def margins(schedule, shares):
    """The margin in force in each epoch, the first one's before any update."""
    state, seen = schedule.init(), []
    for share in shares:
        seen.append(float(state.margin))
        state = schedule.update(state, epoch_stats(share))
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (mj.constant(0.3), [0.3] * 7),
        (mj.constant(-1), [-1.0] * 7),
        (mj.linear(0.2, 1.0, epochs=5), [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]),
        (mj.linear(1.0, -0.5, epochs=4), [1.0, 0.5, 0.0, -0.5, -0.5, -0.5, -0.5]),
        (mj.linear(0.2, 0.7, epochs=1), [0.7] * 7),
        (mj.exponential(0.1, 1.6, epochs=5), [0.1, 0.2, 0.4, 0.8, 1.6, 1.6, 1.6]),
        (mj.exponential(0.8, 0.2, epochs=3), [0.8, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (mj.exponential(0.2, 0.7, epochs=1), [0.7] * 7),
    ],
)
def test_margins_known_beforehand(schedule, expected):
    np.testing.assert_array_equal(margins(schedule, [1.0] * 7), np.float32(expected))


def test_dams_by_hand():
    shares = [0.5, 0.95, 0.94, 0.99, np.nan, 1.0, 0.0]
    expected = [0.2, 0.2, 0.25, 0.25, 0.3, 0.3, 0.35]
    np.testing.assert_allclose(margins(mj.dams(), shares), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("threshold", "share", "raises"),
    [
        (0.95, np.float32(0.95), True),  # a tie is too easy
        (0.95, BELOW, False),
        (0.95, 94_999_999 / 100_000_000, True),  # in float32 that is a tie
        (0.95, np.nan, False),
        (0.0, 0.0, True),
        (0.0, np.nan, False),
        (1.0, 1.0, True),
        (1.0, np.nextafter(np.float32(1), np.float32(0)), False),
    ],
)
def test_dams_threshold(threshold, share, raises):
    schedule = mj.dams(margin=0.5, threshold=threshold, increase=0.25)
    state = schedule.update(schedule.init(), epoch_stats(share))
    assert state.margin == (0.75 if raises else 0.5)
    assert state.epoch == 1


def test_dams_never_decreases_and_has_no_cap():
    shares = np.random.default_rng(0).choice(SHARES, size=200)
    seen = margins(mj.dams(), shares)
    assert all(after >= before for before, after in itertools.pairwise(seen))
    assert seen[-1] > 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_host_jit_and_scan_decide_alike(name):
    schedule = SCHEDULES[name]
    host = margins(schedule, SHARES)

    update = jax.jit(schedule.update)
    state, jitted = jax.jit(schedule.init)(), []
    for share in SHARES:
        jitted.append(float(state.margin))
        state = update(state, epoch_stats(share))
    assert update._cache_size() == 1

    def step(state, stats):
        return schedule.update(state, stats), state.margin

    stacked = jax.tree.map(lambda *v: jnp.stack(v), *(epoch_stats(share) for share in SHARES))
    last, scanned = jax.jit(lambda stats: jax.lax.scan(step, schedule.init(), stats))(stacked)

    # Bit for bit.
    np.testing.assert_array_equal(np.float32(host), np.float32(jitted))
    np.testing.assert_array_equal(np.float32(host), scanned)
    assert last.epoch == state.epoch == len(SHARES)
    assert last.margin == state.margin


@pytest.mark.parametrize("name", SCHEDULES)
def test_states_are_small_pytrees_of_one_type(name):
    schedule = SCHEDULES[name]
    state = schedule.init()
    for _ in range(3):
        assert isinstance(state, mj.ScheduleState)
        assert len(jax.tree.leaves(state)) == 2
        for leaf, dtype in ((state.margin, jnp.float32), (state.epoch, jnp.int32)):
            assert isinstance(leaf, jax.Array)
            assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), dtype, False)
        state = schedule.update(state, epoch_stats(1.0))
    assert state.epoch == 3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_restored_state_goes_on_as_if_never_stopped(name, stop):
    schedule = SCHEDULES[name]
    state = schedule.init()
    for share in SHARES[:stop]:
        state = schedule.update(state, epoch_stats(share))
    saved = jax.tree.map(np.array, state)

    state, seen = jax.tree.map(jnp.asarray, saved), []
    for share in SHARES[stop:]:
        seen.append(float(state.margin))
        state = schedule.update(state, epoch_stats(share))
    assert seen == margins(schedule, SHARES)[stop:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mj.constant(float("nan")), "margin must be finite; got nan"),
        (lambda: mj.linear(float("inf"), 1.0, 5), "margin must be finite; got inf"),
        (lambda: mj.linear(0.2, float("-inf"), 5), "margin_end must be finite; got -inf"),
        (lambda: mj.linear(0.2, 1.0, 0), "epochs must be at least 1; got 0"),
        (lambda: mj.exponential(0.2, 1.0, -3), "epochs must be at least 1; got -3"),
        (lambda: mj.exponential(0.0, 1.0, 5), r"above 0; got margin 0\.0, margin_end 1\.0"),
        (lambda: mj.exponential(0.2, -1.0, 5), r"above 0; got margin 0\.2, margin_end -1\.0"),
        (lambda: mj.exponential(0.2, float("nan"), 5), "margin_end must be finite; got nan"),
        (lambda: mj.dams(margin=float("nan")), "margin must be finite; got nan"),
        (lambda: mj.dams(threshold=95), "threshold must be between 0 and 1; got 95"),
        (lambda: mj.dams(threshold=-0.1), r"threshold must be between 0 and 1; got -0\.1"),
        (lambda: mj.dams(threshold=float("nan")), "threshold must be between 0 and 1; got nan"),
        (lambda: mj.dams(increase=-0.05), r"increase must be finite and at least 0; got -0\.05"),
        (lambda: mj.dams(increase=float("inf")), "increase must be finite and at least 0; got inf"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
