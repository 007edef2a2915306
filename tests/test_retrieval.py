"""Recall@k, MAP@R and R-precision against plain loops; ties, blocks and bad input."""

import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax.evaluation import blocks, retrieval


def random_set(seed, n=40, identities=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)), rng.integers(0, identities, n)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_equals_plain_loops(seed, distance):
    x, labels = random_set(seed)
    report = mj.retrieval_report(x, labels, distance=distance, ks=(1, 3, 100))
    recall, map_at_r, r_precision = oracle.retrieval(x, labels, distance, (1, 3, 100))
    assert report.recall_at == pytest.approx(recall)
    assert report.map_at_r == pytest.approx(map_at_r)
    assert report.r_precision == pytest.approx(r_precision)
    assert report.recall_at[100] == 1.0


def test_ties_go_to_the_lower_index():
    grid = np.random.default_rng(0).integers(0, 3, (30, 2)).astype(float)  # many equal distances
    labels = np.random.default_rng(1).integers(0, 4, 30)
    report = mj.retrieval_report(grid, labels, distance="manhattan")
    recall, map_at_r, _ = oracle.retrieval(grid, labels, "manhattan", retrieval.KS)
    assert report.recall_at == pytest.approx(recall)
    assert report.map_at_r == pytest.approx(map_at_r)


def test_blocks_change_nothing(monkeypatch):
    x, labels = random_set(0)
    whole = mj.retrieval_report(x, labels)
    monkeypatch.setattr(blocks, "TILE", 7 * len(x))  # the last block is not full
    assert mj.retrieval_report(x, labels) == whole


def test_a_k_given_twice_is_one():
    x, labels = random_set(0)
    assert mj.retrieval_report(x, labels, ks=(1, 1, 2)) == mj.retrieval_report(x, labels, ks=(1, 2))


def test_images_alone_of_their_identity_are_found_but_do_not_ask():
    x = np.array([[0.0], [2.0], [3.0]])
    report = mj.retrieval_report(x, np.array([7, 7, 8]), ks=(1, 2))
    assert (report.queries, report.images) == (2, 3)
    assert report.recall_at == {1: 0.5, 2: 1.0}  # the nearest of the second is the third
    assert report.to_json()["recall_at"] == {"1": 0.5, "2": 1.0}


@pytest.mark.parametrize(
    ("x", "labels", "options", "message"),
    [
        (np.zeros((3, 2)), np.arange(2), {}, r"got shapes \(3, 2\) and \(2,\)"),
        (np.zeros(3), np.arange(3), {}, r"got shapes \(3,\) and \(3,\)"),
        (np.zeros((0, 2)), np.arange(0), {}, "got none in 0 images"),
        (np.zeros((3, 2)), np.arange(3), {}, "needs two images of one identity; got none in 3"),
        (np.full((2, 2), np.nan), np.zeros(2, int), {}, "must be finite"),
        (np.array([[1e20], [3e20]]), np.zeros(2, int), {}, "distances must be finite; 2 of 2"),
        (np.zeros((2, 2)), np.zeros(2, int), {"ks": (0, 1)}, r"at least 1; got \(0, 1\)"),
        (np.zeros((2, 2)), np.zeros(2, int), {"ks": ()}, r"at least 1; got \(\)"),
        (
            np.zeros((2, 2)),
            np.zeros(2, int),
            {"ks": 5},
            r"several whole numbers, such as .*; got 5",
        ),
        (
            np.zeros((2, 2)),
            np.zeros(2, int),
            {"ks": (1.5,)},
            r"whole numbers, such as .*; got \(1.5",
        ),
        (np.zeros((2, 0)), np.zeros(2, int), {}, r"dim at least 1, .* got shapes \(2, 0\)"),
        (np.zeros((2, 2)), np.zeros(2, int), {"distance": "euclid"}, "Did you mean 'euclidean'"),
    ],
)
def test_bad_input(x, labels, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mj.retrieval_report(x, labels, **options)
