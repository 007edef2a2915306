import dataclasses
import math
from fractions import Fraction

import jax
import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax.stats import EpochStats, EpochTotals

triplet_stats, on_the_device = jax.jit(mj.triplet_stats), jax.jit(EpochStats.of)


def stats_of(positives, negatives, semihard, hard, sums=None):
    """One batch's statistics by hand; `sums` are those of d(a,p), d(a,n), and of their squares."""
    counts = [np.array(v, np.int32) for v in (semihard, hard, positives, negatives)]
    sums = sums or [[0] * len(positives)] * 4
    return mj.TripletStats(*counts, *(np.array(v, np.float32) for v in sums))


def batches():
    """Three batches as (embeddings, labels), with triplets of every kind; the last has none."""
    rng = np.random.default_rng(0)
    labels = (rng.integers(0, 3, 10), rng.integers(0, 5, 10), np.arange(10))
    return [(rng.normal(size=(10, 4)).astype(np.float32), y.astype(np.int32)) for y in labels]


def test_properties_per_anchor():
    stats = stats_of(positives=[2, 0, 3], negatives=[4, 6, 3], semihard=[1, 0, 2], hard=[2, 0, 7])
    np.testing.assert_array_equal(stats.valid, [8, 0, 9])
    np.testing.assert_array_equal(stats.active, [3, 0, 9])
    np.testing.assert_array_equal(stats.easy, [5, 0, 0])
    np.testing.assert_allclose(stats.easy_fraction, 5 / 17, rtol=1e-7)


def test_totals_are_python_ints_that_do_not_overflow():
    # The sums, and the triplets of the first anchor alone, are past 32 bits.
    stats = stats_of([2**16, 2**15], [2**17, 2**16], [5, 2**31 - 1], [2**31 - 1, 7])
    totals = stats.totals()
    assert all(type(value) is int for value in totals.values())
    assert totals == {
        "valid": 2**33 + 2**31,
        "easy": 2**33 - 2**31 - 10,
        "semihard": 2**31 + 4,
        "hard": 2**31 + 6,
    }


def test_adding_batches_equals_their_union():
    margin = 0.5
    answers = [oracle.batch_all(x, labels, margin) for x, labels in batches()]
    totals = EpochTotals()
    for x, labels in batches():
        totals = totals.add(triplet_stats(x, labels, margin))

    union = {name: sum(answer.counts[name] for answer in answers) for name in answers[0].counts}
    assert min(union.values()) > 0
    assert totals.counts() == union

    ap, an, effective = (
        np.concatenate([getattr(answer, name) for answer in answers])
        for name in ("ap", "an", "effective")
    )
    expected = {
        "easy_fraction": union["easy"] / union["valid"],
        "semihard_fraction": union["semihard"] / union["valid"],
        "hard_fraction": union["hard"] / union["valid"],
        "mean_ap": ap.mean(),
        "mean_an": an.mean(),
        "mean_effective": effective.mean(),
        "std_effective": effective.std(),
    }
    measured = dataclasses.asdict(totals.stats())
    assert measured.pop("effective_cdf") is None
    for name, value in measured.items():
        assert type(value) is np.float32
        np.testing.assert_allclose(value, expected.pop(name), rtol=1e-5, err_msg=name)
    assert not expected


def test_stacked_histograms_are_summed():
    one = stats_of([1], [2], [0], [1])
    bins = np.arange(2 * 1024).reshape(2, 1024)
    apart = EpochTotals().add(one, bins[0]).add(one, bins[1])
    stacked = EpochTotals().add(one, bins)
    np.testing.assert_array_equal(stacked.histogram, apart.histogram)


def test_adding_changes_nothing_in_place():
    totals = EpochTotals(valid=3, hard=1)
    totals.add(stats_of([1], [2], [0], [1]))
    assert totals == EpochTotals(valid=3, hard=1)


def test_counts_go_on_past_64_bits():
    totals = EpochTotals(valid=2**63 - 1, semihard=2**62, hard=2**62)
    more = totals.add(stats_of(positives=[3], negatives=[5], semihard=[2], hard=[1]))
    assert more.counts() == {
        "valid": 2**63 + 14,
        "easy": 11,
        "semihard": 2**62 + 2,
        "hard": 2**62 + 1,
    }


@pytest.mark.parametrize(
    ("easy", "valid"),
    [
        (94_999_999, 100_000_000),
        (95_000_000, 100_000_000),
        (2**63 - 1, 2**63),
        (2**62 + 1, 2**63 - 25),
        (1, 2**63 - 1),
        (809_512_045, 852_117_983),  # a quotient of float32 numbers would reach 0.95 here
        (618_181_720, 650_717_616),  # and miss it here
    ],
)
def test_shares_come_from_exact_integers(easy, valid):
    semihard = (valid - easy) // 3
    stats = EpochTotals(valid=valid, semihard=semihard, hard=valid - easy - semihard).stats()
    for share, count in (
        (stats.easy_fraction, easy),
        (stats.semihard_fraction, semihard),
        (stats.hard_fraction, valid - easy - semihard),
    ):
        assert share.dtype == np.float32
        # No float32 is nearer to the exact share.
        error = abs(Fraction(float(share)) - Fraction(count, valid))
        for neighbour in np.nextafter(share, np.float32([0, 2])):
            assert error <= abs(Fraction(float(neighbour)) - Fraction(count, valid))


def test_no_triplets_means_nan():
    x = np.eye(4, dtype=np.float32)
    one_class = triplet_stats(x, np.zeros(4, np.int32), 0.2)
    nothing = EpochTotals().stats()
    assert all(math.isnan(value) for value in jax.tree.leaves(nothing))

    stats = EpochTotals().add(one_class).stats()
    defined = {k for k, v in vars(stats).items() if v is not None and not math.isnan(v)}
    assert defined == {"mean_ap"}  # there are positive pairs, though no triplet
    np.testing.assert_allclose(stats.mean_ap, math.sqrt(2), rtol=1e-6)
    assert math.isnan(one_class.easy_fraction)


def test_shares_of_float64_embeddings_are_float32_too():
    """So that a schedule whose state is made of them can be carried through a scan."""
    schedule = mj.automargin(margin=0.1)
    x, labels = batches()[0]
    with jax.enable_x64(True):
        stats = triplet_stats(x.astype(np.float64), labels, 0.5)
        assert stats.sum_ap.dtype == np.float64
        shares = EpochStats.of(stats)
        assert {v.dtype for v in jax.tree.leaves(shares)} == {np.dtype(np.float32)}

        def step(state, _):
            return schedule.update(state, EpochStats.of(stats)), state.margin

        _, margins = jax.lax.scan(step, schedule.init(), None, length=3)
    assert margins.dtype == np.float32


def test_equal_distances_have_no_spread():
    # Six points at distance √2 from each other: the variance is a difference of equal numbers,
    # which rounding must not turn into the root of a negative one.
    stats = triplet_stats(np.eye(6, dtype=np.float32), np.array([0, 0, 1, 1, 2, 2]), 0.2)
    spread = EpochTotals().add(stats).stats()
    np.testing.assert_allclose(spread.mean_effective, 0, atol=1e-6)
    np.testing.assert_allclose(spread.std_effective, 0, atol=1e-3)


def corners():
    """Batches on which a formula could go wrong, as (embeddings, labels, real rows)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 7)).astype(np.float32)
    yield "random", x, rng.integers(0, 3, 8), 8
    for scale in (1.0, 1.1, 5.7, 11.0, 13.0, 1e3):  # rounding makes some of the variances negative
        points = np.float32(scale) * np.eye(8, 7, dtype=np.float32)
        yield f"equidistant, {scale}", points, [0, 0, 0, 1, 1, 1, 1, 1], 6
        yield f"equidistant, {scale}", points, [0, 0, 0, 1, 1, 2, 2, 2], 7
        yield f"equidistant, {scale}", points, [0, 0, 0, 0, 1, 1, 1, 1], 7
    yield "one point", np.ones((8, 7), np.float32), [0, 0, 1, 1, 2, 2, 3, 3], 8
    yield "one identity", x, [0] * 8, 8
    yield "no two of one", x, np.arange(8), 8
    yield "one triplet", x, [0, 0, 1, 1, 0, 1, 0, 1], 3
    yield "padded", x, [0, 0, 1, 1, 0, 1, 0, 1], 5
    yield "nothing but padding", x, [0, 0, 1, 1, 0, 1, 0, 1], 0


@pytest.mark.parametrize("counted", [True, False])
def test_the_host_and_the_device_say_the_same(counted):
    """`EpochTotals.stats`, `EpochStats.of` and the share of `TripletStats`, in every corner."""
    for name, x, labels, real in corners():
        assert_same_on_host_and_device(name, x, np.asarray(labels), real, counted)


def assert_same_on_host_and_device(corner, x, labels, real, counted):
    stats = triplet_stats(x, labels, 0.2, where=np.arange(8) < real)
    bins = np.arange(1024) * bool(stats.totals()["valid"]) if counted else None
    host = EpochTotals().add(stats, bins).stats()
    device = on_the_device(stats, bins)
    scale = float(np.abs(x).max())  # in float32 a spread of 0 is the root of a rounding error
    for name, value in vars(host).items():
        told = getattr(device, name)
        if value is None or told is None:
            assert value is told is None
            continue
        np.testing.assert_allclose(
            told, value, rtol=2e-4, atol=2e-3 * scale, err_msg=f"{name}, {corner}"
        )
    np.testing.assert_allclose(stats.easy_fraction, host.easy_fraction, rtol=1e-6)


def test_statistics_are_pytrees():
    stats = stats_of([1, 2], [3, 4], [0, 0], [1, 1])
    doubled = jax.tree.map(lambda v: 2 * v, stats)
    assert isinstance(doubled, mj.TripletStats)
    np.testing.assert_array_equal(doubled.positives, [2, 4])
    epoch = EpochTotals().add(stats).stats()
    assert len(jax.tree.leaves(epoch)) == 7
