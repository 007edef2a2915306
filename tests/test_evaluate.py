"""All figures in one call: the same as of the parts, and where the threshold is from."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj
from margin_jax.data.pairs import different_pairs, sample_pairs
from margin_jax.evaluation import evaluate
from margin_jax.evaluation.embedding import pair_distances


def drawn(seed, identities=30, images=4, names=False):
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(identities, 1, 6))
    x = faces + 0.7 * rng.normal(size=(identities, images, 6))
    labels = np.repeat(np.arange(identities), images)
    return x.reshape(-1, 6), np.array([f"p{i}" for i in labels]) if names else labels


def apart(x, labels):
    i, j = np.triu_indices(len(x), 1)
    return np.linalg.norm(x[i] - x[j], axis=1), labels[i] == labels[j]


@pytest.mark.parametrize("fmr", [None, 0.01])
@pytest.mark.parametrize("names", [False, True])
def test_the_threshold_is_of_validation(names, fmr):
    (x, labels), other = drawn(0, names=names), drawn(1, 25, names=names)
    found = mj.evaluate(x, labels, validation=other, fmr=fmr)
    threshold = mj.choose_threshold(*apart(*other), fmr)
    assert found.verification.threshold == pytest.approx(threshold, abs=1e-5)
    assert (found.threshold_from, found.pairs, found.fmr) == ("validation", "all", fmr)
    distances, same = apart(x, labels)
    expected = mj.verification_report(distances, same, threshold=found.verification.threshold)
    assert found.verification.auc == pytest.approx(expected.auc, abs=1e-6)
    assert found.verification.fnmr == pytest.approx(expected.fnmr, abs=1 / 180)
    assert found.verification.same + found.verification.different == 120 * 119 // 2
    assert found.verification.intervals.identities == 30
    assert found.retrieval == mj.retrieval_report(x, labels)
    written = json.loads(json.dumps(found.to_json()))
    assert written["verification"] == found.verification.to_json()
    assert (written["threshold_from"], written["fmr"]) == ("validation", fmr)
    said = found._repr_markdown_()
    assert ("threshold chosen on validation" + (" for FMR 0.01" if fmr else "")) in said
    assert f"| {found.retrieval.recall_at[1]:.2%} |" in said
    assert f"AUC {found.verification.auc:.4f}"[-5:] in said


def test_without_validation_it_is_said_that_the_pairs_chose_themselves():
    x, labels = drawn(0)
    found = mj.evaluate(jnp.asarray(x), jnp.asarray(labels))
    assert found.verification.threshold == pytest.approx(
        mj.choose_threshold(*apart(x, labels)), abs=1e-5
    )
    assert found.threshold_from == "test"
    assert (
        "as there is no validation: accuracy, FMR and FNMR look better" in found._repr_markdown_()
    )


def test_of_many_images_pairs_are_drawn_evenly(monkeypatch):
    monkeypatch.setattr(evaluate, "EXACT_UP_TO", 5000)
    (x, labels), (v, other) = drawn(0), drawn(1, 26)
    found = mj.evaluate(x, labels, validation=(v, other), distance="cosine", count=200, seed=3)
    pairs = sample_pairs(labels, 200, seed=3)
    chosen = sample_pairs(other, 200, seed=3)
    threshold = mj.choose_threshold(pair_distances(v, chosen.rows, "cosine"), chosen.same)
    expected = mj.verification_report(
        pair_distances(x, pairs.rows, "cosine"),
        pairs.same,
        threshold=threshold,
        identities=labels[pairs.rows],
    )
    assert found.verification.to_json() == expected.to_json()
    assert found.pairs == "drawn"
    assert "pairs drawn evenly over identities" in found._repr_markdown_()
    # A rate that the drawn pairs cannot show has more different ones.
    strict = mj.evaluate(x, labels, validation=(v, other), fmr=0.002, count=200, seed=3)
    more = different_pairs(other, 50_000, seed=3)
    distances = pair_distances(v, more)
    assert np.mean(distances <= strict.verification.threshold) == pytest.approx(0.002, abs=2e-4)
    assert len({tuple(sorted(pair)) for pair in more.tolist()}) == len(more) == 104 * 100 // 2
    with pytest.raises(ValueError, match=r"needs at least 10,000 .*; got 5,200 of 26 identities"):
        mj.evaluate(x, labels, validation=(v, other), fmr=0.001, count=200)


def test_a_rate_that_drawn_pairs_cannot_show(monkeypatch):
    monkeypatch.setattr("margin_jax.evaluation.evaluate.EXACT_UP_TO", 10)
    x, labels = np.arange(20.0)[:, None], np.repeat([0, 1], 10)
    said = (
        "needs at least 1,000 different pairs .*; got 100 of 2 identities: .* or more identities$"
    )
    with pytest.raises(ValueError, match=said):
        mj.evaluate(x, labels, fmr=0.01)
    assert mj.evaluate(x, labels, fmr=0.6).verification.threshold > 0  # as without drawing


def test_some_of_the_different_pairs_are_drawn_evenly_over_identities():
    labels = np.repeat(np.arange(20), [100, *[4] * 19])
    for count in (100, 2000):
        pairs = different_pairs(labels, count, seed=0)
        assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs) == count
        assert np.all(labels[pairs[:, 0]] != labels[pairs[:, 1]])
        np.testing.assert_array_equal(pairs, different_pairs(labels, count, seed=0))
    assert np.mean(labels[different_pairs(labels, 100, seed=0)] == 0) < 0.15  # of 176 images, 100


X, LABELS = np.eye(4), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((X, LABELS[:3]), {}, r"^expected embeddings \[n, dim\].* got shapes \(4, 4\) and \(3,\)"),
        ((X[0], LABELS), {}, r"got shapes \(4,\) and \(4,\)"),
        ((X * np.nan, LABELS), {}, "^embeddings must be finite"),
        ((X, np.arange(4)), {}, "one of them with two images or more; got 4 images of 4 ident"),
        ((X, np.zeros(4)), {}, "of two identities or more, .*; got 4 images of 1 identities"),
        ((X, LABELS), {"validation": (X * np.nan, LABELS)}, "^validation embeddings must be fin"),
        ((X, LABELS), {"validation": (X, np.arange(4))}, "^validation embeddings must be of two"),
        ((X, LABELS), {"fmr": 0.1}, "at least 100 different pairs for .* at 0.1, .*; got 4"),
        ((X, LABELS), {"fmr": 1.0}, "fmr must be above 0 and below 1; got 1"),
        ((X, LABELS), {"count": 1}, "count must be at least 2 pairs; got 1"),
        ((X, LABELS), {"distance": "euclid"}, "Did you mean 'euclidean'"),
    ],
)
def test_bad_input(given, options, message):
    with pytest.raises(ValueError, match=message):
        mj.evaluate(*given, **options)
