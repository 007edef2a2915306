"""The nearest vectors: against a sort of all distances, in blocks of any size."""

import numpy as np
import pytest

from margin_jax.evaluation import neighbours
from margin_jax.evaluation.neighbours import nearest
from margin_jax.losses.distances import DISTANCES


def apart(distance, x, y):
    """One distance, by its definition."""
    if distance == "cosine":
        return 1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    of = {"euclidean": 2, "squared_euclidean": 2, "manhattan": 1, "chebyshev": np.inf}[distance]
    found = np.linalg.norm(x - y, of)
    return found**2 if distance == "squared_euclidean" else found


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_QUERIES", 3)
    monkeypatch.setattr(neighbours, "_BLOCK", 8)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_nearest_are_those_of_a_sort(distance, small_blocks):
    rng = np.random.default_rng(0)
    queries, vectors = rng.normal(size=(7, 4)), rng.normal(size=(29, 4))
    distances, rows = nearest(queries, vectors, 5, distance=distance)
    assert distances.dtype == np.float32
    for query, near, of in zip(queries, distances, rows, strict=True):
        every = np.array([apart(distance, query, vector) for vector in vectors])
        assert of.tolist() == np.argsort(every)[:5].tolist()
        np.testing.assert_allclose(near, np.sort(every)[:5], rtol=1e-4)


def test_of_equals_the_first_comes_first_whichever_block_it_is_in(small_blocks):
    vectors = np.zeros((30, 2))
    vectors[[3, 11, 27]] = 5
    distances, rows = nearest(np.array([[5.0, 5.0]]), vectors, 5)
    assert rows.tolist() == [[3, 11, 27, 0, 1]]
    np.testing.assert_allclose(distances[0], [0, 0, 0, 50**0.5, 50**0.5], rtol=1e-6)


def test_more_than_a_block_has_and_more_than_there_are(small_blocks):
    vectors = np.arange(20.0)[:, None]
    assert nearest(np.zeros((1, 1)), vectors, 11)[1].tolist() == [list(range(11))]
    assert nearest(np.zeros((1, 1)), vectors, 99)[1].tolist() == [list(range(20))]
    assert nearest(np.zeros((0, 1)), vectors, 2)[1].shape == (0, 2)


def test_what_lies_far_from_the_origin_is_told_apart(small_blocks):
    """‖x‖² + ‖y‖² − 2x·y alone would be rounding."""
    vectors = 100 + 0.01 * np.arange(20.0)[:, None] * np.ones((20, 128))
    distances, rows = nearest(vectors[[7]], vectors, 3)
    assert rows[0, 0] == 7
    assert set(rows[0]) == {6, 7, 8}
    np.testing.assert_allclose(distances[0, 1:], 0.01 * 128**0.5, rtol=1e-3)


@pytest.mark.parametrize(
    ("queries", "vectors", "count", "said"),
    [
        (np.zeros((1, 3)), np.zeros((5, 2)), 1, r"got \(1, 3\) and \(5, 2\)"),
        (np.zeros(3), np.zeros((5, 3)), 1, "must have shapes"),
        (np.zeros((1, 2)), np.zeros((5, 2)), 0, "count must be at least 1"),
        (np.zeros((1, 2)), np.zeros((0, 2)), 1, "no vectors"),
        (np.full((1, 2), np.nan), np.zeros((5, 2)), 1, "queries must be finite"),
        (np.zeros((1, 2)), np.full((5, 2), 1e38), 1, "distances must be finite; 5 of 5"),
        (np.zeros((2, 1)), np.array([[1], [np.nan], [2]]), 2, "must be finite; 2 of 6"),
    ],
)
def test_bad_input(queries, vectors, count, said):
    with pytest.raises(ValueError, match=said):
        nearest(queries, vectors, count)
