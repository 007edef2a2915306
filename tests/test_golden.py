"""Values, gradients and counts of PyTorch Metric Learning 2.9.0 and scikit-learn, in float64.

Where definitions differ:

- `euclid_l2norm`, `sqeuclid_l2norm`: that library normalises the embeddings first. Here that is the
  caller's business, so the tests do it.
- its cosine margin compares similarities, relu(s_an − s_ap + μ); 1 − s makes it ours.
- *easy* is d(a,n) − d(a,p) > μ there and ≥ μ here, *violating* and *semihard* are ≤ μ there and
  < μ here: triplets exactly at the margin, whose loss is 0 either way, are easy here. Such ties
  are counted below, and *hard* (≤ 0) then differs only at μ = 0.
- the gradient of a distance at 0 is 0 here and there, but where rounding leaves two equal rows a
  little apart (1e-8 or so) after normalisation, its direction is arbitrary.
- their mean reciprocal rank follows from our Recall@k at every k; average precision over the whole
  ranking, which weighs what no one looks at, is not offered.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_jax as mj

GOLDEN = json.loads((Path(__file__).parent / "golden" / "triplet_golden.json").read_text())
CASES = GOLDEN["triplet"]

# Their word → (our distance, whether rows are normalised first).
DISTANCES = {
    "euclid_l2norm": ("euclidean", True),
    "euclid_raw": ("euclidean", False),
    "sqeuclid_l2norm": ("squared_euclidean", True),
    "cosine": ("cosine", False),
}
# Their word → our options.
LOSSES = {
    "mean": {"reduction": "mean"},
    "avg_nonzero": {"reduction": "mean_active"},
    "sum": {"reduction": "sum"},
    "smooth_mean": {"reduction": "mean", "soft": True},
    "swap_mean": {"reduction": "mean", "swap": True},
}


ROWS, DIM = 12, 32  # every set is padded to this shape, so that little is compiled


@functools.cache
def compiled(distance, loss):
    ours, normalise = DISTANCES[distance]

    def loss_fn(x, labels, margin, where):
        if normalise:
            x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return mj.batch_all_triplet_loss(
            x, labels, margin, distance=ours, where=where, **LOSSES[loss]
        )

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def run(case, loss):
    data = GOLDEN["sets"][case["set"]]
    given = np.array(data["embeddings"], np.float64)
    rows, dim = given.shape
    x, labels = np.ones((ROWS, DIM)), np.zeros(ROWS, np.int32)
    x[:rows] = np.pad(given, ((0, 0), (0, DIM - dim)))  # zeros change no distance
    labels[:rows] = data["labels"]
    with jax.enable_x64(True):
        (value, stats), gradient = compiled(case["distance"], loss)(
            x, labels, np.float64(case["margin"]), np.arange(ROWS) < rows
        )
        return float(value), stats.totals(), np.asarray(gradient)[:rows, :dim]


def ties(case):
    """Triplets exactly at the margin: all of them where every distance and the margin are 0."""
    return case["n_triplets"] if (case["set"], case["margin"]) == ("collapsed", 0.0) else 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{c['set']}-{c['distance']}-{c['margin']}" for c in CASES]
)
def test_triplets(case, loss):
    value, counts, gradient = run(case, loss)
    # Of duplicates, a distance is the root of a rounding error.
    of_root = case["set"].startswith("dup") and case["distance"].startswith("euclid")
    close = functools.partial(
        np.testing.assert_allclose, rtol=1e-6 if of_root else 1e-8, atol=1e-12
    )
    close(value, case[loss])
    close(np.linalg.norm(gradient), case[f"gradnorm_{loss}"])
    if f"grad_{loss}" in case:
        close(gradient, case[f"grad_{loss}"])
    if loss != "swap_mean":  # theirs count without the swap
        at_margin = ties(case)
        assert counts == {
            "valid": case["n_triplets"],
            "easy": case["n_easy"] + at_margin,
            "semihard": case["n_semihard"],
            "hard": case["n_hard"] - at_margin,
        }
        assert case["n_violating"] == counts["semihard"] + counts["hard"] + at_margin


def test_all_triplet_cases_are_here():
    assert len(CASES) == 72
    assert sum(ties(case) > 0 for case in CASES) == 1
    assert {case["distance"] for case in CASES} == set(DISTANCES)
    full = [case for case in CASES if "grad_mean" in case]
    assert {case["margin"] for case in full} == {0.2}
    assert {case["set"] for case in full} == set(GOLDEN["sets"])


@pytest.mark.parametrize("case", GOLDEN["retrieval"], ids=lambda case: case["set"])
def test_retrieval(case):
    tied = {"embeddings": [[10.0], [10.0], [20.0], [20.0]], "labels": [1, 0, 1, 0]}
    data = {**GOLDEN["sets"], "tied": tied}[case["set"]]
    labels = np.array(data["labels"])
    every = tuple(range(1, len(labels)))
    report = mj.retrieval_report(np.array(data["embeddings"]), labels, ks=every)
    recall = np.array([report.recall_at[k] for k in every])
    np.testing.assert_allclose(recall[0], case["precision_at_1"], rtol=1e-12)
    np.testing.assert_allclose(report.map_at_r, case["mean_average_precision_at_r"], rtol=1e-12)
    np.testing.assert_allclose(report.r_precision, case["r_precision"], rtol=1e-12)
    reciprocal_rank = np.sum(np.diff(recall, prepend=0) / every)
    np.testing.assert_allclose(reciprocal_rank, case["mean_reciprocal_rank"], rtol=1e-12)


@pytest.mark.parametrize("case", GOLDEN["verification"], ids=lambda case: case["name"])
def test_verification(case):
    distances, same = np.array(case["dist"]), np.array(case["same"], bool)
    report = mj.verification_report(distances, same, threshold=0.5)
    np.testing.assert_allclose(report.auc, case["auc"], rtol=1e-12)
    for limit, tpr in case["tpr_at_fpr"].items():
        ours = report.tpr_at_fpr.get(float(limit), np.max(report.tpr[report.fpr <= float(limit)]))
        np.testing.assert_allclose(ours, tpr, rtol=1e-12)

    # Their accuracy is that of the best threshold on these very pairs.
    accuracies = np.mean((distances <= report.thresholds[:, None]) == same, axis=1)
    best = report.thresholds[np.argmax(accuracies)]
    at_best = mj.verification_report(distances, same, threshold=best).accuracy
    np.testing.assert_allclose([at_best, max(accuracies)], case["best_acc"], rtol=1e-12)

    # Their EER takes the point of the ROC, corners only, where FPR and FNR are nearest, and their
    # mean there. Ours is where the joined ROC crosses the diagonal: it lies between the two rates.
    fnr = 1 - report.tpr
    nearest = np.argmin(np.abs(report.fpr - fnr))
    their_eer = (report.fpr[nearest] + fnr[nearest]) / 2
    np.testing.assert_allclose(their_eer, case["eer_nearest"], rtol=1e-12)
    rates = sorted((report.fpr[nearest], fnr[nearest]))
    assert rates[0] - 1e-12 <= report.eer <= rates[1] + 1e-12
