"""Every rule that is documented with "at most", "at least", "below" or a tie, on its boundary."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import margin_jax as mj
from margin_jax import cli
from margin_jax.data.moments import moments
from margin_jax.data.pairs import sample_pairs
from margin_jax.data.sampler import choose_batch
from margin_jax.data.splits import split_identities
from margin_jax.evaluation.all_pairs import all_pairs_report
from margin_jax.evaluation.folds import fold_report
from margin_jax.evaluation.verification import most_accurate_threshold
from margin_jax.stats import EFFECTIVE_EDGES, EpochTotals
from margin_jax.training.epoch import end_epoch
from margin_jax.training.record import EpochPart

# Triplets


@pytest.mark.parametrize("implementation", ["loop", "sorted"])
def test_a_tie_of_the_margin_is_easy_and_one_of_the_distances_is_hard(implementation):
    """The anchor at 0 has its positive at 3, and the margin is 4; nobody else is looked at."""
    options = {"distance": "manhattan", "implementation": implementation}

    @jax.jit
    def stats_of(references):
        return mj.batch_all_triplet_loss(
            [[0.0]], [0], 4.0, references=references, reference_labels=[0, 1], **options
        )[1]

    for negative, kind in ((7.0, "easy"), (6.5, "semihard"), (3.0, "hard"), (3.5, "semihard")):
        counts = stats_of(np.array([[3.0], [negative]], np.float32)).totals()
        assert {name for name, count in counts.items() if count} == {"valid", kind}


def test_a_tie_of_the_swap_sends_its_gradient_to_the_anchor():
    """The negative is as far from the anchor as from its positive, which is no anchor here."""
    anchor, others = np.zeros((1, 2)), np.array([[2.0, 0.0], [1.0, 1.0]])
    options = {"reference_labels": [0, 1], "distance": "squared_euclidean", "swap": True}
    expected = oracle.batch_all(anchor, [0], 5.0, references=others, **options)
    to_anchor = jax.jit(
        jax.grad(lambda x: mj.batch_all_triplet_loss(x, [0], 5.0, references=others, **options)[0])
    )
    np.testing.assert_allclose(to_anchor(anchor), expected.to_embeddings, atol=1e-6)


def test_an_effective_margin_on_an_edge_is_in_the_bin_above_it():
    """Bin k counts from edge k − 1 to just below edge k; the last takes all beyond."""
    edge = int(np.flatnonzero(EFFECTIVE_EDGES == 0)[0])
    labels, only = np.array([0, 0, 1]), np.array([True, False, False])  # the first as the anchor

    @jax.jit
    def histogram(x):
        _, stats = mj.batch_all_triplet_loss(x, labels, 0.2, distance="manhattan")
        stats = jax.tree.map(lambda v: jnp.where(only, v, 0), stats)
        return mj.effective_margin_histogram(
            x, labels, stats, jax.random.key(0), distance="manhattan", samples=8
        )

    for distance, where in ((3.0, edge + 1), (3e4, len(EFFECTIVE_EDGES) - 1)):
        bins = histogram(np.array([[0.0], [3.0], [-distance]], np.float32))
        assert np.flatnonzero(bins).tolist() == [where]


# Epochs


@pytest.mark.parametrize(
    ("ap", "an", "collapsed"), [(1.0, 1.0, True), (1.0, 1.001, False), (1.001, 1.0, False)]
)
def test_distances_of_a_tenth_of_the_margin_are_a_collapse(ap, an, collapsed):
    schedule = mj.constant(10.0)
    state = types.SimpleNamespace(schedule=schedule.init(), margin=jnp.float32(10.0))
    state.replace = lambda schedule: types.SimpleNamespace(margin=schedule.margin)
    totals = EpochTotals(valid=8, hard=8, positives=4, negatives=2, sum_ap=4 * ap, sum_an=2 * an)
    part = EpochPart(steps=1, images=4, seconds=1.0, totals=totals)
    assert end_epoch(state, part, schedule)[1].collapsed is collapsed


# Verification


def test_the_highest_true_positive_rate_with_at_most_one_false_match_in_a_hundred():
    """Of 100 different pairs the nearest one comes before the last two same pairs."""
    distances = np.array([0.1, 0.2, 0.4, 0.5, 0.3, *np.linspace(1, 2, 99)])
    same = np.arange(104) < 4
    report = mj.verification_report(distances, same, threshold=0.25)
    assert report.tpr_at_fpr == {0.01: 1.0, 0.001: 0.5}
    many = np.array([0.1, 0.2, 0.4, 0.5, 0.3, *np.linspace(1, 2, 999)])
    report = mj.verification_report(many, np.arange(1004) < 4, threshold=0.25)
    assert report.tpr_at_fpr == {0.01: 1.0, 0.001: 1.0}


@pytest.mark.parametrize(("different", "warnings"), [(999, 2), (1_000, 1), (9_999, 1), (10_000, 0)])
def test_as_many_pairs_as_a_warning_asks_for_are_enough(different, warnings):
    distances = np.linspace(0, 1, different + 1)
    report = mj.verification_report(distances, np.arange(different + 1) < 1, threshold=0.5)
    assert len(report.warnings) == warnings


def test_a_pair_at_the_threshold_is_the_same():
    distances, same = np.array([0.5, 0.5, 0.75]), np.array([True, False, False])
    for threshold, accuracy in ((0.5, 2 / 3), (np.nextafter(0.5, 0), 2 / 3), (0.75, 1 / 3)):
        report = mj.verification_report(distances, same, threshold=threshold)
        assert report.accuracy == accuracy
    only = mj.verification_report(np.array([0.5, 0.75]), np.array([True, False]), threshold=0.5)
    assert only.accuracy == 1


def test_a_pair_at_the_threshold_of_the_other_folds_is_the_same():
    """The others teach that 0.5 is the same and 0.7 is not; so are the own pairs."""
    distances = np.array([0.5, 0.7, 0.5, 0.7])
    report = fold_report(distances, np.array([True, False] * 2), np.array([0, 0, 1, 1]))
    assert report.thresholds == (0.5, 0.5)
    assert report.accuracies == (1.0, 1.0)


def test_of_thresholds_that_are_as_accurate_the_smallest_is_taken():
    """At 0.1 and at 0.3 three of the four pairs are decided rightly."""
    distances, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])
    assert most_accurate_threshold(distances, same) == 0.1


def test_two_images_at_the_threshold_are_of_one_identity(monkeypatch, capsys):
    from margin_jax.runs import load, use

    monkeypatch.setattr(load, "load_run", lambda folder: types.SimpleNamespace(threshold=0.5))
    for distance, answer in ((0.5, "same"), (np.nextafter(0.5, 1), "different")):
        monkeypatch.setattr(use, "verify_images", lambda *_, distance=distance: distance)
        with pytest.raises(SystemExit):
            cli.main(["verify", "a run", "one.png", "other.png"])
        assert capsys.readouterr().out.startswith(f"{answer}: distance 0.5000")


@pytest.mark.parametrize(("up_to", "held"), [(6, True), (5, False)])
def test_as_many_pairs_as_are_held_in_memory_are_exact(up_to, held):
    """Distances of 1 and 1.00001 share a bin, of which only the upper edge is known."""
    x, labels = np.array([[0.0], [1.0], [2.00001], [5.0]]), np.array([0, 0, 1, 1])
    report = all_pairs_report(x, labels, threshold=1.0, distance="manhattan", exact_up_to=up_to)
    assert (len(report.thresholds) == 1 + 6) is held


# Data


def test_an_identity_with_exactly_k_images_is_used():
    labels = np.repeat(np.arange(4), [3, 3, 3, 2])
    for sampler in ("pk", "balanced"):
        plan, coverage = mj.pk_batches(labels, 3, 3, seed=0, epoch=0, sampler=sampler)
        assert (coverage.used, coverage.small) == (9, 2)
        assert sorted(plan[0]) == list(range(9))
    with pytest.raises(ValueError, match="a batch needs 4 identities with at least 3 images"):
        mj.pk_batches(labels, 4, 3, seed=0, epoch=0)


def test_batches_that_see_exactly_half_of_the_images_are_large_enough():
    """Three identities of two images are seen in one batch of three: 6 of the 12 images."""
    assert choose_batch(np.repeat(np.arange(3), [5, 5, 2])) == (3, 2)
    assert choose_batch(np.repeat(np.arange(3), [6, 5, 2])) == (2, 5)


def test_identities_of_one_size_are_dealt_in_random_order():
    """Not in that of their names: else five of the first ten would always be tested."""
    labels = np.repeat(np.arange(20), 3)
    tested = {
        int(np.sum(split_identities(labels, np.arange(20), seed=seed).test < 10))
        for seed in range(10)
    }
    assert len(tested) > 2


def test_the_largest_identities_are_dealt_first():
    """Of twenty sizes, one validates of the ten largest ones and one of the ten smallest."""
    labels = np.repeat(np.arange(20), 1 + np.arange(20))
    for seed in range(5):
        split = split_identities(labels, np.arange(20), seed=seed)
        for part, dealt in zip(split, (4, 1, 5), strict=True):
            assert np.sum(part >= 10) == np.sum(part < 10) == dealt


def test_ten_times_the_average_is_not_too_much():
    """Of 19 with a same pair each, one with many may have 19: the average is 1.9 then."""
    labels = np.repeat(np.arange(20), [*[2] * 19, 40])
    pairs = sample_pairs(labels, 10_000, seed=0)
    assert np.sum(labels[pairs.rows[pairs.same, 0]] == 19) == 19


def test_of_more_images_so_many_are_measured_from_the_first_to_the_last(monkeypatch):
    images = np.zeros((9, 2, 2, 1), np.uint8)
    images[:] = np.array([9, 1, 7, 1, 5, 1, 7, 1, 3])[:, None, None, None] * 20
    dataset = types.SimpleNamespace(examples=images, pictures=True)
    for most, measured in ((9, np.arange(9)), (8, np.delete(np.arange(9), 7)), (3, [0, 4, 8])):
        monkeypatch.setattr("margin_jax.data.moments._PICTURES", most)
        mean, std = moments(dataset, np.arange(9))
        values = images[measured] / 255
        assert mean == pytest.approx([values.mean()])
        assert std == pytest.approx([values.std()])


def test_each_channel_has_its_own_mean_and_spread():
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 3)) // np.array([1, 2, 5])
    dataset = types.SimpleNamespace(examples=images.astype(np.uint8), pictures=True)
    train = np.arange(3, 40, 2)
    mean, std = moments(dataset, train)
    np.testing.assert_allclose(mean, (images[train] / 255).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, (images[train] / 255).std(axis=(0, 1, 2)))
