"""The sample of effective margins: which triplets, how often, and what an epoch makes of it."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import margin_jax as mj
from margin_jax.stats import EFFECTIVE_EDGES


def batch(seed=0, n=24, identities=7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), rng.integers(0, identities, n)


def every_effective_margin(x, labels, where=None):
    """d(a,n) − d(a,p) of every valid triplet, by enumeration."""
    rows = [i for i in range(len(x)) if where is None or where[i]]

    def d(i, j):
        return np.linalg.norm(x[i] - x[j])

    return np.array(
        [
            d(a, n) - d(a, p)
            for a, p, n in itertools.product(rows, repeat=3)
            if a != p and labels[a] == labels[p] != labels[n]
        ]
    )


def bins(values):
    found = np.searchsorted(EFFECTIVE_EDGES, values.astype(np.float32), side="right")
    return np.bincount(np.minimum(found, len(EFFECTIVE_EDGES) - 1), minlength=len(EFFECTIVE_EDGES))


@jax.jit
def stats_of(x, labels, where=None):
    return mj.batch_all_triplet_loss(x, labels, 0.2, where=where)[1]


count = jax.jit(mj.effective_margin_histogram, static_argnames=("samples", "distance"))


def histogram(x, labels, key=0, where=None, **options):
    stats = stats_of(x, labels, where)
    return np.asarray(count(x, labels, stats, jax.random.key(key), where=where, **options))


def test_the_edges():
    assert len(EFFECTIVE_EDGES) == 1024
    assert np.all(np.diff(EFFECTIVE_EDGES) > 0)
    assert 0 in EFFECTIVE_EDGES
    assert EFFECTIVE_EDGES[-1] == pytest.approx(1000)
    assert EFFECTIVE_EDGES[0] < -950


@pytest.mark.parametrize("padded", [False, True])
def test_it_draws_valid_triplets_uniformly(padded):
    x, labels = batch()
    where = np.arange(len(x)) % 4 != 1 if padded else None
    exact = bins(every_effective_margin(x, labels, where))
    samples = 200_000
    drawn = histogram(x, labels, where=where, samples=samples)
    assert drawn.sum() == samples
    # Rounding may put a value into the next bin; cumulative shares then hardly change.
    distance = np.abs(np.cumsum(drawn) / samples - np.cumsum(exact) / exact.sum()).max()
    assert (
        distance < 3 / np.sqrt(samples) + 0.002
    )  # Kolmogorov–Smirnov: 1.95 / √n is the 0.1 % point
    # And it is not the mean over anchors, which have unlike numbers of triplets here.
    assert len(np.unique(np.bincount(labels))) > 2


def test_the_key_decides():
    x, labels = batch()
    assert np.array_equal(histogram(x, labels, key=3), histogram(x, labels, key=3))
    assert not np.array_equal(histogram(x, labels, key=3), histogram(x, labels, key=4))


def test_no_triplet_and_no_finite_distance_count_nothing():
    x, _ = batch()
    assert histogram(x, np.arange(len(x))).sum() == 0
    assert histogram(x, np.zeros(len(x), int)).sum() == 0
    assert histogram(np.full_like(x, np.nan), np.arange(len(x)) % 3).sum() == 0
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        histogram(x, np.zeros(len(x), int), samples=0)


def test_rows_that_it_can_not_see_are_not_made_up():
    """Statistics of a larger batch speak of positives that are not here."""
    x, labels = batch()
    counted = count(x, np.arange(len(x)), stats_of(x, labels), jax.random.key(0))
    assert not np.any(counted)


def test_other_distances_narrow_types_and_jit():
    x, labels = batch()
    exact = histogram(2 * x, labels, samples=4000)
    assert histogram(2 * x, labels, samples=4000, distance="cosine").argmax() != exact.argmax()
    half = histogram(jnp.asarray(2 * x, jnp.bfloat16), labels, samples=4000)
    assert np.abs(np.cumsum(half) - np.cumsum(exact)).max() < 200
    jitted = jax.jit(
        lambda x: mj.effective_margin_histogram(
            x, labels, mj.batch_all_triplet_loss(x, labels, 0.2)[1], jax.random.key(0), samples=4000
        )
    )
    np.testing.assert_array_equal(jitted(2 * x), exact)
    gradient = jax.grad(lambda x: jnp.sum(jitted(x) * 1.0))(x)
    assert not np.any(gradient)


def test_an_epoch_adds_them_up():
    x, labels = batch()
    stats = stats_of(x, labels)
    first, second = (histogram(x, labels, key=key, samples=4096) for key in (0, 1))
    totals = mj.EpochTotals().add(stats, first).add(stats, second)
    np.testing.assert_array_equal(totals.histogram, first + second)
    cdf = totals.stats().effective_cdf
    assert cdf.dtype == np.float32
    np.testing.assert_array_equal(cdf, (np.cumsum(first + second) / 8192).astype(np.float32))
    quantiles = totals.effective_quantiles((0.05, 0.5, 0.95))
    np.testing.assert_allclose(
        quantiles, np.quantile(every_effective_margin(x, labels), (0.05, 0.5, 0.95)), atol=0.03
    )
    without = mj.EpochTotals().add(stats)
    assert (
        without.histogram
        is without.stats().effective_cdf
        is without.effective_quantiles((0.5,))
        is None
    )


def test_statistics_on_the_device_are_those_of_the_host():
    """For a schedule inside `scan`: several batches, stacked."""
    each = []
    totals = mj.EpochTotals()
    for seed in range(3):
        x, labels = batch(seed)
        each.append((stats_of(x, labels), histogram(x, labels, key=seed)))
        totals = totals.add(*each[-1])
    stats, counted = jax.tree.map(lambda *v: np.stack(v), *each)
    told = jax.jit(mj.EpochStats.of)(stats, counted)
    chex.assert_trees_all_close(told, totals.stats(), rtol=2e-5)
    alone = mj.EpochStats.of(stats)
    assert alone.effective_cdf is None
    silent = mj.batch_all_triplet_loss(np.eye(4, dtype=np.float32), [0, 1, 2, 3], 0.2)[1]
    assert np.isnan(mj.EpochStats.of(silent, jnp.zeros(1024, jnp.int32)).easy_fraction)


# In training


def apply_fn(params, batch_stats, images, *, train, key):
    x = images.reshape(len(images), -1) @ params
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True), batch_stats


def trained(schedule, histogram, epochs=3):
    rng = np.random.default_rng(0)
    optimizer = optax.sgd(0.05)
    params = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    state = mj.create_state(params, {}, optimizer, schedule, jax.random.key(0))
    step = mj.make_train_step(apply_fn, optimizer, histogram=histogram)
    labels = np.repeat(np.arange(6), 4)
    batches = [(rng.normal(size=(24, 6)).astype(np.float32) + labels[:, None], labels)] * 5
    records = []
    for _ in range(epochs):
        state, record = mj.train_epoch(state, step, batches, schedule)
        records.append(record)
    return records, state


def test_it_does_not_change_the_training():
    without, state = trained(mj.dams(), False)
    kept, same = trained(mj.dams(), True)
    chex.assert_trees_all_equal(state.params, same.params)
    assert without[0].effective_quantiles is None
    quantiles = kept[0].effective_quantiles
    assert len(quantiles) == 7
    assert quantiles == sorted(quantiles)
    assert quantiles[0] < kept[0].mean_effective < quantiles[-1]


def test_all_of_it_may_be_in_shares():
    """Also on axes of the type Explicit, on which JAX refuses to sum up along what is shared."""
    x, labels = np.random.default_rng(0).normal(size=(32, 5)), np.arange(32) // 4
    mesh = jax.make_mesh((8,), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    shared = jax.device_put((x.astype(np.float32), labels.astype(np.int32)), spread)

    def local(x, labels):
        return mj.batch_all_triplet_loss(x, labels, 0.2, axis_name="data")[1]

    stats = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spread.spec, out_specs=spread.spec))
    found = mj.effective_margin_histogram(*shared, stats(*shared), jax.random.key(0))
    alone = mj.triplet_stats(*map(np.asarray, shared), 0.2)
    expected = mj.effective_margin_histogram(*map(np.asarray, shared), alone, jax.random.key(0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("loss", "margin"), [(mj.ShadowLoss(), 3.0), (mj.DynamicSoftMarginLoss(), 0.2)]
)
def test_it_is_of_the_distances_that_the_loss_counts_by(loss, margin):
    """Of rows that are not of length 1 these are not those that images are compared by."""
    x, labels = batch(n=32)
    x = x * np.linspace(1, 100, len(x), dtype=np.float32)[:, None]

    def embed(params, batch_stats, images, *, train, key):
        return images + 0 * params, batch_stats

    optimizer, schedule = optax.sgd(0.1), mj.constant(margin)
    step = mj.make_train_step(embed, optimizer, loss, histogram=True)
    loss_state = loss.init_state() if hasattr(loss, "init_state") else {}
    state = mj.create_state(
        jnp.zeros(()), {}, optimizer, schedule, jax.random.key(0), loss_state=loss_state
    )
    _, output = step(state, x, labels)
    counts = output.stats.totals()
    below = int(np.searchsorted(EFFECTIVE_EDGES, margin))
    easy = int(np.sum(output.histogram[below + 1 :])) / int(np.sum(output.histogram))
    assert 0.1 < counts["easy"] / counts["valid"] < 0.9
    assert easy == pytest.approx(counts["easy"] / counts["valid"], abs=0.08)


def test_a_loss_of_other_triplets_has_none():
    with pytest.raises(ValueError, match="got it with ArcFaceLoss"):
        mj.make_train_step(None, optax.sgd(0.1), mj.ArcFaceLoss(), histogram=True)


def test_quantile_margin_trains_on_it():
    records, state = trained(mj.quantile_margin(0.2, 0.3, low=-1), True, epochs=4)
    # The margin is where 30 % of the last epoch's effective margins lay.
    low, high = records[-1].effective_quantiles[2:4]
    assert low - 0.03 <= float(state.margin) <= high + 0.03
    assert len({record.margin for record in records}) >= 3
    with pytest.raises(ValueError, match=r"needs the histogram .* make_train_step"):
        trained(mj.quantile_margin(), False)
