"""By sorting as by the loop: the same counts and gradients to the last bit, in any classes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.devices.meshes import make_mesh
from margin_jax.losses import batch_all, blocks
from margin_jax.losses.tile import compare
from margin_jax.losses.tile_sorted import compare_sorted
from margin_jax.losses.windows import Windows

MININGS = ("all", "semihard", "hard")
N, DIM = 60, 3


def labelled(kind, rng):
    """int32[N]: two classes, few, one, a large one among single rows, or none twice."""
    return {
        "two": rng.integers(0, 2, N),
        "few": rng.integers(0, 5, N),
        "one": np.zeros(N, int),
        "tail": np.where(np.arange(N) < N // 2, 0, np.arange(N)),
        "distinct": np.arange(N),
    }[kind].astype(np.int32)


def rows(kind, rng):
    """float32[N, DIM]: squares without rounding and many ties, all alike, or one far away."""
    grid = rng.integers(-2, 3, (N, DIM)).astype(np.float32)
    return {
        "grid": grid,
        "normal": rng.normal(size=(N, DIM)).astype(np.float32),
        "equal": np.ones((N, DIM), np.float32),
        "outlier": np.where(np.arange(N)[:, None] == 7, np.float32(3e3), grid),
    }[kind]


@functools.cache
def compiled(implementation, mining="all"):
    """(x, labels, margin, where) → (loss, stats), (to_x, to_margin): the sum over the triplets."""

    def loss(x, margin, labels, where):
        return mj.batch_all_triplet_loss(
            x,
            labels,
            margin,
            where=where,
            distance="squared_euclidean",
            mining=mining,
            reduction="sum",
            implementation=implementation,
        )

    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return lambda x, labels, margin, where: differentiate(x, margin, labels, where)


def assert_same(found, expected):
    (loss, stats), gradient = found
    (expected_loss, expected_stats), expected_gradient = expected
    chex.assert_trees_all_equal(gradient, expected_gradient)
    for name in ("semihard", "hard", "easy", "positives", "negatives"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(expected_stats, name), name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(stats.sum_ap, expected_stats.sum_ap, rtol=1e-6)
    np.testing.assert_allclose(stats.sum_an, expected_stats.sum_an, rtol=1e-6)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", ["grid", "normal", "equal", "outlier"])
@pytest.mark.parametrize("classes", ["two", "few", "one", "tail", "distinct"])
def test_counts_and_gradient_are_the_loops(mining, kind, classes):
    rng = np.random.default_rng(0)
    x, labels = rows(kind, rng), labelled(classes, rng)
    where = rng.random(N) < 0.8
    for margin in (0.0, 1.0, -1.5, 20.0, 1e7):
        for real in (np.ones(N, bool), where):
            arguments = x, labels, np.float32(margin), real
            assert_same(
                compiled("sorted", mining)(*arguments), compiled("loop", mining)(*arguments)
            )


@pytest.mark.parametrize("mining", MININGS)
def test_it_is_the_plain_loops_of_the_oracle(mining):
    rng = np.random.default_rng(1)
    x, labels, where = rows("normal", rng), labelled("two", rng), np.arange(N) % 3 == 1
    answer = oracle.batch_all(
        x, labels, 0.3, distance="squared_euclidean", mining=mining, reduction="sum", where=where
    )
    run = compiled("sorted", mining)
    (loss, stats), (to_x, to_margin) = run(x, labels, np.float32(0.3), where)
    assert stats.totals() == answer.counts
    assert answer.counts["semihard"] > 0 < answer.counts["hard"]
    np.testing.assert_allclose(loss, answer.loss, rtol=1e-6)
    np.testing.assert_allclose(to_x, answer.to_embeddings, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(to_margin, answer.to_margin)


def test_references():
    rng = np.random.default_rng(2)
    others = rng.integers(-2, 3, (90, DIM)).astype(np.float32)
    options = {
        "references": others,
        "reference_labels": rng.integers(0, 2, 90),
        "reference_where": rng.random(90) < 0.9,
    }

    def found(implementation):
        def loss(x, y, margin):
            return mj.batch_all_triplet_loss(
                x,
                rng_labels,
                margin,
                mining="semihard",
                distance="squared_euclidean",
                reduction="sum",
                implementation=implementation,
                **options | {"references": y},
            )

        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        return differentiate(rows("grid", np.random.default_rng(3)), others, np.float32(1))

    rng_labels = labelled("two", rng)
    assert_same(found("sorted"), found("loop"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_makes_the_loss_nan(bad):
    rng = np.random.default_rng(4)
    x, labels = rows("grid", rng), labelled("two", rng)
    x[5, 0] = bad
    arguments = x, labels, np.float32(1), np.ones(N, bool)
    (loss, stats), _ = compiled("sorted")(*arguments)
    (_, expected), _ = compiled("loop")(*arguments)
    assert np.isnan(loss)
    np.testing.assert_array_equal(stats.semihard, expected.semihard)
    np.testing.assert_array_equal(stats.hard, expected.hard)


@pytest.mark.parametrize("mining", MININGS)
def test_the_loss_is_as_exact_as_float32_lets_it_be(mining):
    """Also beside distances so large that sums measured from them would lose all others."""
    rng = np.random.default_rng(5)
    columns, own = 400, 150
    d = rng.gamma(4.0, 0.25, (6, columns)).astype(np.float32)
    d[1, 3], d[2, 300], d[3, :] = 1e5, 1e5, d[3, 0] + 1e-6 * np.arange(columns)
    d[4, ::2] *= 1e4
    start = np.zeros(6, np.int32)
    window = Windows(start, start + own, start - 1, start + columns)
    margin = np.float32(0.5)
    reach = (d[:, :own] + margin).astype(np.float64)
    value = reach[:, :, None] - d[:, None, own:]  # [a, p, n]
    hard = d[:, None, own:] <= d[:, :own, None]
    chosen = {"all": value > 0, "hard": hard, "semihard": (value > 0) & ~hard}[mining]
    wanted = np.where(chosen, value, 0).sum((1, 2))
    options = {"mining": mining, "with_gradient": False}
    by_loop = jax.jit(functools.partial(compare, **options))(d, margin, window, own)
    sort = functools.partial(compare_sorted, **options, capacity=own + 9)
    by_sorting = jax.jit(sort)(d, margin, window)
    np.testing.assert_allclose(by_sorting.loss, wanted, rtol=5e-7)
    np.testing.assert_allclose(by_loop.loss, wanted, rtol=2e-6)
    np.testing.assert_array_equal(by_sorting.hard, hard.sum((1, 2)))


def test_in_float64_integers_stay_of_32_bits():
    with jax.enable_x64(True):
        rng = np.random.default_rng(10)
        x, labels = rng.integers(-2, 3, (N, DIM)).astype(np.float64), labelled("two", rng)
        arguments = x, labels, 1.0, np.ones(N, bool)
        found, gradients = compiled("sorted")(*arguments)
        expected, _ = compiled("loop")(*arguments)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-14)
        chex.assert_trees_all_equal(found[1], expected[1])
        assert found[1].hard.dtype == jnp.int32
        assert gradients[0].dtype == jnp.float64


# --- which way is taken ---


def classes_of(size, n):
    return (np.arange(n) // size).astype(np.int32)


def test_auto_is_the_loop_or_sorting_and_compiles_once():
    n = 512  # long enough for several lengths of what is sorted
    x = np.random.default_rng(6).integers(-4, 5, (n, 4)).astype(np.float32)
    traced = []

    @jax.jit
    def auto(x, labels, margin):
        traced.append(1)
        loss = functools.partial(
            mj.batch_all_triplet_loss, distance="squared_euclidean", reduction="sum"
        )
        return jax.value_and_grad(loss, has_aux=True)(x, labels, margin)

    for size in (2, 24, 25, 64, 65, 256, n):
        labels = classes_of(size, n)
        found = auto(x, labels, np.float32(3))
        (loss, stats), (to_x, _) = compiled("loop")(x, labels, np.float32(3), np.ones(n, bool))
        chex.assert_trees_all_equal(found[1], to_x)
        np.testing.assert_array_equal(found[0][1].active, stats.active)
        np.testing.assert_allclose(found[0][0], loss, rtol=1e-6)
    assert len(traced) == 1


def test_the_largest_class_decides(monkeypatch):
    taken = []
    usual = blocks.compare_sorted

    def told(*arguments):
        jax.debug.callback(lambda: taken.append(arguments[-1]))
        return usual(*arguments)

    monkeypatch.setattr(blocks, "compare_sorted", told)
    monkeypatch.setattr(batch_all, "block_size", lambda anchors, references, width: anchors - 1)
    n = 400
    x = np.random.default_rng(7).normal(size=(n, 5)).astype(np.float32)
    run = jax.jit(lambda x, labels: mj.batch_all_triplet_loss(x, labels, 0.2)[0])
    for size, capacities in [(2, []), (24, []), (25, [50, 50]), (50, [50, 50]), (51, [n, 50])]:
        run(x, classes_of(size, n)).block_until_ready()
        jax.effects_barrier()
        assert taken == capacities  # of two blocks, the second of one row, 400 = 7 · 51 + 43
        taken.clear()
    # The second block is one row, of a class of two.
    run(x, np.maximum(np.arange(n) - 30, 0)[::-1] // 2).block_until_ready()
    jax.effects_barrier()
    assert taken == [50]


def test_vmap_takes_one_way_for_all():
    """Otherwise every way would be gone for every batch, and the result chosen from them."""
    n = 120
    x = np.random.default_rng(8).integers(-4, 5, (3, n, DIM)).astype(np.float32)
    labels = np.stack([classes_of(size, n) for size in (2, 30, 60)])

    def loss(x, labels):
        return mj.batch_all_triplet_loss(
            x, labels, 2.0, distance="squared_euclidean", reduction="sum"
        )

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    mapped = jax.jit(jax.vmap(differentiate)).lower(x, labels).compile()
    ((losses, stats), gradient) = mapped(x, labels)
    for i in range(3):
        (loss_i, stats_i), gradient_i = differentiate(x[i], labels[i])
        np.testing.assert_allclose(losses[i], loss_i, rtol=1e-6)
        np.testing.assert_array_equal(stats.active[i], stats_i.active)
        chex.assert_trees_all_equal(gradient[i], gradient_i)
    assert " conditional(" in mapped.as_text()


def test_few_rows_need_no_choice():
    arguments = jnp.zeros((96, DIM)), jnp.zeros(96, jnp.int32)
    text = jax.jit(lambda x, labels: mj.batch_all_triplet_loss(x, labels, 0.2)).lower(*arguments)
    assert "stablehlo.case" not in text.as_text()


def test_over_devices():
    rng = np.random.default_rng(9)
    x, labels = rows("grid", rng), labelled("tail", rng)
    loss = functools.partial(
        mj.batch_all_triplet_loss, distance="squared_euclidean", implementation="sorted"
    )
    shared = jax.shard_map(
        functools.partial(loss, axis_name="data"),
        mesh=make_mesh(4, N),
        in_specs=(P("data"), P("data"), P()),
        out_specs=(P(), P("data")),
    )
    found = jax.jit(jax.value_and_grad(shared, has_aux=True))(x, labels, jnp.float32(1))
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(x, labels, jnp.float32(1))
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
    np.testing.assert_array_equal(found[0][1].active, expected[0][1].active)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mining", MININGS)
def test_it_lowers_for_accelerators_and_promotes_nothing(mining):
    arguments = jax.random.normal(jax.random.key(0), (N, DIM)), jnp.zeros(N, jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        traced = jax.jit(
            jax.value_and_grad(
                functools.partial(
                    mj.batch_all_triplet_loss, margin=0.2, mining=mining, implementation="sorted"
                ),
                has_aux=True,
            )
        ).trace(*arguments)
    text = traced.lower(lowering_platforms=("tpu", "cuda")).as_text()
    assert "stablehlo.sort" in text
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("implementation", ["loop", "sorted"])
def test_the_gradient_of_the_margin_is_the_count_of_triplets(implementation):
    """More of them than float32 can count one by one."""
    x = np.random.default_rng(11).normal(size=(512, 4)).astype(np.float32)
    arguments = x, classes_of(256, 512), np.float32(3), np.ones(512, bool)
    (_, stats), (_, to_margin) = compiled(implementation)(*arguments)
    active = sum(stats.totals()[kind] for kind in ("semihard", "hard"))
    assert active > 2**24
    np.testing.assert_allclose(to_margin, active, rtol=1e-7)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="implementation must be one of auto, loop, sorted"):
        mj.batch_all_triplet_loss(np.eye(3), np.array([0, 0, 1]), 0.2, implementation="fast")
