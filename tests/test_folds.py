"""Folds: the threshold of each comes from the others."""

import numpy as np
import pytest

from margin_jax.evaluation.folds import fold_report
from margin_jax.evaluation.verification import most_accurate_threshold


def random_pairs(seed, n=120):
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    distances = np.round(rng.normal(np.where(same, 0.8, 1.2), 0.3), 1)  # many ties
    return distances, same


def accuracy(distances, same, threshold):
    return np.mean((distances <= threshold) == same)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_more_accurate(seed):
    distances, same = random_pairs(seed)
    ours = most_accurate_threshold(distances, same)
    each = {t: accuracy(distances, same, t) for t in np.unique(distances)}
    best = max(each.values())
    assert accuracy(distances, same, ours) == best
    assert ours == min(t for t, a in each.items() if a == best)


def test_each_fold_is_decided_by_the_others():
    distances, same = random_pairs(0)
    folds = np.arange(len(same)) % 10
    report = fold_report(distances, same, folds)
    for fold in range(10):
        others = folds != fold
        threshold = most_accurate_threshold(distances[others], same[others])
        assert report.thresholds[fold] == threshold
        expected = accuracy(distances[~others], same[~others], threshold)
        assert report.accuracies[fold] == expected
    assert report.accuracy == pytest.approx(np.mean(report.accuracies))
    spread = np.sqrt(np.sum((np.array(report.accuracies) - report.accuracy) ** 2) / 9)
    assert report.standard_error == pytest.approx(spread / np.sqrt(10))


def test_a_fold_has_no_say_in_its_own_threshold():
    distances, same = random_pairs(1)
    folds = np.arange(len(same)) % 10
    turned = np.where(folds == 3, ~same, same)
    report, other = fold_report(distances, same, folds), fold_report(distances, turned, folds)
    assert report.thresholds[3] == other.thresholds[3]
    assert other.accuracies[3] == pytest.approx(1 - report.accuracies[3])


def test_bad_folds():
    distances, same = random_pairs(0)
    with pytest.raises(ValueError, match="at least two folds; got 1"):
        fold_report(distances, same, np.zeros(len(same), int))
    with pytest.raises(ValueError, match=r"for \(3,\) of \(120,\)"):
        fold_report(distances, same, np.arange(3))
