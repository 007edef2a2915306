"""Intervals by a bootstrap over identities against plain loops, and whether they hold."""

import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax.evaluation import all_pairs, intervals
from margin_jax.evaluation.intervals import bootstrap_intervals


def pairs_of(labels):
    i, j = np.triu_indices(len(labels), 1)
    return np.stack([i, j], axis=1), labels[i] == labels[j]


def people(rng, n, images=4):
    """Vectors of people, of whom some look like many others, and some not even like themselves."""
    spread = np.exp(0.3 * rng.normal(size=(n, 1, 1)))
    faces = rng.normal(size=(n, 1, 4)) * spread
    noise = 0.6 * np.exp(0.4 * rng.normal(size=(n, 1, 1)))
    x = faces + noise * rng.normal(size=(n, images, 4))
    return x.reshape(-1, 4), np.repeat(np.arange(n), images)


def distances_of(rng, n, images=4):
    x, labels = people(rng, n, images)
    rows, same = pairs_of(labels)
    return np.linalg.norm(x[rows[:, 0]] - x[rows[:, 1]], axis=1), same, labels[rows]


def plain(distances, same, identities, threshold, fprs, resamples, seed):
    """Pairs written down as often as they weigh, and figures of each such list."""
    names = sorted(set(identities.ravel().tolist()))
    rng = np.random.default_rng(seed)
    found = []
    for drawn in rng.integers(len(names), size=(resamples, len(names))).tolist():
        times = {name: drawn.count(place) for place, name in enumerate(names)}
        again = [
            (d, s)
            for d, s, (a, b) in zip(distances, same, identities.tolist(), strict=True)
            for _ in range(times[a] if s else times[a] * times[b])
        ]
        d, s = np.array([d for d, _ in again]), np.array([s for _, s in again])
        if s.all() or not s.any():
            continue
        points = oracle.roc(d, s)
        tprs = [max(tpr for fpr, tpr, _ in points if fpr <= rate) for rate in fprs]
        errors = np.mean(d[~s] <= threshold), np.mean(d[s] > threshold)
        found.append([oracle.auc(d, s), oracle.eer(d, s), *errors, *tprs])
    return np.quantile(found, (0.025, 0.975), axis=0).T


@pytest.mark.parametrize("kind", ["all", "tied", "some", "names"])
def test_equals_plain_loops(kind, monkeypatch):
    rng = np.random.default_rng(0)
    distances, same, whose = distances_of(rng, 11, 3)
    if kind == "tied":
        distances = np.round(2 * distances)
    if kind == "some":
        kept = np.flatnonzero(same | (rng.random(len(same)) < 0.3))
        distances, same, whose = distances[kept], same[kept], whose[kept]
    shown = np.array([f"person {i}" for i in range(11)])[whose] if kind == "names" else whose
    found = bootstrap_intervals(
        distances, same, shown, threshold=2.0, fprs=(0.1, 0.03), resamples=40, seed=3
    )
    expected = plain(distances, same, shown, 2.0, (0.1, 0.03), 40, 3)
    ends = [found.auc, found.eer, found.fmr, found.fnmr, *found.tpr_at_fpr.values()]
    np.testing.assert_allclose(ends, expected, atol=1e-12)
    assert found.identities == 11
    assert list(found.tpr_at_fpr) == [0.1, 0.03]
    monkeypatch.setattr(intervals, "_BLOCK", 7 * len(same))  # the last block is not full
    again = bootstrap_intervals(
        distances, same, shown, threshold=2.0, fprs=(0.1, 0.03), resamples=40, seed=3
    )
    assert again == found


def test_they_hold_where_those_of_pairs_do_not():
    """Of 60 samples of 30 people, nearly all have the truth within; pairs say far too much."""
    rng = np.random.default_rng(1)
    threshold, rates = 1.5, np.zeros(2)
    x, _ = people(rng, 20_000, 2)
    rates[0] = np.mean(np.linalg.norm(x[::2] - np.roll(x[::2], 1, axis=0), axis=1) <= threshold)
    rates[1] = np.mean(np.linalg.norm(x[::2] - x[1::2], axis=1) > threshold)
    held, held_by_pairs = np.zeros(2), np.zeros(2)
    for trial in range(60):
        distances, same, whose = distances_of(rng, 30)
        found = bootstrap_intervals(
            distances, same, whose, threshold=threshold, fprs=(), resamples=200, seed=trial
        )
        low, high = np.array([found.fmr, found.fnmr]).T
        held += (low <= rates) & (rates <= high)
        wrong = (distances <= threshold) != same
        for error, kind in enumerate((~same, same)):
            own = wrong[kind]
            width = 1.96 * np.std(own) / np.sqrt(len(own))
            held_by_pairs[error] += abs(np.mean(own) - rates[error]) <= width
    assert np.all(held / 60 > 0.85), held / 60
    assert np.all(held_by_pairs / 60 < 0.75), held_by_pairs / 60


def test_a_report_has_them_if_it_knows_whose_the_images_are():
    distances, same, whose = distances_of(np.random.default_rng(0), 12)
    plainly = mj.verification_report(distances, same, threshold=2.0)
    assert plainly.intervals is None
    assert plainly.to_json()["intervals"] is None
    report = mj.verification_report(distances, same, threshold=2.0, identities=whose)
    assert {**report.to_json(), "intervals": None} == plainly.to_json()
    found = report.intervals
    for name in ("auc", "eer", "fmr", "fnmr"):
        low, high = getattr(found, name)
        assert low < getattr(report, name) < high
    written = report.to_json()["intervals"]
    assert written["auc"] == list(found.auc)
    assert written["tpr_at_fpr"]["0.01"] == list(found.tpr_at_fpr[0.01])
    assert written["identities"] == 12
    again = mj.verification_report(distances, same, threshold=2.0, identities=whose)
    assert again.intervals == found


def test_of_too_few_identities_there_are_none_and_that_is_said():
    rng = np.random.default_rng(0)
    for n, there in ((9, False), (10, True)):
        distances, same, whose = distances_of(rng, n)
        report = mj.verification_report(distances, same, threshold=2.0, identities=whose)
        assert (report.intervals is not None) == there
        said = [warning for warning in report.warnings if "no intervals" in warning]
        assert len(said) == (not there)
    # Ten people, but same pairs of nine.
    kept = ~same | (whose[:, 0] > 0)
    report = mj.verification_report(
        distances[kept], same[kept], threshold=2.0, identities=whose[kept]
    )
    assert report.intervals is None
    assert "no intervals: they need 10 identities in same and in different" in report.warnings[-1]


@pytest.mark.parametrize(
    ("whose", "message"),
    [
        (lambda whose: whose[:, 0], r"shape \(66, 2\); got \(66,\)"),
        (lambda whose: whose[1:], r"shape \(66, 2\); got \(65, 2\)"),
        (lambda whose: whose[::-1], "one of a same pair, and two of a different one"),
    ],
)
def test_bad_input(whose, message):
    labels = np.arange(12) // 2
    rows, same = pairs_of(labels)
    with pytest.raises(ValueError, match=message):
        mj.verification_report(np.arange(66.0), same, threshold=1.0, identities=whose(labels[rows]))


def test_intervals_of_all_pairs_are_those_of_a_list_of_them():
    x, labels = people(np.random.default_rng(0), 20)
    rows, same = pairs_of(labels)
    report = mj.all_pairs_report(x, labels, threshold=2.0, intervals=True)
    apart = np.linalg.norm(x[rows[:, 0]] - x[rows[:, 1]], axis=1)
    expected = mj.verification_report(apart, same, threshold=2.0, identities=labels[rows])
    for name in ("auc", "eer", "fmr", "fnmr"):
        np.testing.assert_allclose(
            getattr(report.intervals, name), getattr(expected.intervals, name), atol=1e-6
        )
    assert mj.all_pairs_report(x, labels, threshold=2.0).intervals is None
    few = mj.all_pairs_report(x[:36], labels[:36], threshold=2.0, intervals=True)
    assert few.intervals is None
    assert "no intervals" in few.warnings[-1]


def test_intervals_of_more_pairs_are_of_some_and_about_the_figures_of_all(monkeypatch):
    x, labels = people(np.random.default_rng(0), 60)
    whole = mj.all_pairs_report(x, labels, threshold=1.5, intervals=True)
    monkeypatch.setattr(all_pairs, "_SOME", 3000)  # of 28,320 different ones
    some = mj.all_pairs_report(x, labels, threshold=1.5, intervals=True)
    assert (some.auc, some.fmr) == (whole.auc, whole.fmr)
    for name in ("auc", "eer", "fmr", "fnmr"):
        low, high = getattr(some.intervals, name)
        assert low < getattr(whole, name) < high
        wide = np.subtract(*getattr(whole.intervals, name))
        assert 0.9 * wide > low - high > 1.7 * wide, name  # widths, below 0


def test_intervals_of_a_sample_are_moved_to_the_figures_of_all():
    distances, same, whose = distances_of(np.random.default_rng(0), 12)
    report = mj.verification_report(distances, same, threshold=2.0, identities=whose)
    own = (report.auc, report.eer, report.fmr, report.fnmr)
    moved = bootstrap_intervals(
        distances,
        same,
        whose,
        threshold=2.0,
        fprs=(),
        figures=tuple(np.add(own, (-0.01, 0.02, -1, 0))),
    )
    for name, by in (("auc", -0.01), ("eer", 0.02), ("fnmr", 0)):
        expected = np.add(getattr(report.intervals, name), by)
        np.testing.assert_allclose(getattr(moved, name), expected, atol=1e-12)
    assert moved.fmr == (0, 0), "a rate is never below 0"


@pytest.mark.parametrize("some", [200, 10**5])
def test_some_pairs_are_distinct_of_both_kinds_and_each_as_likely(some, monkeypatch):
    monkeypatch.setattr(all_pairs, "_SOME", some)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 120)
    _, same = pairs_of(labels)
    found = all_pairs._some_pairs(labels)
    assert len({tuple(sorted(pair)) for pair in found.tolist()}) == len(found)
    kinds = labels[found[:, 0]] == labels[found[:, 1]]
    for kind in (True, False):
        assert np.sum(kinds == kind) == min(some, np.sum(same == kind))
    if some == 200:
        there = np.bincount(np.digitize(found[~kinds].ravel(), (40, 80)))
        np.testing.assert_allclose(there / there.sum(), 1 / 3, atol=0.07)
