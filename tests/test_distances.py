"""Rows with much in common: the origin that Euclidean distances are taken from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.evaluation.embedding import pair_distances
from margin_jax.losses.distances import euclidean, origin, paired, squared_euclidean

FAR = {"1e5": (1e5, 1.0), "100 and .01": (100.0, 0.01)}
N, DIM = 64, 128


def batch(place):
    """Embeddings about that place as float32 holds them, and labels, some rows next to each other.

    The differences are large enough that rounding decides on no triplet.
    """
    mean, spread = FAR[place]
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(N // 4), 4)
    x = rng.normal(size=(N // 4, DIM))[labels] * 0.2 + rng.normal(size=(N, DIM)) * 0.2
    return (mean + spread * x).astype(np.float32), labels.astype(np.int32), 0.5 * spread


def about_zero(x):
    return x.astype(np.float64) - x.astype(np.float64).mean(axis=0)


@functools.cache
def differentiated(distance, **options):
    loss = functools.partial(mj.batch_all_triplet_loss, distance=distance, **options)
    return jax.jit(jax.value_and_grad(loss, argnums=0, has_aux=True))


@pytest.mark.parametrize("place", FAR)
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean"])
def test_what_rows_have_in_common_does_not_matter(place, distance):
    """Loss, counts and gradient are those of the same rows about 0 in float64."""
    x, labels, margin = batch(place)
    if distance == "squared_euclidean":
        margin = 40 * margin**2
    (loss, stats), gradient = differentiated(distance)(x, labels, margin)
    with jax.enable_x64(True):
        (expected, right), slope = differentiated(distance)(about_zero(x), labels, margin)
    assert stats.totals()["valid"] > stats.totals()["easy"] > 0
    assert loss == pytest.approx(float(expected), rel=1e-4)
    for name, count in right.totals().items():
        assert abs(stats.totals()[name] - count) <= 1, "but for a triplet at the margin"
    np.testing.assert_allclose(gradient, slope, atol=2e-3 * np.abs(np.asarray(slope)).max())


def test_whole_numbers_stay_whole():
    """The origin is a row, so ties far away are the ties at 0, and so is the last bit."""
    grid = np.random.default_rng(0).integers(-2, 3, (N, 4)).astype(np.float32)
    labels = np.arange(N, dtype=np.int32) // 4
    step = differentiated("squared_euclidean", reduction="sum")
    near, far = step(grid, labels, 1.0), step(grid + np.float32(2**20), labels, 1.0)
    jax.tree.map(np.testing.assert_array_equal, far, near)


def test_embeddings_of_length_1_keep_their_last_bit():
    """However near each other they are; and so do those about 0."""
    rng = np.random.default_rng(0)
    for spread in (1.0, 1e-3, 0.0):
        x = np.eye(DIM)[0] + spread * rng.normal(size=(N, DIM))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        assert not np.any(origin(euclidean, x))
    assert not np.any(origin(euclidean, 100 * rng.normal(size=(N, DIM)).astype(np.float32)))


def test_only_rows_that_count_give_the_origin():
    rng = np.random.default_rng(0)
    x = (50 + rng.normal(size=(N, 4))).astype(np.float32)
    x[3], x[5], x[9] = np.nan, -1e6, np.inf
    real = np.arange(N) != 5
    found = np.asarray(origin(squared_euclidean, jnp.asarray(x), jnp.asarray(real)))
    assert found[0].tolist() in x.tolist()
    assert np.all(np.abs(found - 50) < 5)
    nothing = origin(squared_euclidean, jnp.asarray(x), jnp.zeros(N, bool))
    np.testing.assert_array_equal(nothing, 0)


def test_a_row_that_is_not_finite_leaves_the_others_as_they_are():
    x, labels, margin = batch("100 and .01")
    run = jax.jit(mj.batch_all_triplet_loss)
    _, expected = run(x[4:], labels[4:], margin)
    x[1] = np.nan
    loss, stats = run(x, labels, margin)
    assert np.isnan(loss)
    assert np.all(stats.sum_ap[4:] > 0)
    np.testing.assert_allclose(stats.sum_ap[4:], expected.sum_ap, rtol=1e-3)


def test_padding_references_and_devices_share_one_origin():
    x, labels, margin = batch("100 and .01")
    run = jax.jit(mj.batch_all_triplet_loss)
    loss, stats = run(x, labels, margin)

    padded = np.concatenate([x, np.full((8, DIM), np.nan, np.float32)])
    more, where = np.concatenate([labels, labels[:8]]), np.arange(N + 8) < N
    masked, _ = run(padded, more, margin, where=where)
    assert masked == pytest.approx(float(loss), rel=1e-5)

    options = {"reduction": "sum", "references": x, "reference_labels": labels}
    both, _ = jax.jit(functools.partial(mj.batch_all_triplet_loss, **options))(x, labels, margin)
    alone, _ = mj.batch_all_triplet_loss(
        about_zero(x).astype(np.float32), labels, margin,
        **{**options, "references": about_zero(x).astype(np.float32)},
    )  # fmt: skip
    assert both == pytest.approx(float(alone), rel=1e-4)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shared = jax.shard_map(
        lambda x, labels: mj.batch_all_triplet_loss(x, labels, margin, axis_name="data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data")),
    )
    over_devices, shares = jax.block_until_ready(jax.jit(shared)(x, labels))
    assert over_devices == pytest.approx(float(loss), rel=1e-5)
    assert shares.totals() == stats.totals()


def test_a_distance_of_ones_own_sees_the_rows_as_they_are():
    x, labels, margin = batch("1e5")
    seen = []

    def least(x, y):
        jax.debug.callback(lambda v: seen.append(float(v)), jnp.min(y))
        return euclidean(x, y)

    jax.block_until_ready(mj.batch_all_triplet_loss(x, labels, margin, distance=least))
    jax.effects_barrier()
    assert len(seen) > 0
    assert min(seen) > 9e4
    assert not np.any(origin(least, x))


@pytest.mark.parametrize("place", FAR)
def test_evaluation_far_from_zero(place):
    x, labels, _ = batch(place)
    here = about_zero(x).astype(np.float32)
    near, far = (mj.retrieval_report(v, labels) for v in (here, x))
    assert far == near
    assert far.recall_at[1] > 0.5
    for exact_up_to in (0, 10**6):
        near, far = (
            mj.all_pairs_report(v, labels, threshold=1.0, exact_up_to=exact_up_to).auc
            for v in (here, x)
        )
        assert far == pytest.approx(near, abs=1e-4)
    rows = np.random.default_rng(1).integers(0, N, (50, 2))
    expected = np.linalg.norm(here[rows[:, 0]] - here[rows[:, 1]], axis=1)
    apart = expected > 0
    assert pair_distances(x, rows)[apart] == pytest.approx(expected[apart], rel=1e-3)


def test_histogram_far_from_zero():
    x, labels, margin = batch("1e5")
    _, stats = mj.batch_all_triplet_loss(x, labels, margin)
    near, far = (
        mj.effective_margin_histogram(v, labels, stats, jax.random.key(0))
        for v in (about_zero(x).astype(np.float32), x)
    )
    assert np.abs(np.asarray(near) - far).sum() <= 8, "of 512, but for some at an edge of a bin"


def test_vmap_and_other_margins_do_not_recompile():
    x, labels, margin = batch("100 and .01")
    traced = []

    @jax.jit
    def run(batches, margin):
        traced.append(margin)
        return jax.vmap(lambda x: mj.batch_all_triplet_loss(x, labels, margin)[0])(batches)

    batches = np.stack([x, x[::-1] - 100])
    losses = run(batches, margin)
    alone = [mj.batch_all_triplet_loss(v, labels, margin)[0] for v in batches]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    run(batches, 2 * margin)
    assert len(traced) == 1


def test_pairs_are_measured_from_the_first_row():
    """Of a distance of one's own, which need not be the same both ways."""
    x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])

    def lopsided(x, y):
        return x[:, None, 0] - 2 * y[None, :, 0]

    np.testing.assert_array_equal(paired(lopsided, x, y), [-5.0, -8.0])


class Weighted:
    """A distance whose weight anybody can change."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, x, y):
        return self.weight * jnp.sum(jnp.abs(x[:, None] - y[None, :]), axis=-1)


@dataclasses.dataclass(frozen=True)
class Fixed:
    weight: float

    def __call__(self, x, y):
        return Weighted(self.weight)(x, y)

    def method(self, x, y):
        return self(x, y)


def test_a_distance_that_could_change_is_refused():
    """Its program would not: the loss of before would come out without a word."""
    x, labels = jnp.eye(4), jnp.array([0, 0, 1, 1])
    for changing in (Weighted(2.0), Weighted(2.0).__call__):
        with pytest.raises(TypeError, match=r"cannot change, such as a frozen .* got Weighted"):
            mj.batch_all_triplet_loss(x, labels, 0.2, distance=changing)
        with pytest.raises(TypeError, match=r"cannot change, such as a frozen .* got Weighted"):
            mj.evaluate(np.eye(4), labels, distance=changing)
    expected, _ = mj.batch_all_triplet_loss(x, labels, 0.2, distance="manhattan")
    twice = functools.partial(lambda x, y, by: by * Weighted(1.0)(x, y), by=1.0)
    for own in (Fixed(1.0), Fixed(1.0).method, jax.jit(Fixed(1.0)), twice, Fixed(1.0).__call__):
        loss, _ = mj.batch_all_triplet_loss(x, labels, 0.2, distance=own)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
