"""All pairs, held in memory and counted in bins, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj
from margin_jax.evaluation import all_pairs
from margin_jax.evaluation.all_pairs import all_pairs_report
from margin_jax.losses.distances import get_distance


def signed(x, y):
    """Below and above 0, −0 where others have 0, and not symmetric."""
    return -(x[:, :1] - 2 * y[:, 0])


def crowded(x, y):
    """Many distances a bin."""
    return 1 + get_distance("euclidean")(x, y) / 1000


def whole(seed=0, n=45):
    """Whole numbers: distances with many ties, and no rounding before a root."""
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, (n, 3)).astype(np.float32), rng.integers(0, 5, n)


def spread(seed=0, n=45, dim=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    return rng.normal(0.3 * labels[:, None], 1.0, (n, dim)).astype(np.float32), labels


def in_tiles(x, labels, distance):
    """Distances as the report has them, to the last bit, and kinds."""
    tiles = all_pairs._tiles(get_distance(distance), x, labels)
    parts = [(d[pair], s[pair]) for d, s, pair in (map(np.asarray, tile) for tile in tiles)]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def bin_of(distance):
    """Sign, exponent and the first 13 of the 23 bits of the mantissa."""
    bits = int(np.abs(np.float32(distance)).view(np.int32))
    return bool(distance < 0), bits >> 10


def area(distances, same):
    nearer = distances[same][:, None] < distances[~same]
    tied = distances[same][:, None] == distances[~same]
    return np.mean(nearer + 0.5 * tied)


@pytest.mark.parametrize("side", [1024, 16, 15, 11])  # of 45: all; last 13; full; last 1
@pytest.mark.parametrize("distance", ["euclidean", "manhattan", signed])
def test_few_pairs_are_reported_as_a_list_of_them(distance, side, monkeypatch):
    monkeypatch.setattr(all_pairs, "_SIDE", side)
    x, labels = whole()
    i, j = np.triu_indices(len(x), 1)
    distances, same = np.asarray(get_distance(distance)(x, x))[i, j], labels[i] == labels[j]
    expected = mj.verification_report(distances, same, threshold=2.0)
    report = all_pairs_report(x, labels, distance=distance, threshold=2.0)
    assert report.to_json() == expected.to_json()
    for curve in ("fpr", "tpr", "thresholds"):
        np.testing.assert_array_equal(getattr(report, curve), getattr(expected, curve))


@pytest.mark.parametrize("side", [1024, 16, 15, 11])
@pytest.mark.parametrize("distance", ["euclidean", "cosine", signed, crowded])
@pytest.mark.parametrize("points", [whole, spread])
def test_many_pairs_are_exact_at_the_edges_of_bins(points, distance, side, monkeypatch):
    monkeypatch.setattr(all_pairs, "_SIDE", side)
    x, labels = points()
    distances, same = in_tiles(x, labels, distance)
    report = all_pairs_report(x, labels, distance=distance, threshold=1.0, exact_up_to=0)

    assert len(distances) == report.same + report.different == 45 * 44 // 2
    assert (report.fpr[0], report.tpr[0], report.thresholds[0]) == (0, 0, -np.inf)
    edges = report.thresholds[1:]
    for fpr, tpr, edge in zip(report.fpr[1:], report.tpr[1:], edges, strict=True):
        assert fpr == np.mean(distances[~same] <= edge)
        assert tpr == np.mean(distances[same] <= edge)
        assert bin_of(edge) != bin_of(np.nextafter(np.float32(edge), np.float32(np.inf)))
    assert [bin_of(edge) for edge in edges] == list(dict.fromkeys(map(bin_of, sorted(distances))))

    # The other figures are those of distances that are rounded up to the edges of their bins.
    rounded = edges[np.searchsorted(edges, distances)]
    expected = mj.verification_report(rounded, same, threshold=1.0)
    assert report.auc == pytest.approx(area(rounded, same), abs=1e-12)
    assert report.eer == pytest.approx(expected.eer, abs=1e-12)
    assert report.tpr_at_fpr == expected.tpr_at_fpr
    both = [np.sum(rounded[same] == edge) * np.sum(rounded[~same] == edge) for edge in edges]
    bound = sum(both) / (2 * report.same * report.different)
    assert abs(report.auc - area(distances, same)) <= bound + 1e-12
    assert distance is not crowded or abs(report.auc - area(distances, same)) > 1e-5


@pytest.mark.parametrize("exact_up_to", [0, 990])
@pytest.mark.parametrize("distance", ["euclidean", "cosine", signed])
def test_accuracy_is_exact_at_any_threshold(distance, exact_up_to):
    x, labels = spread()
    distances, same = in_tiles(x, labels, distance)
    one = float(np.sort(distances)[300])
    around = (np.nextafter(one, -np.inf), one, np.nextafter(one, np.inf))  # as float64
    for threshold in (*around, 0.1, 0.0, 1e300, -1e300, np.inf, -np.inf):
        report = all_pairs_report(
            x, labels, distance=distance, threshold=threshold, exact_up_to=exact_up_to
        )
        right = sum((float(d) <= threshold) == s for d, s in zip(distances, same, strict=True))
        assert report.accuracy == right / len(same), threshold
        assert report.threshold == threshold


def test_intervals_are_of_pairs_with_the_lower_index_first():
    """A distance may depend on it, and the report measures from that one."""
    rows = all_pairs._some_pairs(np.array([1, 0, 1, 0]))
    assert sorted(map(tuple, rows.tolist())) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_bins_change_the_figures_little():
    x, labels = spread(n=3000, dim=16)
    held, counted = (
        all_pairs_report(x, labels, threshold=5.0, exact_up_to=up_to)
        for up_to in (len(x) * (len(x) - 1) // 2, 0)
    )
    assert counted.auc == pytest.approx(held.auc, abs=1e-5)
    assert counted.eer == pytest.approx(held.eer, abs=1e-4)
    assert (counted.accuracy, counted.same) == (held.accuracy, held.same)
    assert len(counted.thresholds) < 100_000 < len(held.thresholds)
    for rate, tpr in counted.tpr_at_fpr.items():
        step = np.max(np.diff(counted.tpr))
        assert held.tpr_at_fpr[rate] - step <= tpr <= held.tpr_at_fpr[rate]


def no_number(x, y):
    """Of images with one first value."""
    return jnp.where(x[:, :1] == y[:, 0], jnp.nan, 1.0)


@pytest.mark.parametrize("exact_up_to", [0, 990])
@pytest.mark.parametrize(
    ("x", "labels", "options", "message"),
    [
        (np.zeros((3, 2)), np.arange(2), {}, r"got shapes \(3, 2\) and \(2,\)"),
        (np.zeros(3), np.arange(3), {}, r"got shapes \(3,\) and \(3,\)"),
        (np.full((2, 2), np.nan), np.zeros(2, int), {}, "embeddings must be finite"),
        (np.zeros((0, 2)), np.arange(0), {}, "needs same and different pairs; got 0 same of 0"),
        (np.zeros((3, 2)), np.arange(3), {}, "needs same and different pairs; got 0 same of 3"),
        (np.zeros((3, 2)), np.ones(3), {}, "needs same and different pairs; got 3 same of 3"),
        (np.eye(3), np.array([0, 0, 1]), {"threshold": np.nan}, "got NaN"),
        (np.eye(3), np.array([0, 0, 1]), {"distance": "euclid"}, "Did you mean 'euclidean'"),
        (np.eye(3), np.array([0, 0, 1]), {"distance": no_number}, "must be finite; 1 of 3 are not"),
        (np.eye(3) * 1e30, np.array([0, 0, 1]), {}, "must be finite; 3 of 3 are not"),
    ],
)
def test_bad_input(x, labels, options, message, exact_up_to):
    with pytest.raises(ValueError, match=message):
        all_pairs_report(x, labels, **{"threshold": 1.0} | options, exact_up_to=exact_up_to)


def test_nothing_is_promoted_in_silence():
    x, labels = spread()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for most in (10, 10**6):
            all_pairs_report(x, labels, threshold=1.0, exact_up_to=most)
        mj.identification_report(x[::2], labels[::2], x[1::2], labels[1::2], threshold=1.0)
