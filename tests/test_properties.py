"""What must hold of the loss for any embeddings; hypothesis looks for a counterexample.

Embeddings are small whole numbers, so that squared distances are exact and ties abound, and all
have one shape, so that a property compiles once.
"""

import functools

import chex
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import margin_jax as mj

N, DIM = 10, 3
COUNTS = ("valid", "easy", "semihard", "hard", "positives", "negatives")
SUMS = ("sum_ap", "sum_an", "sum_ap_squared", "sum_an_squared")

embeddings = hnp.arrays(np.float32, (N, DIM), elements=st.integers(-3, 3).map(float))
labels = hnp.arrays(np.int32, N, elements=st.integers(0, 3))
masks = hnp.arrays(np.bool_, N)
orders = st.permutations(range(N)).map(np.array)
margins = st.integers(-4, 12).map(np.float32)
exact = {"distance": "squared_euclidean"}
# Derandomized: the same examples in every run. The first call compiles, so there is no deadline.
check = settings(derandomize=True, deadline=None, max_examples=50, database=None)


@functools.cache
def compiled(**options):
    def loss_fn(x, labels, margin, where):
        return mj.batch_all_triplet_loss(x, labels, margin, where=where, **options)

    return jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 2), has_aux=True))


def run(x, labels, margin, where=None, **options):
    where = np.ones(N, bool) if where is None else where
    return compiled(**options)(x, labels, np.float32(margin), where)


def assert_counts(stats, expected, order=slice(None), rows=slice(None)):
    for name in COUNTS:
        a, b = getattr(stats, name)[rows], getattr(expected, name)[order][rows]
        np.testing.assert_array_equal(a, b, err_msg=name)


@check
@given(embeddings, labels, margins, orders)
def test_permuting_rows_permutes_the_statistics(x, labels, margin, order):
    (loss, stats), (to_x, to_margin) = run(x, labels, margin, **exact)
    (loss2, stats2), (to_x2, to_margin2) = run(x[order], labels[order], margin, **exact)
    np.testing.assert_allclose(loss2, loss, rtol=1e-5)
    np.testing.assert_allclose(to_x2, to_x[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(to_margin2, to_margin, rtol=1e-6)
    assert_counts(stats2, stats, order)
    for name in SUMS:
        np.testing.assert_array_equal(getattr(stats2, name), getattr(stats, name)[order])


@check
@given(embeddings, labels, margins, st.permutations([-7, 0, 3, 2**31 - 1]))
def test_relabelling_changes_nothing(x, labels, margin, names):
    (loss, stats), (to_x, _) = run(x, labels, margin, **exact)
    (loss2, stats2), (to_x2, _) = run(x, np.array(names, np.int32)[labels], margin, **exact)
    np.testing.assert_allclose(loss2, loss, rtol=1e-5)
    np.testing.assert_allclose(to_x2, to_x, rtol=1e-4, atol=1e-4)
    assert_counts(stats2, stats)


@check
@given(embeddings, labels, margins, masks)
def test_kinds_are_a_partition(x, labels, margin, where):
    (_, stats), (_, to_margin) = run(x, labels, margin, where, reduction="sum", **exact)
    same = (labels[:, None] == labels) & where[:, None] & where
    positives = same.sum(1) - where
    negatives = np.where(where, where.sum() - same.sum(1), 0)
    np.testing.assert_array_equal(stats.positives, positives)
    np.testing.assert_array_equal(stats.negatives, negatives)
    for kind in (stats.easy, stats.semihard, stats.hard):
        assert np.all(kind >= 0)
    # valid is made of positives and negatives; the kinds are counted triplet by triplet.
    squared = ((x[:, None] - x) ** 2).sum(-1)
    gap = squared[:, None, :] - squared[:, :, None]  # [a, p, n]: d(a,n) − d(a,p)
    positive = same & ~np.eye(N, dtype=bool)
    negative = (labels[:, None] != labels) & where[:, None] & where
    valid = positive[:, :, None] & negative[:, None, :]
    np.testing.assert_array_equal(stats.easy, (valid & (gap >= margin)).sum((1, 2)))
    active = valid & (gap < margin)
    np.testing.assert_array_equal(stats.hard, (active & (gap <= 0)).sum((1, 2)))
    np.testing.assert_array_equal(stats.semihard, (active & (gap > 0)).sum((1, 2)))
    assert to_margin == active.sum()


@check
@given(embeddings, labels, st.tuples(margins, margins).map(sorted))
def test_mean_over_all_rises_with_the_margin(x, labels, two):
    lower, upper = two
    (loss, stats), _ = run(x, labels, lower, reduction="mean", **exact)
    (loss2, stats2), _ = run(x, labels, upper, reduction="mean", **exact)
    slack = 1e-5 * abs(loss)  # rounding
    assert loss <= loss2 + slack
    assert loss2 <= loss + (upper - lower) + 1e-5 * abs(loss2)  # by at most as much
    assert np.all(stats.active <= stats2.active)


@check
@given(embeddings, labels, margins, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scaling_embeddings_and_margin_scales_the_euclidean_loss(x, labels, margin, scale):
    # Powers of two scale without rounding, so not even a tie may change sides.
    scale = np.float32(scale)
    (loss, stats), (to_x, to_margin) = run(x, labels, margin)
    (loss2, stats2), (to_x2, to_margin2) = run(x * scale, labels, margin * scale)
    np.testing.assert_allclose(loss2, loss * scale, rtol=1e-6)
    np.testing.assert_allclose(to_x2, to_x, rtol=1e-5, atol=1e-6)
    assert to_margin2 == to_margin
    assert_counts(stats2, stats)


@check
@given(embeddings, labels, margins, masks, st.sampled_from([np.nan, np.inf, 0.0, 1e30]), labels)
def test_masked_rows_change_nothing(x, labels, margin, where, junk, other_labels):
    (loss, stats), (to_x, _) = run(x, labels, margin, where, **exact)
    x2 = np.where(where[:, None], x, np.float32(junk))
    labels2 = np.where(where, labels, other_labels)
    (loss2, stats2), (to_x2, _) = run(x2, labels2, margin, where, **exact)
    assert loss == loss2
    np.testing.assert_array_equal(to_x, to_x2)
    chex.assert_trees_all_equal(stats, stats2)
    assert not np.any(to_x[~where])
    assert not np.any(stats.valid[~where])


@check
@given(embeddings, labels, margins)
def test_soft_is_above_the_hinge_and_swap_above_the_plain_loss(x, labels, margin):
    options = {"reduction": "mean"} | exact
    (plain, _), _ = run(x, labels, margin, **options)
    (soft, _), _ = run(x, labels, margin, soft=True, **options)
    (swap, _), _ = run(x, labels, margin, swap=True, **options)
    slack = 1e-5 * plain
    assert plain <= soft + slack <= plain + np.log(2) + 3 * slack
    assert plain <= swap + slack
