"""Every schedule by one table of invariants; each rule by hand; the controller as a controller."""

import dataclasses
import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from scipy.special import ndtr

import margin_jax as mj
from margin_jax.stats import EFFECTIVE_EDGES

# The last float32 below the threshold, the threshold, and shares that say nothing or everything.
BELOW = np.nextafter(np.float32(0.95), np.float32(0))
SHARES = np.array([0.5, 0.95, BELOW, 0.96, np.nan, 1.0, 94_999_999 / 1e8, 0.0, 0.949], np.float32)

OPEN_LOOP = {
    "constant": mj.constant(0.3),
    "linear": mj.linear(0.2, 1.0, epochs=5),
    "linear_down": mj.linear(1.0, 0.2, epochs=7),
    "exponential": mj.exponential(0.1, 1.7, epochs=6),
    "cosine": mj.cosine(0.1, 0.9, epochs=7),
    "litm": mj.litm(0.1, 0.9, epochs=8, stages=4),
    "replay": mj.replay((0.1, 0.3, 0.2)),
    "optax": mj.from_optax(optax.exponential_decay(0.7, 3, 0.8), epochs=50),
    "warmup_of_constant": mj.warmup_schedule(mj.constant(0.3), 4),
}
FEEDBACK = {
    "dams": mj.dams(),
    "dams_from_0": mj.dams(margin=0.0, threshold=0.5, increase=0.1),
    "dams_both_ways": mj.dams(cap=0.33, decrease=0.07, lower_threshold=0.6),
    "automargin": mj.automargin(),
    "automargin_smooth": mj.automargin(k=1.7, deviations=-0.3, smoothing=0.9),
    "quantile_margin": mj.quantile_margin(quantile=0.2),
    "target_easy_fraction": mj.target_easy_fraction(),
    "target_odd_gains": mj.target_easy_fraction(0.3, 0.77, 1.2345678, 0.3456789, high=1.1),
    "clipped_dams": mj.clip_schedule(mj.dams(increase=0.2), 0.25, 0.6),
    "held_quantile": mj.hold_schedule(mj.quantile_margin(), 3),
    "warm_target": mj.warmup_schedule(mj.target_easy_fraction(), 3, start=0.01),
    "joined": mj.join_schedules([mj.dams(), mj.automargin(0.4), mj.linear(1, 0, 9)], [4, 9]),
}
SCHEDULES = OPEN_LOOP | FEEDBACK


def epoch_stats(easy_fraction, mean=0.4, std=0.25):
    """Statistics of an epoch; a share that is NaN makes them those of an epoch without triplets."""
    easy, mean, std = (np.float32(v) for v in (easy_fraction, mean, std))
    if np.isnan(easy):
        mean = std = easy
    cdf = ndtr((EFFECTIVE_EDGES - mean) / std).astype(np.float32)
    half = (1 - easy) / np.float32(2)
    return mj.EpochStats(easy, half, half, np.float32(0.3), mean, mean, std, cdf)


def eventful(n=60):
    """Epochs of all kinds in any order, silent ones among them."""
    rng = np.random.default_rng(0)
    shares = np.where(rng.random(n) < 0.5, rng.choice(SHARES, n), rng.random(n))
    return [
        epoch_stats(share, mean, std)
        for share, mean, std in zip(
            shares, rng.normal(0.4, 0.3, n), rng.uniform(0.01, 1, n), strict=True
        )
    ]


def run(schedule, epochs, state=None, update=None):
    """The margin in force in each epoch, the first one's before any update; and the last state."""
    state, seen = schedule.init() if state is None else state, []
    for stats in epochs:
        seen.append(float(state.margin))
        state = (update or schedule.update)(state, stats)
    return seen, state


@functools.cache
def jitted(name):
    """Its update, which decides as on the host and much faster."""
    return jax.jit(SCHEDULES[name].update)


def margins(schedule, shares):
    return run(schedule, [epoch_stats(share) for share in shares])[0]


# What holds for all of them


@pytest.mark.parametrize("name", SCHEDULES)
def test_host_jit_and_scan_decide_alike_to_the_last_bit(name):
    schedule, epochs = SCHEDULES[name], eventful()
    host, last_host = run(schedule, epochs)

    compiled, state = run(schedule, epochs, jax.jit(schedule.init)(), jitted(name))
    assert jitted(name)._cache_size() == 1

    def step(state, stats):
        return schedule.update(state, stats), state.margin

    stacked = jax.tree.map(lambda *v: jnp.stack(v), *epochs)
    last, scanned = jax.jit(lambda stats: jax.lax.scan(step, schedule.init(), stats))(stacked)
    np.testing.assert_array_equal(np.float32(host), np.float32(compiled))
    np.testing.assert_array_equal(np.float32(host), scanned)
    chex.assert_trees_all_equal(last, state)
    chex.assert_trees_all_equal(last, last_host)


@pytest.mark.parametrize("name", SCHEDULES)
def test_states_are_small_pytrees_of_one_type(name):
    schedule = SCHEDULES[name]
    state = schedule.init()
    structure = jax.tree.structure(state)
    for epoch in range(4):
        assert isinstance(state, mj.ScheduleState)
        assert jax.tree.structure(state) == structure
        assert len(jax.tree.leaves(state)) <= 20
        assert (state.margin.dtype, state.epoch.dtype) == (jnp.float32, jnp.int32)
        assert state.epoch == epoch
        for leaf in jax.tree.leaves(state):
            assert isinstance(leaf, jax.Array)
            assert leaf.shape == ()
            assert leaf.dtype in (jnp.float32, jnp.int32)
            assert not leaf.weak_type
        state = schedule.update(state, epoch_stats(1.0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_state_restored_from_json_goes_on_as_if_never_stopped(name):
    schedule, epochs = SCHEDULES[name], eventful()
    expected, _ = run(schedule, epochs, update=jitted(name))
    for stop in (1, 5, 33):
        _, state = run(schedule, epochs[:stop], update=jitted(name))
        restored = schedule.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
        assert jax.tree.map(lambda v: v.dtype, restored) == jax.tree.map(lambda v: v.dtype, state)
        assert run(schedule, epochs[stop:], restored, jitted(name))[0] == expected[stop:]


def test_states_restored_by_orbax_go_on_as_if_never_stopped(tmp_path):
    """All in one checkpoint: each save takes a while."""
    epochs = eventful()
    stopped = {
        name: run(schedule, epochs[:7], update=jitted(name))[1]
        for name, schedule in SCHEDULES.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", stopped)
        checkpointer.wait_until_finished()
        like = {name: schedule.init() for name, schedule in SCHEDULES.items()}
        restored = checkpointer.restore(tmp_path / "states", like)
    for name, schedule in SCHEDULES.items():
        whole, _ = run(schedule, epochs, update=jitted(name))
        assert run(schedule, epochs[7:], restored[name], jitted(name))[0] == whole[7:], name


def test_the_state_of_another_schedule_is_refused():
    state = mj.dams().init().to_json()
    with pytest.raises(ValueError, match="has epoch, margin, memory/integral; got epoch, margin"):
        mj.target_easy_fraction().from_json(state)


SILENT = {
    "no_triplet": mj.EpochTotals().stats(),
    "nan": epoch_stats(np.nan),
    "not_finite_distances": mj.EpochStats(*[np.float32(0.99)] * 5, *[np.float32(np.nan)] * 2),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("silence", SILENT)
def test_an_epoch_that_says_nothing(name, silence):
    """Laid-out schedules go on, the others stay, all count it, and nothing becomes NaN."""
    schedule, stats = SCHEDULES[name], SILENT[silence]
    if stats.effective_cdf is None:
        nothing = np.full(len(EFFECTIVE_EDGES), np.nan, np.float32)
        stats = dataclasses.replace(stats, effective_cdf=nothing)
    _, state = run(schedule, [epoch_stats(0.96)] * 2)
    after = schedule.update(state, stats)
    assert after.epoch == 3
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(after))
    changes_by_itself = name.startswith(("warm", "held"))  # in these epochs
    if name in FEEDBACK and not changes_by_itself:
        assert after.margin == state.margin
    elif name in OPEN_LOOP:
        assert after.margin == schedule.update(state, epoch_stats(0.5)).margin


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_histogram_of_nothing_changes_nothing(name):
    """The other statistics are fine, so only what reads the histogram can tell."""
    schedule = FEEDBACK[name]
    _, state = run(schedule, [epoch_stats(0.96)] * 4)
    empty = np.full(len(EFFECTIVE_EDGES), np.nan, np.float32)
    after = schedule.update(state, dataclasses.replace(epoch_stats(0.7), effective_cdf=empty))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(after))
    if name in ("quantile_margin", "held_quantile"):
        assert after.margin == state.margin


@pytest.mark.parametrize("name", FEEDBACK)
def test_extreme_epochs_give_finite_margins(name):
    """No active triplet, none easy, counts near 2^63, no spread, enormous distances."""
    enormous = mj.EpochTotals(
        valid=2**63 - 1, semihard=1, hard=2**63 - 2, positives=10, negatives=10, sum_an=1e30,
        sum_effective=1e37, sum_effective_squared=1e56, histogram=np.eye(1, 1024, 1023)[0],
    )  # fmt: skip
    nearly_easy = mj.EpochTotals(
        valid=2**63 - 1, semihard=1, hard=0, positives=10, negatives=10, sum_effective=1e18,
        sum_effective_squared=1e18, histogram=np.eye(1, 1024, 600)[0],
    )  # fmt: skip
    assert nearly_easy.stats().easy_fraction == 1
    epochs = [epoch_stats(1.0), epoch_stats(0.0), enormous.stats(), nearly_easy.stats()]
    seen, state = run(FEEDBACK[name], [*epochs * 3, epoch_stats(1.0, std=1e-30)])
    assert np.all(np.isfinite(seen))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(state))


# Each rule by hand


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (mj.constant(0.3), [0.3] * 7),
        (mj.constant(1), [1.0] * 7),
        (mj.linear(0.2, 1.0, epochs=5), [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]),
        (mj.linear(1.0, 0.0, epochs=4), [1.0, 2 / 3, 1 / 3, 0.0, 0.0, 0.0, 0.0]),
        (mj.linear(0.2, 0.7, epochs=1), [0.7] * 7),
        (mj.exponential(0.1, 1.6, epochs=5), [0.1, 0.2, 0.4, 0.8, 1.6, 1.6, 1.6]),
        (mj.exponential(0.8, 0.2, epochs=3), [0.8, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (mj.exponential(0.2, 0.7, epochs=1), [0.7] * 7),
        (mj.cosine(0.0, 1.0, epochs=5), [0, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1, 1, 1]),
        (mj.litm(0.2, 1.0, epochs=6), [0.2, 0.2, 0.6, 0.6, 1.0, 1.0, 1.0]),
        (mj.litm(0.0, 1.0, epochs=5, stages=2), [0, 0, 0, 1, 1, 1, 1]),
        (mj.litm(0.0, 1.0, epochs=2), [0, 1, 1, 1, 1, 1, 1]),
        (mj.litm(0.0, 1.0, epochs=1), [1, 1, 1, 1, 1, 1, 1]),
        (mj.replay([0.3, 0.1, 0.2]), [0.3, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (mj.from_optax(lambda e: 0.5 * e, epochs=3), [0, 0.5, 1, 1, 1, 1, 1]),
        (mj.warmup_schedule(mj.constant(0.4), 4), [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4]),
        (mj.warmup_schedule(mj.linear(0.4, 0, 3), 2, 0.8), [0.8, 0.6, 0.4, 0.2, 0, 0, 0]),
        (mj.hold_schedule(mj.linear(1, 0, 3), 2), [1, 1, 1, 0.5, 0, 0, 0]),
        (mj.clip_schedule(mj.linear(0, 1, 5), 0.3, 0.8), [0.3, 0.3, 0.5, 0.75, 0.8, 0.8, 0.8]),
        (
            mj.join_schedules([mj.constant(9), mj.linear(0, 1, 3), mj.constant(5)], [1, 4]),
            [9, 0, 0.5, 1, 5, 5, 5],
        ),
    ],
)
def test_margins_known_beforehand(schedule, expected):
    np.testing.assert_allclose(margins(schedule, [1.0] * 7), expected, rtol=1e-6, atol=1e-7)


def test_dams_by_hand():
    shares = [0.5, 0.95, 0.94, 0.99, np.nan, 1.0, 0.0]
    expected = [0.2, 0.2, 0.25, 0.25, 0.3, 0.3, 0.35]
    np.testing.assert_allclose(margins(mj.dams(), shares), expected, rtol=1e-6)


def test_dams_with_cap_and_decrease_by_hand():
    schedule = mj.dams(0.2, 0.9, 0.1, cap=0.35, decrease=0.08, lower_threshold=0.5)
    shares = [0.95, 0.95, 0.95, 0.7, 0.5, 0.49, np.nan, 0.1, 0.1, 1.0]
    expected = [0.2, 0.3, 0.35, 0.35, 0.35, 0.35, 0.27, 0.27, 0.2, 0.2]
    np.testing.assert_allclose(margins(schedule, shares), expected, rtol=1e-6)


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


def test_automargin_by_hand():
    epochs = [epoch_stats(0.5, mean) for mean in (0.4, 0.8, -0.3, np.nan, 0.2)]
    epochs[3] = epoch_stats(np.nan)
    seen, state = run(mj.automargin(0.7), epochs)
    np.testing.assert_allclose(seen, [0.7, 0.2, 0.4, 0, 0], rtol=3e-4)
    assert state.margin == pytest.approx(0.1, rel=3e-4)

    # What is left of a mean that was hundreds of times as large is nothing.
    _, state = run(mj.automargin(k=1.0), [epoch_stats(0.5, mean) for mean in (-5.123, 0.0123)])
    assert state.margin == pytest.approx(0.0123, rel=1e-3)

    epochs = [epoch_stats(0.5, 0.4, 0.2), epoch_stats(0.5, 0.8, 0.4)]
    _, state = run(mj.automargin(k=1.0, deviations=-1.0, smoothing=0.75), epochs)
    # m: 0.4, then a quarter of the way to 0.8; s: 0.2, then a quarter of the way to 0.4.
    assert state.margin == pytest.approx(0.5 - 0.25, rel=1e-3)


def test_quantile_margin_makes_that_share_easy():
    """From a histogram of triplets: the next epoch is that easy, if it is of the same kind."""
    values = np.random.default_rng(0).normal(0.8, 0.3, 5000).astype(np.float32)
    bins = np.minimum(np.searchsorted(EFFECTIVE_EDGES, values, side="right"), 1023)
    totals = mj.EpochTotals(
        valid=5000, positives=10, negatives=10, sum_effective=4000.0,
        sum_effective_squared=1e4, histogram=np.bincount(bins, minlength=1024),
    )  # fmt: skip
    for quantile in (0.05, 0.2, 0.5, 0.999):
        schedule = mj.quantile_margin(quantile=quantile)
        margin = float(schedule.update(schedule.init(), totals.stats()).margin)
        assert np.mean(values >= margin) == pytest.approx(1 - quantile, abs=0.003)
        assert margin == pytest.approx(totals.effective_quantiles([quantile])[0], abs=1e-4)
    lowest = mj.quantile_margin(quantile=0.0, low=0.1)
    assert lowest.update(lowest.init(), totals.stats()).margin == np.float32(0.1)
    highest = mj.quantile_margin(quantile=1.0)
    assert values.max() < float(highest.update(highest.init(), totals.stats()).margin) < 2


def test_quantile_margin_says_what_it_needs():
    schedule = mj.quantile_margin()
    assert schedule.needs_histogram
    assert mj.hold_schedule(mj.clip_schedule(schedule), 2).needs_histogram
    assert not mj.hold_schedule(mj.dams(), 2).needs_histogram
    stats = mj.EpochTotals().stats()
    with pytest.raises(ValueError, match=r"needs the histogram .*histogram=True"):
        schedule.update(schedule.init(), stats)


def test_clip_leaves_the_schedule_itself_unlimited():
    schedule = mj.clip_schedule(
        mj.dams(0.2, increase=0.1, decrease=0.1, lower_threshold=0.5), 0, 0.3
    )
    seen = margins(schedule, [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(seen, [0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2], rtol=1e-6)


def test_joined_schedules_see_only_their_own_epochs():
    schedule = mj.join_schedules([mj.dams(0.2), mj.dams(0.5)], [2])
    np.testing.assert_allclose(
        margins(schedule, [1, 1, 0, 1, 0]), [0.2, 0.25, 0.5, 0.5, 0.55], rtol=1e-6
    )


# The controller as a controller


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("target", [0.6, 0.9, 0.97])
def test_the_controller_reaches_its_target_at_any_scale(scale, target):
    schedule = mj.target_easy_fraction(0.2 * scale, target, low=0, high=2 * scale)
    state = schedule.init()
    for _ in range(80):
        easy = 1 - ndtr((float(state.margin) / scale - 0.5) / 0.25)
        state = schedule.update(state, epoch_stats(easy, 0.5 * scale, 0.25 * scale))
    assert easy == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize(
    ("integral", "proportional", "stable"),
    [(1.9, 0.0, True), (2.1, 0.0, False), (0.5, 0.7, True), (0.5, 0.8, False), (0.0, 0.5, None)],
)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_controller_is_stable_where_it_says(integral, proportional, stable, sigma):
    """Effective margins of density 1 at every μ, so that pσ is the σ that the schedule is told."""
    wanted = 0.5
    schedule = mj.target_easy_fraction(
        0.45, wanted, integral / sigma, proportional / sigma, low=-50, high=50
    )
    state, errors = schedule.init(), []
    for _ in range(60):
        easy = 1 - float(state.margin)  # not limited to [0, 1]: the linear statement itself
        errors.append(abs(easy - wanted))
        state = schedule.update(state, epoch_stats(easy, 0.5, sigma))
    if stable is None:  # without integral action an error stays
        assert errors[-1] > 0.01
    else:
        assert (errors[-1] < 1e-3) == stable


@pytest.mark.parametrize(("target", "stops_at"), [(0.0, 1.0), (1.0, 0.5)])
def test_a_target_of_none_or_all(target, stops_at):
    """Effective margins evenly from 0.5 to 1: μ stops where no, or every, triplet is easy."""
    schedule = mj.target_easy_fraction(0.7, target)
    state = schedule.init()
    for _ in range(200):
        easy = np.clip((1 - float(state.margin)) / 0.5, 0, 1)
        state = schedule.update(state, epoch_stats(easy, 0.75, 0.5 / np.sqrt(12)))
    assert float(state.margin) == pytest.approx(stops_at, abs=0.01)


def test_the_controller_starts_below_its_bounds_if_told_to():
    np.testing.assert_allclose(margins(mj.target_easy_fraction(0.01), [0.9, 0.9]), [0.01, 0.05])


def test_the_controller_does_not_wind_up():
    schedule = mj.target_easy_fraction(0.2, 0.9, low=0.05, high=0.6)
    seen = margins(schedule, [1.0] * 100 + [0.5])
    assert seen[-1] == np.float32(0.6)
    _, state = run(schedule, [epoch_stats(1.0)] * 100 + [epoch_stats(0.5)])
    assert state.margin < 0.6 - 0.3 * 0.25, "it turned at once"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mj.constant(float("nan")), "margin must be finite and at least 0; got nan"),
        (lambda: mj.linear(float("inf"), 1.0, 5), "margin must be finite and at least 0; got inf"),
        (
            lambda: mj.linear(0.2, float("-inf"), 5),
            "margin_end must be finite and at least 0; got -inf",
        ),
        (lambda: mj.linear(0.2, 1.0, 0), "epochs must be between 1 and 1,000,000; got 0"),
        (lambda: mj.exponential(0.2, 1.0, -3), "epochs must be between 1 and 1,000,000; got -3"),
        (lambda: mj.exponential(0.0, 1.0, 5), r"above 0; got margin 0\.0, margin_end 1\.0"),
        (
            lambda: mj.exponential(0.2, -1.0, 5),
            r"margin_end must be finite and at least 0; got -1\.0",
        ),
        (
            lambda: mj.exponential(0.2, float("nan"), 5),
            "margin_end must be finite and at least 0; got nan",
        ),
        (lambda: mj.cosine(0.2, 1.0, 0), "1,000,000; got 0"),
        (lambda: mj.litm(0.2, 1.0, 0), "epochs must be between 1 and 1,000,000; got 0"),
        (lambda: mj.linear(0.2, 1.0, 10**13), "between 1 and 1,000,000; got 10000000000000"),
        (lambda: mj.litm(0.2, 1.0, 9, stages=1), "at least 2 stages; got 1"),
        (lambda: mj.replay(()), "at least one margin; got none"),
        (lambda: mj.replay((0.1, -0.1)), r"margins must be finite and at least 0; got -0\.1"),
        (lambda: mj.from_optax(lambda e: 1 / (e - 2 + 1e-99), 9), "must give finite scalars"),
        (lambda: mj.from_optax(lambda e: np.ones(2), 3), "must give finite scalars"),
        (lambda: mj.from_optax(lambda e: -1.0, 3), "finite scalars of at least 0; got"),
        (lambda: mj.from_optax(lambda e: 1.0, 0), "1,000,000; got 0"),
        (lambda: mj.dams(margin=float("nan")), "margin must be finite and at least 0; got nan"),
        (lambda: mj.dams(threshold=95), "threshold must be between 0 and 1; got 95"),
        (lambda: mj.dams(threshold=-0.1), r"threshold must be between 0 and 1; got -0\.1"),
        (lambda: mj.dams(threshold=float("nan")), "threshold must be between 0 and 1; got nan"),
        (lambda: mj.dams(increase=-0.05), r"increase must be finite and at least 0; got -0\.05"),
        (lambda: mj.dams(increase=float("inf")), "increase must be finite and at least 0; got inf"),
        (lambda: mj.dams(cap=0.1), r"cap must be at least margin, 0\.2; got 0\.1"),
        (lambda: mj.dams(cap=float("nan")), "cap must be at least margin"),
        (lambda: mj.dams(decrease=-1), "decrease must be finite and at least 0; got -1"),
        (lambda: mj.dams(lower_threshold=0.99), r"between 0 and threshold, 0\.95; got 0\.99"),
        (lambda: mj.dams(decrease=0.1), r"go together; got 0\.1 and 0\.0"),
        (lambda: mj.dams(lower_threshold=0.5), r"go together; got 0\.0 and 0\.5"),
        (lambda: mj.automargin(k=0), "k must be above 1e-6 and below 1e38; got 0"),
        (lambda: mj.automargin(smoothing=1.0), r"smoothing must be at least 0 and below 1; got 1"),
        (lambda: mj.automargin(deviations=float("nan")), "deviations must be finite; got nan"),
        (lambda: mj.quantile_margin(quantile=5), "quantile must be between 0 and 1; got 5"),
        (lambda: mj.target_easy_fraction(target=95), "target must be between 0 and 1; got 95"),
        (lambda: mj.target_easy_fraction(integral_gain=-1), "integral_gain must be at least 0"),
        (lambda: mj.target_easy_fraction(proportional_gain=1e9), "below 4096; got 1000000000.0"),
        (lambda: mj.target_easy_fraction(low=3), r"low must be at most high; got 3 and 2\.0"),
        (lambda: mj.clip_schedule(mj.dams(), 1, 0), "low must be at most high; got 1 and 0"),
        (lambda: mj.clip_schedule(mj.dams(), high=np.inf), "high must be finite; got inf"),
        (lambda: mj.join_schedules([], []), "got 0 schedules and 0 boundaries"),
        (lambda: mj.join_schedules([mj.dams()], [3]), "got 1 schedules and 1 boundaries"),
        (
            lambda: mj.join_schedules([mj.dams()] * 3, [2.2, 2.8]),
            r"each of boundaries must be a whole number; got 2\.2",
        ),
        (lambda: mj.join_schedules([mj.dams()] * 2, [2**40]), r"must rise, .* got \[1099511627776"),
        (lambda: mj.join_schedules([mj.dams(), mj.dams], [3]), r"mj.dams\(\) returns; got func"),
        (lambda: mj.replay(0.2), "replay needs a list of margins; got 0.2"),
        (lambda: mj.hold_schedule(mj.dams(), 2.5), r"epochs must be a whole number; got 2\.5"),
        (lambda: mj.warmup_schedule(mj.dams(), 2.5), r"epochs must be a whole number; got 2\.5"),
        (lambda: mj.join_schedules([mj.dams()] * 3, [3, 3]), r"must rise, .* got \[3, 3\]"),
        (lambda: mj.hold_schedule(mj.dams(), 0), "epochs must be between 1 and 1,000,000; got 0"),
        (
            lambda: mj.warmup_schedule(mj.dams(), -1),
            "epochs must be between 1 and 1,000,000; got -1",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


MARGINS = {
    "constant": mj.constant,
    "linear": lambda margin: mj.linear(margin, 1.0, 5),
    "linear_end": lambda margin: mj.linear(0.2, margin, 5),
    "exponential": lambda margin: mj.exponential(margin, 1.0, 5),
    "cosine": lambda margin: mj.cosine(margin, 1.0, 5),
    "litm": lambda margin: mj.litm(margin, 1.0, 5),
    "warmup": lambda margin: mj.warmup_schedule(mj.constant(), 5, margin),
    "dams": mj.dams,
    "automargin": mj.automargin,
    "quantile_margin": mj.quantile_margin,
    "target_easy_fraction": mj.target_easy_fraction,
}


@pytest.mark.parametrize("make", MARGINS.values(), ids=MARGINS)
def test_margins_that_no_schedule_takes(make):
    for margin in (-0.1, float("nan"), float("inf"), 1e39, np.float32(-1)):
        with pytest.raises(
            ValueError, match=r"(margin|margin_end|start) must be finite and at lea"
        ):
            make(margin)
    for margin in ("0.2", None, [0.1, 0.2], np.array([0.1, 0.2]), mj.dams().init()):
        with pytest.raises(TypeError, match=r"(margin|margin_end|start) must be a number; got"):
            make(margin)
    with pytest.raises(TypeError, match=r"must be a number; got .*Trace"):
        jax.jit(lambda margin: make(margin).init().margin)(0.2)
    for margin in (jnp.float32(0.25), np.array(0.25), np.float64(0.25), 1):
        assert np.isfinite(make(margin).init().margin)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mj.dams(threshold="0.9"),
        lambda: mj.dams(lower_threshold=None),
        lambda: mj.dams(increase="0.1"),
        lambda: mj.dams(cap="1"),
        lambda: mj.automargin(k="2"),
        lambda: mj.automargin(smoothing="0"),
        lambda: mj.automargin(deviations=None),
        lambda: mj.quantile_margin(quantile="0.1"),
        lambda: mj.quantile_margin(low="0.1"),
        lambda: mj.target_easy_fraction(target="0.9"),
        lambda: mj.target_easy_fraction(integral_gain="3"),
        lambda: mj.target_easy_fraction(high=None),
        lambda: mj.clip_schedule(mj.dams(), low="0"),
    ],
)
def test_parameters_that_are_no_numbers(make):
    with pytest.raises(TypeError, match="must be a number; got"):
        make()


def test_stages_are_whole():
    with pytest.raises(ValueError, match=r"stages must be a whole number; got 2\.5"):
        mj.litm(0.2, 1.0, 9, stages=2.5)


@pytest.mark.parametrize("name", FEEDBACK)
def test_statistics_of_another_kind_are_told_apart(name):
    """Totals and a batch's statistics have other sums under the names of an epoch's."""
    batch = jax.jit(mj.triplet_stats)(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), 0.2)
    schedule = SCHEDULES[name]
    for stats in (mj.EpochTotals().add(batch), batch, batch.totals(), None):
        kind = type(stats).__name__
        with pytest.raises(
            TypeError, match=rf"needs EpochStats, as EpochTotals\.stats.* got {kind}"
        ):
            schedule.update(schedule.init(), stats)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("extreme", [np.finfo(np.float32).max, 1e37])
def test_extreme_statistics_leave_no_trace(name, extreme):
    """What float32 holds, but cannot compute with, is not remembered, and so does no harm."""
    schedule, update = SCHEDULES[name], jitted(name)
    ordinary = [epoch_stats(0.9)] * 12
    spread = abs(extreme)
    wild = dataclasses.replace(
        epoch_stats(0.9), mean_effective=np.float32(extreme), std_effective=np.float32(spread)
    )
    _, state = run(schedule, [*ordinary[:3], wild], update=update)
    assert all(np.abs(leaf) < 1e38 for leaf in jax.tree.leaves(state))
    if name == "automargin_smooth" and extreme == 1e37:
        return  # it is told to keep nine tenths of the past
    seen, _ = run(schedule, ordinary, state, update)
    plain, _ = run(schedule, [*ordinary[:4], *ordinary], update=update)
    if name in ("automargin", "joined"):
        np.testing.assert_allclose(seen[-1], plain[-1], rtol=1e-6)
    else:
        assert 0 < seen[-1] < 2.2


def test_the_share_that_a_schedule_watches():
    """Which pictures draw; of one that is limited it is still that one's."""
    assert mj.dams(threshold=0.8).easy_share == 0.8
    assert mj.clip_schedule(mj.dams(threshold=0.8), 0.1, 0.5).easy_share == 0.8
    assert mj.target_easy_fraction(target=0.7).easy_share == 0.7
    assert mj.warmup_schedule(mj.dams(threshold=0.8), 3).easy_share == 0.8
    assert mj.join_schedules([mj.dams(), mj.dams(threshold=0.8)], [3]).easy_share is None
    assert mj.constant(0.2).easy_share is None
    assert mj.automargin().easy_share is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_its_state_can_be_donated(name):
    """Which JAX refuses if two of its numbers are one array."""
    take = jax.jit(lambda state: jax.tree.map(lambda v: v + 1, state), donate_argnums=0)
    schedule = SCHEDULES[name]
    take(schedule.init())
    stats = mj.EpochTotals().add(
        mj.triplet_stats(np.eye(4), np.array([0, 0, 1, 1]), 0.2), np.ones(1024, int)
    )
    take(schedule.update(schedule.update(schedule.init(), stats.stats()), stats.stats()))


def test_an_update_of_something_else_is_refused():
    stats = mj.EpochTotals().stats()
    with pytest.raises(TypeError, match=r"needs the state that its init or .* got float"):
        mj.dams().update(0.2, stats)
    loss_and_stats = mj.batch_all_triplet_loss(np.eye(4), np.array([0, 0, 1, 1]), 0.2)
    with pytest.raises(TypeError, match=r"stats must be TripletStats, .* got tuple of 2"):
        mj.EpochTotals().add(loss_and_stats)
    with pytest.raises(TypeError, match=r"stats must be TripletStats, .* got EpochTotals"):
        mj.EpochStats.of(mj.EpochTotals())
