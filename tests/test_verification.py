"""Verification figures against plain loops."""

from fractions import Fraction

import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax.evaluation.embedding import embed_examples, pair_distances


def cases():
    rng = np.random.default_rng(0)
    for name, n, overlap in (("few", 20, 0.5), ("many", 400, 0.2)):
        same = rng.random(n) < 0.4
        yield name, rng.normal(np.where(same, 0.5, 0.5 + overlap), 0.2), same
    same = rng.random(100) < 0.5
    yield "tied", rng.integers(0, 5, 100) - 1.0 * same, same
    yield "all tied", np.ones(10), np.arange(10) < 4
    yield "perfect", np.where(same, 0.1, 0.9), same
    yield "reversed", np.where(same, 0.9, 0.1), same


@pytest.mark.parametrize(("name", "distances", "same"), list(cases()))
def test_figures_match_plain_loops(name, distances, same):
    threshold = mj.choose_threshold(distances, same)
    report = mj.verification_report(distances, same, threshold=threshold)
    points = oracle.roc(distances, same)
    assert report.auc == pytest.approx(oracle.auc(distances, same), abs=1e-12)
    assert report.eer == pytest.approx(oracle.eer(distances, same), abs=1e-12)
    np.testing.assert_allclose(
        np.stack([report.fpr, report.tpr, report.thresholds]).T, points, atol=1e-12
    )
    nearest = min(points[1:], key=lambda point: (point[0] ** 2 + (1 - point[1]) ** 2, point[2]))
    assert threshold == nearest[2]
    right = [(d <= threshold) == s for d, s in zip(distances, same, strict=True)]
    assert report.accuracy == pytest.approx(np.mean(right))
    assert report.fmr == np.mean(distances[~same] <= threshold)
    assert report.fnmr == np.mean(distances[same] > threshold)
    for rate, tpr in report.tpr_at_fpr.items():
        assert tpr == max(point[1] for point in points if point[0] <= rate)


def test_what_is_written_are_the_figures_by_their_names():
    distances, same = np.array([0.1, 0.4, 0.35, 0.8, 0.9]), np.array([True, True, *[False] * 3])
    report = mj.verification_report(distances, same, threshold=0.4)
    written = report.to_json()
    assert written.pop("tpr_at_fpr") == {"0.01": 0.5, "0.001": 0.5}
    assert written.pop("warnings") == list(report.warnings)
    assert (written.pop("same_pairs"), written.pop("different_pairs")) == (2, 3)
    assert written == {name: getattr(report, name) for name in written}
    assert {*written} == {"auc", "eer", "threshold", "accuracy", "fmr", "fnmr", "intervals"}
    assert (report.fmr, report.fnmr) == (1 / 3, 0)
    assert report == mj.verification_report(distances, same, threshold=0.4)
    assert report != mj.verification_report(distances, same, threshold=0.1)


def test_the_threshold_comes_from_elsewhere():
    distances, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, True, False, False])
    good, bad = (mj.verification_report(distances, same, threshold=t) for t in (0.25, 0.35))
    assert (good.accuracy, bad.accuracy) == (1.0, 0.75)
    assert good.auc == bad.auc == 1.0
    # "At most the threshold" means the same.
    assert mj.verification_report(distances, same, threshold=0.3).accuracy == 0.75


def test_the_threshold_is_a_distance_even_when_nothing_can_be_told():
    same = np.arange(10) < 5
    assert mj.choose_threshold(np.zeros(10), same) == 0
    assert np.isfinite(mj.choose_threshold(np.where(same, 0.9, 0.1), same))
    integers = np.arange(10, dtype=np.uint8)
    assert mj.verification_report(integers, same, threshold=4).auc == 1


def test_of_thresholds_that_are_as_near_the_smallest_is_chosen():
    """0.1 and 0.4 are both at a squared distance of 4/9, which rounding tells apart."""
    distances = np.array([0.3, 0.1, 0.4, 0.5, 0.4, 0.3])
    same = np.array([False, True, True, False, True, False])
    assert mj.choose_threshold(distances, same) == 0.1
    rng = np.random.default_rng(0)
    for _ in range(300):
        distances = rng.integers(0, 8, 13) / 8
        same = rng.permutation(np.arange(13) < rng.integers(1, 12))
        points = [
            (
                Fraction(int(np.sum(~same & (distances <= d))), int(np.sum(~same))) ** 2
                + Fraction(int(np.sum(same & (distances > d))), int(np.sum(same))) ** 2,
                d,
            )
            for d in distances
        ]
        assert mj.choose_threshold(distances, same) == min(points)[1]


@pytest.mark.parametrize("tied", [False, True])
def test_the_threshold_of_a_false_match_rate_is_the_largest_that_keeps_it(tied):
    rng = np.random.default_rng(0)
    same = np.arange(1200) < 200
    distances = rng.normal(np.where(same, 1.0, 2.0), 0.4)
    if tied:
        distances = np.round(distances, 1)
    for rate in (0.01, 0.03, 0.2, 0.5):
        threshold = mj.choose_threshold(distances, same, fmr=rate)
        within = [d for d in distances if np.mean(distances[~same] <= d) <= rate]
        assert threshold == max(within)
        assert mj.verification_report(distances, same, threshold=threshold).fmr <= rate
    assert (
        threshold
        > mj.choose_threshold(distances, same, 0.2)
        > mj.choose_threshold(distances, same, 0.03)
    )


def test_if_even_the_smallest_distance_matches_too_often_nothing_does():
    distances, same = np.array([0.5] * 100 + [0.7]), np.arange(101) == 100
    threshold = mj.choose_threshold(distances, same, fmr=0.1)
    assert 0.49 < threshold < 0.5
    assert mj.verification_report(distances, same, threshold=threshold).fmr == 0


@pytest.mark.parametrize(("rate", "needed"), [(0.1, 100), (0.003, 3334), (0.001, 10_000)])
def test_a_rate_needs_ten_false_matches(rate, needed):
    for different in (needed - 1, needed):
        distances, same = np.arange(different + 1.0), np.arange(different + 1) == 0
        if different == needed:
            assert mj.choose_threshold(distances, same, rate) == int(rate * needed + 1e-9)
        else:
            message = f"at least {needed:,} different pairs for .*{rate}, .*10 match falsely; got"
            with pytest.raises(ValueError, match=message):
                mj.choose_threshold(distances, same, rate)


@pytest.mark.parametrize("rate", [0, 1, -0.1, np.nan, 2])
def test_a_rate_is_between_0_and_1(rate):
    with pytest.raises(ValueError, match="fmr must be above 0 and below 1; got"):
        mj.choose_threshold(np.arange(4.0), np.arange(4) < 2, fmr=rate)


def test_too_few_pairs_are_said():
    rng = np.random.default_rng(0)
    small = mj.verification_report(rng.random(200), np.arange(200) < 100, threshold=0.5)
    middle = mj.verification_report(rng.random(4000), np.arange(4000) < 100, threshold=0.5)
    large = mj.verification_report(rng.random(12_000), np.arange(12_000) < 100, threshold=0.5)
    assert [len(report.warnings) for report in (small, middle, large)] == [2, 1, 0]
    assert "FPR 0.001 needs 10,000 different pairs" in middle.warnings[0]
    assert "got 3,900" in middle.warnings[0]


@pytest.mark.parametrize(
    ("distances", "same", "threshold", "error", "message"),
    [
        (np.ones(3), np.ones(4, bool), 1.0, ValueError, r"got shapes \(3,\) and \(4,\)"),
        (np.ones((2, 2)), np.ones((2, 2), bool), 1.0, ValueError, "one-dimensional"),
        (np.ones(3), np.array([1, 0, 1]), 1.0, TypeError, "same must be boolean; got int64"),
        (np.array([1, np.nan]), np.array([True, False]), 1.0, ValueError, "1 of 2 are not"),
        (np.ones(2), np.array([True, True]), 1.0, ValueError, "got 2 same of 2"),
        (np.ones(2), np.array([True, False]), np.nan, ValueError, "got NaN"),
        (np.ones(2), np.array([True, False]), None, TypeError, "must be a distance; got None"),
    ],
)
def test_bad_input(distances, same, threshold, error, message):
    with pytest.raises(error, match=message):
        mj.verification_report(distances, same, threshold=threshold)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "manhattan"])
def test_pair_distances(distance, monkeypatch):
    monkeypatch.setattr("margin_jax.evaluation.embedding._PAIR_VALUES", 60)  # chunks of 10 pairs
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 2, 3)).astype(np.float32)
    rows = rng.integers(30, size=(37, 2))
    flat = vectors.reshape(30, 6).astype(np.float64)

    def plain(x, y):
        if distance == "cosine":
            return 1 - x @ y / np.sqrt((x @ x) * (y @ y))
        return np.linalg.norm(x - y, ord={"euclidean": 2, "manhattan": 1}[distance])

    expected = [plain(flat[a], flat[b]) for a, b in rows]
    np.testing.assert_allclose(pair_distances(vectors, rows, distance), expected, atol=2e-3)


def test_embeddings_are_those_of_evaluation_in_the_order_of_the_rows():
    def apply_fn(params, batch_stats, examples, *, train, key):
        assert not train
        assert key is None
        return params * examples.reshape(len(examples), -1).astype(np.float32), batch_stats

    examples = np.arange(20, dtype=np.uint8).reshape(5, 2, 2, 1)
    found = embed_examples(apply_fn, np.float32(2), {}, examples, np.array([3, 0, 4]))
    np.testing.assert_array_equal(found, 2.0 * examples.reshape(5, 4)[[3, 0, 4]])
