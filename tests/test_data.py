"""Glyphs and pairs."""

import itertools
import tracemalloc

import numpy as np
import pytest

import margin_jax as mj
from margin_jax.data import glyphs, load_dataset
from margin_jax.data.pairs import hard_pairs, sample_pairs

# --- glyphs ---


@pytest.fixture(scope="module")
def letters():
    return load_dataset("glyphs", None, None, False)


def test_glyphs_are_letters_in_twelve_typefaces(letters):
    n = len(letters.identities)
    assert letters.examples.shape == (12 * n, 28, 28, 1)
    assert letters.examples.dtype == np.uint8
    assert np.bincount(letters.labels).tolist() == [12] * n
    assert len(set(letters.identities)) == n > 500
    assert len(set(letters.files)) == 12 * n
    # Every picture holds ink, and the ink touches no border.
    assert letters.examples.max(axis=(1, 2, 3)).min() > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeated_names": "merged"}, "repeated_names must be one of error, merge, separate"),
        ({"transparency": "withe"}, "transparency must be one of white, ignore"),
        ({"bits": 4}, "bits must be from 8 to 16; got 4"),
        ({"data_dir": "nowhere"}, "dataset glyphs is drawn, and has no data_dir; got nowhere"),
    ],
)
def test_what_a_dataset_cannot_be_read_with(options, message):
    with pytest.raises(ValueError, match=message):
        mj.load_dataset("glyphs", **options)


def test_glyphs_scale_with_the_image_size():
    small, large = glyphs.draw("A", 28)[0, 0] / 255, glyphs.draw("A", 56)[0, 0] / 255
    halved = large.reshape(28, 2, 28, 2).mean(axis=(1, 3))
    assert np.abs(small - halved).mean() < 0.05 < np.abs(small - small.T).mean()


def test_letters_of_one_base_share_a_group(letters):
    group = dict(zip(letters.identities, letters.groups, strict=True))
    bases = {letter: glyphs.base_letter(letter) for letter in letters.identities}
    assert glyphs.base_letter("É") == "E"
    for a, b in itertools.combinations(letters.identities, 2):
        assert (group[a] == group[b]) == (bases[a] == bases[b])


# --- pairs ---


def long_tail(n=200, seed=0):
    """Labels of `n` identities with 1 to 50 images."""
    sizes = np.random.default_rng(seed).geometric(0.15, n).clip(1, 50)
    return np.repeat(np.arange(n), sizes)


@pytest.mark.parametrize("count", [100, 1_000, 1_000_000])
@pytest.mark.parametrize("shape", ["long tail", "few identities"])
def test_pairs_are_distinct_balanced_and_right(count, shape):
    labels = long_tail() if shape == "long tail" else np.repeat([0, 1, 2], 400)
    pairs = sample_pairs(labels, count, seed=0)
    assert np.array_equal(labels[pairs.rows[:, 0]] == labels[pairs.rows[:, 1]], pairs.same)
    assert pairs.same.sum() * 2 == len(pairs.same)
    low, high = np.sort(pairs.rows, axis=1).T
    assert len(np.unique(low * len(labels) + high)) == len(pairs.rows)
    sizes = np.bincount(labels)
    all_same = int((sizes * (sizes - 1) // 2).sum())
    if shape == "few identities" or count < 10_000:
        assert len(pairs.same) == 2 * min(count // 2, all_same)
    else:  # long tails: as many as there are without one identity in ten times the average
        by_identity = np.bincount(labels[pairs.rows[pairs.same, 0]])
        capped = by_identity[by_identity < sizes * (sizes - 1) // 2]
        assert len(set(capped)) == 1
        assert 9.5 < capped[0] / by_identity[sizes > 1].mean() <= 10
    again, other = sample_pairs(labels, count, seed=0), sample_pairs(labels, count, seed=1)
    assert np.array_equal(pairs.rows, again.rows)
    assert not np.array_equal(pairs.rows, other.rows)


@pytest.mark.parametrize("few", [True, False])
def test_pairs_are_even_over_identities(few):
    """Whatever their sizes, as long as they have enough pairs."""
    sizes = np.array([60, 30, 10, 4, 2]) * (1 if few else 10)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), sizes))
    count = 120 if few else 800
    drawn = [sample_pairs(labels, count, seed=s) for s in range(40)]
    same = sum(np.bincount(labels[pairs.rows[pairs.same, 0]], minlength=5) for pairs in drawn)
    different = sum(
        np.bincount(labels[pairs.rows[~pairs.same].ravel()], minlength=5) for pairs in drawn
    )
    if few:  # 60 same pairs: 1 and 6 are all that the two smallest have
        assert drawn[0].same.sum() == 60
        assert same[4] == 40
        assert same[3] == 240
        np.testing.assert_allclose(same[:3] / 40, 53 / 3, atol=0.5)
    else:
        np.testing.assert_allclose(same / same.sum(), [0.2] * 5, atol=0.005)
        np.testing.assert_allclose(different / different.sum(), [0.2] * 5, atol=0.02)
    assert different[3] / different[0] > 0.5  # 4 / 60 if drawn uniformly over pairs


@pytest.mark.parametrize("sizes", [[4, 2, 1], [6, 3, 2]], ids=["all pairs listed", "drawn"])
def test_different_pairs_are_of_any_two_identities_alike(sizes):
    """Drawn evenly over pairs more than half of them were of the two largest, not a third."""
    labels = np.repeat(np.arange(3), sizes)
    drawn = [sample_pairs(labels, 2, seed=seed) for seed in range(900)]
    of = np.array([labels[pairs.rows[~pairs.same][0]].sum() for pairs in drawn])  # 1, 2 or 3
    np.testing.assert_allclose(np.bincount(of)[1:] / 900, [1 / 3] * 3, atol=0.05)


def test_no_identity_dominates():
    """One with 500 images has 124,750 of the 128,750 same pairs there are."""
    labels = np.concatenate([np.full(500, 0), np.repeat(np.arange(1, 101), 9), [200, 201]])
    pairs = sample_pairs(labels, 1_000_000, seed=0)
    by_identity = np.bincount(labels[pairs.rows[pairs.same, 0]], minlength=202)
    assert by_identity[1:101].tolist() == [36] * 100
    assert by_identity[0] == 395  # = 10 (100 · 36 + 395) / 101, rounded down
    assert by_identity[101:].sum() == 0


def test_pairs_where_one_identity_has_most_images_take_little_memory():
    """It has 200 million same pairs, and 280,084 different ones with the others."""
    labels = np.repeat(np.arange(8), [20_000, *[2] * 7])
    tracemalloc.start()
    pairs = sample_pairs(labels, 100_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert np.array_equal(labels[pairs.rows[:, 0]] == labels[pairs.rows[:, 1]], pairs.same)


def test_pairs_need_both_kinds():
    with pytest.raises(ValueError, match="got 0 of the same"):
        sample_pairs(np.arange(5), 10, seed=0)
    with pytest.raises(ValueError, match="0 of different"):
        sample_pairs(np.zeros(5, int), 10, seed=0)


def test_hard_pairs_stay_within_a_group():
    labels = np.repeat(np.arange(6), 4)
    groups = np.array([0, 0, 0, 1, 2, 2])[labels]
    pairs = hard_pairs(labels, groups, 10_000, seed=0)
    a, b = pairs.rows.T
    assert np.array_equal(groups[a], groups[b])
    assert 1 not in groups[a]  # its only identity has nobody to be mistaken for
    assert np.array_equal(labels[a] == labels[b], pairs.same)
    assert len(pairs.same) == 2 * 5 * 6  # all same pairs of five identities, as many different
    assert hard_pairs(labels, labels, 100, seed=0) is None


def hard_pairs_by_listing(labels, groups, count, seed):
    """All pairs of each group with several identities, listed, and a draw of each kind."""
    listed = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(np.unique(labels[rows])) > 1:
            listed += itertools.combinations(rows, 2)
    pairs = np.array(listed, int).reshape(-1, 2)
    alike = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    half = min(count // 2, alike.sum(), (~alike).sum())
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(pairs[kind], half, replace=False) for kind in (alike, ~alike)]
    )


@pytest.mark.parametrize("seed", range(12))
def test_hard_pairs_are_drawn_as_from_a_list_of_all(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, 60)
    groups = rng.integers(0, 1 + seed % 4, 9)[labels]
    for count in (2, 40, 10_000):
        found = hard_pairs(labels, groups, count, seed=seed)
        np.testing.assert_array_equal(
            found.rows, hard_pairs_by_listing(labels, groups, count, seed)
        )


def test_hard_pairs_of_large_groups_are_not_listed():
    """Two groups of 10,000 rows have a hundred million pairs."""
    labels = np.random.default_rng(0).integers(0, 1000, 20_000)
    tracemalloc.start()
    pairs = hard_pairs(labels, labels % 2, 1000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert len(pairs.same) == 1000
