import dataclasses
import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import margin_jax as mj
from margin_jax.losses import batch_all, blocks, tile
from margin_jax.losses.distances import euclidean

N, DIM = 12, 4  # nearly every test uses this one shape, so that little is compiled
METRICS = ("euclidean", "squared_euclidean", "cosine", "manhattan", "chebyshev")
REDUCTIONS = ("mean_active", "mean", "sum")
MININGS = ("all", "semihard", "hard", "batch_hard")
INT32 = np.iinfo(np.int32)
COUNTS = ("valid", "easy", "semihard", "hard", "positives", "negatives")
SUMS = ("sum_ap", "sum_an", "sum_ap_squared", "sum_an_squared")


def lopsided(x, y):
    return jnp.sum((x[:, None, :] - 2 * y[None, :, :]) ** 2, axis=-1)


CALLABLES = {"lopsided": lopsided}


def cases():
    """name → (embeddings, labels, margin, where)."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(N, DIM))
    # Whole numbers make ties exact: squares, and roots of squares, carry no rounding error.
    grid = rng.integers(-2, 3, size=(N, DIM))
    line = np.outer(rng.integers(0, 7, size=N), [1, 0, 0, 0])
    axes = rng.permutation(np.concatenate([np.eye(DIM), -np.eye(DIM), np.eye(DIM)]))
    labels = rng.integers(0, 4, size=N)
    real = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1], bool)
    padded = np.where(real[:, None], normal, np.nan)
    every = np.ones(N, bool)
    return {
        "random": (normal, labels, 0.5, every),
        "unbalanced": (normal, np.array([3] * 7 + [1] * 3 + [2] * 2), 0.2, every),
        "margin_zero": (normal, labels, 0.0, every),
        "margin_negative": (normal, labels, -0.5, every),
        "grid_0": (grid, labels, 0.0, every),
        "grid_1": (grid, labels, 1.0, every),
        "line_1": (line, labels, 1.0, every),
        "line_2": (line, labels, 2.0, every),
        "axes_0": (axes, labels, 0.0, every),
        "axes_1": (axes, labels, 1.0, every),
        "duplicated": (np.tile(grid[:4], (3, 1)), labels, 1.0, every),
        "one_class": (normal, np.full(N, 7), 0.5, every),
        "all_distinct": (normal, rng.permutation(N), 0.5, every),
        "padded": (padded, labels, 0.5, real),
        "only_padding": (np.full((N, DIM), np.nan), labels, 0.5, ~every),
    }


CASES = {
    name: (x.astype(np.float32), labels.astype(np.int32), np.float32(margin), where)
    for name, (x, labels, margin, where) in cases().items()
}
# Only the axes have cosines without rounding, and so ties for certain.
NOT_FOR_COSINE = ("grid_0", "grid_1", "line_1", "line_2", "duplicated")

# Every reduction meets every mining. What is selected and what the mean is over do not know the
# distance: each one has its plain loss, and one of the others.
CONFIGS = [
    *(("euclidean", "mean_active", mining) for mining in MININGS),
    *(
        ("euclidean", reduction, mining)
        for reduction in ("mean", "sum")
        for mining in ("all", "batch_hard")
    ),
    *((distance, "mean_active", "all") for distance in (*METRICS[1:], "lopsided")),
    ("squared_euclidean", "mean", "semihard"),
    ("cosine", "sum", "hard"),
    ("manhattan", "mean_active", "batch_hard"),
    ("chebyshev", "mean", "hard"),
    ("lopsided", "sum", "semihard"),
]


def value_and_grad(distance="euclidean", reduction="mean_active", mining="all"):
    """(embeddings, labels, margin, where) → (loss, stats), (to_embeddings, to_margin)."""

    def loss_fn(embeddings, margin, labels, where):
        return mj.batch_all_triplet_loss(
            embeddings,
            labels,
            margin,
            distance=CALLABLES.get(distance, distance),
            reduction=reduction,
            mining=mining,
            where=where,
        )

    differentiate = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    return lambda x, labels, margin, where: differentiate(x, margin, labels, where)


@functools.cache
def compiled(*options):
    return jax.jit(value_and_grad(*options))


def assert_stats(stats, answer):
    for name in ("easy", "semihard", "hard", "positives", "negatives"):
        count = getattr(stats, name)
        assert count.dtype == jnp.int32
        np.testing.assert_array_equal(count, getattr(answer, name), err_msg=name)
    np.testing.assert_array_equal(stats.valid, stats.easy + stats.semihard + stats.hard)
    for name in SUMS:
        np.testing.assert_allclose(getattr(stats, name), getattr(answer, name), 1e-5, err_msg=name)
    assert stats.totals() == answer.counts


def assert_gradient(gradient, expected):
    assert gradient.shape == expected.shape
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * (1 + abs(expected).max()))


# Against the oracle


@pytest.mark.parametrize(
    ("distance", "reduction", "mining", "case"),
    [
        (*config, case)
        for config, case in itertools.product(CONFIGS, CASES)
        if not (config[0] == "cosine" and case in NOT_FOR_COSINE)
    ],
)
def test_oracle(distance, reduction, mining, case):
    x, labels, margin, where = CASES[case]
    answer = oracle.batch_all(
        x, labels, margin, distance=distance, reduction=reduction, mining=mining, where=where
    )

    (loss, stats), (to_x, to_margin) = compiled(distance, reduction, mining)(
        x, labels, margin, where
    )

    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5, atol=1e-6)
    assert_stats(stats, answer)
    assert_gradient(to_x, answer.to_embeddings)
    np.testing.assert_allclose(to_margin, answer.to_margin, rtol=1e-6)


def test_cases_contain_what_they_are_for():
    ties = {"line_1": "euclidean", "line_2": "euclidean", "axes_1": "cosine", "grid_1": "manhattan"}
    for case, distance in ties.items():
        x, labels, margin, _ = CASES[case]
        answer = oracle.batch_all(x, labels, margin, distance=distance)
        assert answer.effective.count(margin) > 10
    for distance in METRICS:
        answer = oracle.batch_all(*CASES["random"][:3], distance=distance)
        assert min(answer.counts.values()) > 0


@pytest.mark.parametrize("distance", oracle.DISTANCES)
def test_oracle_gradient_is_the_slope_of_its_loss(distance):
    x, labels, step = CASES["random"][0][:6].astype(np.float64), [0, 1, 0, 2, 1, 0], 1e-6
    options = {"distance": distance, "reduction": "mean"}
    answer = oracle.batch_all(x, labels, 0.5, **options)
    slope = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        rise = oracle.batch_all(up, labels, 0.5, **options).loss
        slope[index] = (rise - oracle.batch_all(down, labels, 0.5, **options).loss) / (2 * step)
    np.testing.assert_allclose(answer.to_embeddings, slope, atol=1e-7)


@pytest.mark.parametrize(
    ("distance", "mining"),
    [*zip(("euclidean", "cosine", "chebyshev", "lopsided"), MININGS, strict=True)],
)
def test_references(distance, mining):
    x, labels, margin, where = CASES["padded"]
    rng = np.random.default_rng(1)
    reference_where = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1], bool)
    # The first three repeat rows of the batch: they count, even as their own positive.
    references = np.concatenate([x[[0, 1, 3]], rng.normal(size=(6, DIM)).astype(np.float32)])
    references[~reference_where] = np.nan
    reference_labels = np.concatenate([labels[[0, 1, 3]], rng.integers(0, 5, 6)]).astype(np.int32)
    answer = oracle.batch_all(
        x,
        labels,
        margin,
        distance=distance,
        mining=mining,
        where=where,
        references=references,
        reference_labels=reference_labels,
        reference_where=reference_where,
    )

    def loss_fn(embeddings, references):
        return mj.batch_all_triplet_loss(
            embeddings,
            labels,
            margin,
            distance=CALLABLES.get(distance, distance),
            mining=mining,
            where=where,
            references=references,
            reference_labels=reference_labels,
            reference_where=reference_where,
        )

    differentiate = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True))
    (loss, stats), (to_x, to_references) = differentiate(x, references)

    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
    # d(x, x) of a repeated row is 0 but for rounding, which the root magnifies.
    np.testing.assert_allclose(stats.sum_ap, answer.sum_ap, rtol=1e-5, atol=2e-3)
    assert stats.totals() == answer.counts
    assert_gradient(to_x, answer.to_embeddings)
    assert_gradient(to_references, answer.to_references)


@pytest.mark.parametrize("size", [1, 5])  # 5 does not divide 12: the last block is padded
def test_blocks_change_nothing(monkeypatch, size):
    asked = []

    def block_size(anchors, references, width):
        asked.append((anchors, references))
        return size

    monkeypatch.setattr(batch_all, "block_size", block_size)
    run = jax.jit(value_and_grad())
    for case in ("random", "padded"):
        x, labels, margin, where = CASES[case]
        answer = oracle.batch_all(x, labels, margin, where=where)

        (loss, stats), (to_x, to_margin) = run(x, labels, margin, where)

        assert set(asked) == {(N, N)}  # traced anew, not taken from a cache
        np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
        assert_stats(stats, answer)
        assert_gradient(to_x, answer.to_embeddings)
        np.testing.assert_allclose(to_margin, answer.to_margin, rtol=1e-6)


@pytest.mark.parametrize(
    ("platform", "stats", "rows"),
    [
        ("cpu", None, 128),
        ("gpu", {"bytes_limit": 100 * 2**30}, 2**14),  # 2^25 distances are its most
        ("gpu", {"bytes_limit": 8 * 2**30}, 2**12),  # 32 MB a tile
        (
            "gpu",
            {"bytes_limit": int(15.9 * 2**30)},
            2**12,
        ),  # so that what else takes some decides nothing
        ("tpu", None, 2**11),
        ("tpu", {"bytes_limit": 2**20}, 64),
    ],
)
def test_blocks_follow_platform_and_memory(monkeypatch, platform, stats, rows):
    device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert blocks.block_size(10**6, 2**11, 1) == rows
    assert blocks.block_size(7, 2**11, 1) == 7
    # Where differences of 128 coordinates are held: not on a CPU, whose loops hold none.
    rows_of_cubes = rows if platform == "cpu" else max(64, rows // 128)
    assert blocks.block_size(10**6, 2**11, 128) == rows_of_cubes


def test_a_distance_of_ones_own_may_divide_by_a_rows_length(monkeypatch):
    """Rows of padding, the batch's and those of a block that is not full, have a length."""
    monkeypatch.setattr(batch_all, "block_size", lambda anchors, references, width: 5)

    def cosine(a, b):
        a, b = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        return 1 - jnp.matmul(a, b.T, precision="highest")

    run = jax.jit(value_and_grad(cosine))
    for case in ("random", "padded"):
        x, labels, margin, where = CASES[case]
        answer = oracle.batch_all(x, labels, margin, distance="cosine", where=where)
        (loss, stats), (to_x, _) = run(x, labels, margin, where)
        np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
        assert stats.totals() == answer.counts
        assert_gradient(to_x, answer.to_embeddings)


@pytest.mark.parametrize("differentiated", [False, True])
def test_without_jit_a_new_margin_compiles_nothing(differentiated, caplog):
    x, labels, _, _ = CASES["random"]
    rows = np.vstack([x, x[:1]])  # of a shape of its own
    labels = np.append(labels, labels[0])

    def loss(x, margin):
        return mj.batch_all_triplet_loss(x, labels, margin)[0]

    call = jax.grad(loss) if differentiated else loss
    compiled_programs = []
    for margin in (0.1, 0.2, 0.3):
        caplog.clear()
        with jax.log_compiles():
            call(rows, jnp.float32(margin))
        said = [record.getMessage() for record in caplog.records]
        compiled_programs.append(sum("Finished XLA compilation" in line for line in said))
    assert compiled_programs[0] > 0
    assert compiled_programs[1:] == [0, 0]


def test_float64_is_computed_in_float64():
    x, labels, _, where = CASES["random"]
    answer = oracle.batch_all(x.astype(np.float64), labels, 0.2)
    with jax.enable_x64(True):
        (loss, stats), (to_x, _) = jax.jit(value_and_grad())(
            x.astype(np.float64), labels, np.float64(0.2), where
        )
        assert (loss.dtype, to_x.dtype) == (jnp.float64, jnp.float64)
        assert stats.hard.dtype == jnp.int32
        np.testing.assert_allclose(loss, answer.loss, rtol=1e-13)
        np.testing.assert_allclose(to_x, answer.to_embeddings, rtol=1e-11, atol=1e-13)


# The swap and the soft margin

VALUED = [
    {"swap": True},
    {"soft": True},
    {"swap": True, "soft": True, "reduction": "mean", "distance": "squared_euclidean"},
    {"swap": True, "mining": "semihard", "distance": "cosine"},
    {"soft": True, "mining": "hard", "distance": "manhattan"},
    {"soft": True, "mining": "batch_hard"},
    {"swap": True, "mining": "hard", "reduction": "sum", "distance": "lopsided"},
]


@functools.cache
def compiled_valued(index):
    options = VALUED[index]
    distance = options.get("distance", "euclidean")

    def loss_fn(embeddings, margin, labels, where):
        return mj.batch_all_triplet_loss(
            embeddings,
            labels,
            margin,
            where=where,
            **(options | {"distance": CALLABLES.get(distance, distance)}),
        )

    return jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("index", "case"),
    [
        *itertools.product(range(len(VALUED)), ("random", "unbalanced", "padded", "one_class")),
        (1, "axes_1"),  # with a swap, rounding would decide where a tie's gradient goes
    ],
)
def test_swap_and_soft(index, case):
    x, labels, margin, where = CASES[case]
    options = VALUED[index]
    answer = oracle.batch_all(x, labels, margin, where=where, **options)

    (loss, stats), (to_x, to_margin) = compiled_valued(index)(x, margin, labels, where)

    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
    assert_stats(stats, answer)
    assert_gradient(to_x, answer.to_embeddings)
    np.testing.assert_allclose(to_margin, answer.to_margin, rtol=1e-5)


def test_swap_with_references():
    x, labels, margin, _ = CASES["random"]
    rng = np.random.default_rng(1)
    references = rng.normal(size=(9, DIM)).astype(np.float32)
    given = {"references": references, "reference_labels": rng.integers(0, 4, 9).astype(np.int32)}
    answer = oracle.batch_all(x, labels, margin, swap=True, **given)

    def loss_fn(x, references):
        return mj.batch_all_triplet_loss(
            x, labels, margin, swap=True, **(given | {"references": references})
        )

    differentiate = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True))
    (loss, stats), (to_x, to_references) = differentiate(x, references)
    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
    assert_stats(stats, answer)
    assert_gradient(to_x, answer.to_embeddings)
    assert_gradient(to_references, answer.to_references)


@pytest.mark.parametrize("index", [0, 1], ids=["swap", "soft"])
def test_swap_and_soft_are_not_silent_about_nan(index):
    x, labels, margin, where = CASES["random"]
    x = x.copy()
    x[4, 2] = np.nan
    (loss, _), _ = compiled_valued(index)(x, margin, labels, where)
    assert np.isnan(loss)


# A margin for each anchor

OF_EACH = [
    *(
        {"reduction": reduction, "mining": mining}
        for reduction, mining in zip((*REDUCTIONS, "mean"), MININGS, strict=True)
    ),
    {"implementation": "sorted"},
    {"implementation": "sorted", "mining": "semihard"},
    {"implementation": "sorted", "mining": "hard", "reduction": "sum"},
    {"soft": True},
    {"soft": True, "mining": "batch_hard"},
    {"swap": True},
    {"swap": True, "soft": True, "mining": "semihard", "distance": "cosine"},
]


@pytest.mark.parametrize(
    "options", OF_EACH, ids=lambda options: "-".join(map(str, options.values()))
)
def test_a_margin_for_each_anchor(monkeypatch, options):
    """In blocks, the last of which is not full; what padding has as its margin is nothing."""
    monkeypatch.setattr(batch_all, "block_size", lambda anchors, references, width: 5)
    margin = np.random.default_rng(3).uniform(-0.5, 2, N).astype(np.float32)
    known = {name: value for name, value in options.items() if name != "implementation"}

    def loss_fn(x, margin, labels, where):
        return mj.batch_all_triplet_loss(x, labels, margin, where=where, **options)

    differentiate = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True))
    for case in ("unbalanced", "padded"):
        x, labels, _, where = CASES[case]
        answer = oracle.batch_all(x, labels, margin, where=where, **known)
        given = np.where(where, margin, np.float32(np.nan))
        (loss, stats), (to_x, to_margin) = differentiate(x, given, labels, where)

        np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
        assert_stats(stats, answer)
        assert_gradient(to_x, answer.to_embeddings)
        np.testing.assert_allclose(to_margin, answer.to_margin, rtol=1e-5, atol=1e-7)
        assert np.any(answer.to_margin)


def test_equal_margins_of_all_anchors_are_the_one():
    x, labels, margin, where = CASES["padded"]
    run = jax.jit(mj.batch_all_triplet_loss)
    one, each = (run(x, labels, m, where=where) for m in (margin, np.full(N, margin)))
    chex.assert_trees_all_equal(one, each)


def test_a_margin_for_each_anchor_with_references():
    x, labels, _, where = CASES["padded"]
    rng = np.random.default_rng(1)
    margin = rng.uniform(0, 2, N).astype(np.float32)
    given = {"references": rng.normal(size=(9, DIM)).astype(np.float32), "where": where}
    given["reference_labels"] = rng.integers(0, 4, 9).astype(np.int32)
    answer = oracle.batch_all(x, labels, margin, **given)
    loss, stats = jax.jit(mj.batch_all_triplet_loss)(x, labels, margin, **given)
    np.testing.assert_allclose(loss, answer.loss, rtol=1e-5)
    assert_stats(stats, answer)


# Counts


@functools.cache
def compiled_stats(distance="euclidean"):
    return jax.jit(
        lambda x, labels, margin: mj.batch_all_triplet_loss(x, labels, margin, distance=distance)[1]
    )


def test_twelve_triplets():
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    assert compiled_stats()(x, np.array([0, 0, 1, 1, 2]), 0.2).totals()["valid"] == 12


@pytest.mark.parametrize("repeats", [1, 3])
def test_number_of_triplets_of_repeated_labels(repeats):
    n = 10 * repeats
    x = np.random.default_rng(0).normal(size=(n, DIM)).astype(np.float32)
    stats = compiled_stats()(x, np.tile(np.arange(10), repeats), 0.2)
    assert stats.totals()["valid"] == n * (repeats - 1) * (n - repeats)


def test_counts_are_exact_past_2_to_the_24():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([5, -3, 0, 9], [401, 299, 201, 123]))
    x = rng.integers(0, 4, size=(1024, 8))
    margin = 3
    # Squares of whole numbers: the library's float32 distances equal these integers exactly.
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    semihard, hard = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
    for a in range(1024):
        d_an = np.sort(squared[a, labels != labels[a]])
        d_ap = np.delete(squared[a], a)[np.delete(labels, a) == labels[a]]
        hard[a] = np.searchsorted(d_an, d_ap, side="right").sum()
        semihard[a] = np.searchsorted(d_an, d_ap + margin, side="left").sum() - hard[a]

    stats = compiled_stats("squared_euclidean")(x.astype(np.float32), labels, margin)

    np.testing.assert_array_equal(stats.hard, hard)
    np.testing.assert_array_equal(stats.semihard, semihard)
    valid = sum(n * (n - 1) * (1024 - n) for n in (401, 299, 201, 123))
    active = int(hard.sum() + semihard.sum())
    assert min(valid - active, active) > 2**24
    assert stats.totals() == {
        "valid": valid,
        "easy": valid - active,
        "semihard": int(semihard.sum()),
        "hard": int(hard.sum()),
    }
    np.testing.assert_allclose(stats.easy_fraction, (valid - active) / valid, rtol=1e-6)


@pytest.mark.parametrize("columns", [5, 2**16 - 1, 2**16, 2**16 + 1])
def test_rows_are_counted_whatever_their_length(columns):
    """Two counts share 32 bits while they fit; every triplet active and hard is the most."""
    full, half = np.ones((2, columns), bool), np.tile([True, False], columns)[: 2 * columns]
    for first, second in ((full, full), (full, half.reshape(2, columns)), (full, ~full)):
        for mask, count in zip((first, second), tile._count(first, second), strict=True):
            assert count.dtype == jnp.int32
            np.testing.assert_array_equal(count, mask.sum(1))


def test_easy_fraction():
    x, labels, margin, where = CASES["random"]
    (_, stats), _ = compiled()(x, labels, margin, where)
    totals = stats.totals()
    np.testing.assert_allclose(stats.easy_fraction, totals["easy"] / totals["valid"], rtol=1e-6)
    (_, nothing), _ = compiled()(*CASES["one_class"])
    assert np.isnan(nothing.easy_fraction)


@pytest.mark.parametrize("mining", MININGS)
def test_counts_do_not_depend_on_mining(mining):
    (_, everything), _ = compiled()(*CASES["random"])
    (_, stats), _ = compiled("euclidean", "mean_active", mining)(*CASES["random"])
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(stats, name), getattr(everything, name))


def test_statistics_keep_the_order_of_the_batch():
    x, labels, margin, where = CASES["grid_1"]
    order = np.random.default_rng(3).permutation(N)
    (loss, stats), (to_x, _) = compiled()(x, labels, margin, where)
    (loss2, stats2), (to_x2, _) = compiled()(x[order], labels[order], margin, where)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    np.testing.assert_allclose(to_x[order], to_x2, rtol=1e-5, atol=1e-6)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(stats, name)[order], getattr(stats2, name))
    for name in SUMS:
        np.testing.assert_allclose(getattr(stats, name)[order], getattr(stats2, name), rtol=1e-6)


@pytest.mark.parametrize("case", ["random", "padded"])
@pytest.mark.parametrize(
    "names",
    [
        np.array([INT32.min, INT32.max, -1, 0], np.int32),
        np.array([-128, 127, -1, 0], np.int8),
        np.array([255, 0, 128, 7], np.uint8),
        np.array([2**32 - 1, 0, 2**31, 7], np.uint32),
    ],
    ids=lambda names: names.dtype.name,
)
def test_labels_may_be_any_integers(names, case):
    x, labels, margin, where = CASES[case]
    (loss, stats), (to_x, _) = compiled()(x, labels, margin, where)
    (loss2, stats2), (to_x2, _) = compiled()(x, names[labels], margin, where)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    np.testing.assert_allclose(to_x, to_x2, rtol=1e-5, atol=1e-6)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(stats, name), getattr(stats2, name))


# Padding, degenerate batches, NaN


def test_padding_changes_nothing():
    x, labels, margin, where = CASES["padded"]
    (loss, stats), (to_x, to_margin) = compiled()(x, labels, margin, where)
    clean, anything = np.where(where[:, None], x, 3), np.where(where, labels, INT32.max)
    for other in (compiled()(clean, labels, margin, where), compiled()(x, anything, margin, where)):
        (loss2, stats2), (to_x2, to_margin2) = other
        assert (loss, to_margin) == (loss2, to_margin2)
        np.testing.assert_array_equal(to_x, to_x2)
        chex.assert_trees_all_equal(stats, stats2)
    assert not np.any(to_x[~where])
    assert not np.any(stats.valid[~where])

    kept, kept_stats = jax.jit(mj.batch_all_triplet_loss)(x[where], labels[where], margin)
    np.testing.assert_allclose(loss, kept, rtol=1e-6)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(stats, name)[where], getattr(kept_stats, name))


@pytest.mark.parametrize("config", CONFIGS, ids="-".join)
@pytest.mark.parametrize("case", ["one_class", "all_distinct", "only_padding"])
def test_no_triplets(config, case):
    (loss, stats), (to_x, to_margin) = compiled(*config)(*CASES[case])
    assert (loss, to_margin) == (0, 0)
    assert not np.any(to_x)
    assert stats.totals() == {"valid": 0, "easy": 0, "semihard": 0, "hard": 0}


def test_a_single_row():
    (loss, stats), (to_x, _) = jax.jit(value_and_grad())(
        np.ones((1, DIM), np.float32), np.array([3]), 0.2, np.array([True])
    )
    assert loss == 0
    assert not np.any(to_x)
    assert stats.totals()["valid"] == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_easy_triplets(reduction):
    labels = np.repeat([0, 1], 6)
    x = np.where(labels[:, None] == 0, 0, 9).astype(np.float32) * np.ones(DIM, np.float32)
    (loss, stats), (to_x, to_margin) = compiled("euclidean", reduction, "all")(
        x, labels, np.float32(0.2), np.ones(N, bool)
    )
    assert (loss, to_margin) == (0, 0)
    assert not np.any(to_x)
    assert stats.totals()["easy"] == stats.totals()["valid"] == N * 5 * 6


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_collapsed_embeddings(distance, value):
    x = np.full((N, DIM), value, np.float32)
    _, labels, margin, where = CASES["random"]
    (loss, _), (to_x, to_margin) = compiled(distance, *CONFIGS[0][1:])(x, labels, margin, where)
    np.testing.assert_allclose(loss, margin, atol=2e-3)  # stuck at the margin, as it should be
    assert np.isfinite(to_x).all()
    np.testing.assert_allclose(to_margin, 1, rtol=1e-6)


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("length", [1e-8, 1e-15, 1e-21, 0.0])  # squares leave float32 on the way
def test_gradients_are_finite_for_short_embeddings(distance, length):
    x, labels, margin, where = CASES["random"]
    x = x.copy()
    x[[0, 5]] *= np.float32(length)
    (loss, _), (to_x, _) = compiled(distance, *CONFIGS[0][1:])(x, labels, margin, where)
    assert np.isfinite(loss)
    assert np.isfinite(to_x).all()


def test_cosine_does_not_depend_on_lengths():
    x, labels, margin, where = CASES["random"]
    length = np.logspace(-25, 25, N, dtype=np.float32)[:, None]
    run = compiled("cosine", *CONFIGS[0][1:])
    (loss, stats), (to_x, _) = run(x, labels, margin, where)
    (loss2, stats2), (to_x2, _) = run(x * length, labels, margin, where)
    np.testing.assert_allclose(loss, loss2, rtol=1e-5)
    np.testing.assert_allclose(to_x, to_x2 * length, rtol=1e-3, atol=1e-6)
    assert stats.totals() == stats2.totals()


@pytest.mark.parametrize("config", CONFIGS, ids="-".join)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_not_silent(config, bad):
    x, labels, margin, where = CASES["random"]
    x = x.copy()
    x[4, 2] = bad
    (loss, _), _ = compiled(*config)(x, labels, margin, where)
    assert np.isnan(loss)


# Types and transformations


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_computed_in_float32(dtype):
    x, labels, margin, where = CASES["random"]
    x = jnp.asarray(x, dtype)
    (loss, stats), (to_x, to_margin) = compiled()(x, labels, margin, where)
    wide = compiled()(x.astype(jnp.float32), labels, margin, where)
    (wide_loss, wide_stats), (wide_to_x, wide_to_margin) = wide
    assert to_x.dtype == dtype
    assert loss.dtype == jnp.float32
    assert (loss, to_margin) == (wide_loss, wide_to_margin)
    np.testing.assert_array_equal(to_x, wide_to_x.astype(dtype))
    chex.assert_trees_all_equal(stats, wide_stats)


def test_eager_equals_jit():
    arguments = CASES["padded"]
    (loss, stats), gradients = value_and_grad()(*arguments)
    (loss2, stats2), gradients2 = compiled()(*arguments)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    chex.assert_trees_all_close(gradients, gradients2, rtol=1e-5, atol=1e-6)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(stats, name), getattr(stats2, name))


def test_outside_jit_it_is_compiled_once():
    traced = []

    def distance(a, b):
        traced.append(a.shape)
        return jnp.abs(a[:, None] - b[None]).sum(-1)

    for margin, seed in ((0.2, 0), (0.5, 1)):
        rng = np.random.default_rng(seed)
        x, labels = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 3, 7)
        _, stats = mj.batch_all_triplet_loss(x, labels, margin, distance=distance)
        assert stats.totals() == oracle.batch_all(x, labels, margin, distance="manhattan").counts
    assert len(traced) == 1


def test_vmap():
    # Classes of different sizes: the loop over positives has another bound in each.
    names = ("random", "unbalanced", "padded", "one_class")
    stacked = [np.stack(column) for column in zip(*(CASES[name] for name in names), strict=True)]
    result = jax.jit(jax.vmap(value_and_grad()))(*stacked)
    for i, name in enumerate(names):
        (loss, stats), gradients = jax.tree.map(lambda v, i=i: v[i], result)
        (loss2, stats2), gradients2 = compiled()(*CASES[name])
        np.testing.assert_allclose(loss, loss2, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), gradients, gradients2
        )
        for count in COUNTS:
            np.testing.assert_array_equal(getattr(stats, count), getattr(stats2, count))


def test_new_margins_and_labels_do_not_recompile():
    x, labels, _, where = CASES["random"]
    traces = 0

    @jax.jit
    def loss_fn(x, labels, margin, where):
        nonlocal traces
        traces += 1
        return mj.batch_all_triplet_loss(x, labels, margin, where=where)[0]

    losses = [loss_fn(x, labels, jnp.float32(margin), where) for margin in (0.1, 0.2, 1.0)]
    loss_fn(x, np.zeros_like(labels), jnp.float32(0.1), where)
    assert losses[0] < losses[1] < losses[2]
    assert traces == 1


def test_differentiating_twice_says_so():
    x, labels, margin, where = CASES["random"]

    def loss_fn(x):
        return mj.batch_all_triplet_loss(x, labels, margin, where=where)[0]

    gradient = jax.grad(loss_fn)
    twice = {
        "reverse": jax.grad(lambda x: jnp.sum(gradient(x) ** 2)),
        "reverse_jit": jax.jit(jax.grad(lambda x: jnp.sum(jax.jit(gradient)(x) ** 2))),
        "hessian": jax.hessian(loss_fn),
        "hessian_vector": lambda x: jax.jvp(gradient, (x,), (x,)),
    }
    for differentiate in twice.values():
        with pytest.raises(TypeError, match="can be differentiated only once, in reverse mode"):
            differentiate(x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss_fn, (x,), (x,))
    constant = jax.grad(lambda x: jnp.sum(x * gradient(jax.lax.stop_gradient(x))))(x)
    np.testing.assert_array_equal(constant, gradient(x))


def test_checkpoint():
    x, labels, margin, where = CASES["random"]
    _, (to_x, _) = compiled()(x, labels, margin, where)
    loss_fn = jax.checkpoint(
        lambda x: mj.batch_all_triplet_loss(2 * x, labels, 2 * margin, where=where)[0]
    )
    np.testing.assert_allclose(jax.jit(jax.grad(loss_fn))(x), 2 * to_x, rtol=1e-5, atol=1e-6)


def test_donated_buffers():
    x, labels, margin, where = CASES["random"]
    (loss, _), (to_x, _) = compiled()(x, labels, margin, where)

    def descend(x):
        (loss, _), (to_x, _) = value_and_grad()(x, labels, margin, where)
        return loss, x - to_x

    donated = jnp.array(x)
    loss2, moved = jax.jit(descend, donate_argnums=0)(donated)
    assert donated.is_deleted()
    np.testing.assert_allclose(loss2, loss, rtol=1e-6)
    np.testing.assert_allclose(moved, x - to_x, rtol=1e-5, atol=1e-6)


def test_statistics_are_constants_to_differentiation():
    x, labels, margin, _ = CASES["random"]
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(mj.batch_all_triplet_loss(x, labels, margin)[1].sum_an))
    )(x)
    assert not np.any(gradient)


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_every_matrix_product_asks_for_the_highest_precision(distance):
    traced = jax.jit(value_and_grad(distance)).trace(*CASES["random"])
    text = traced.lower(lowering_platforms=("tpu", "cuda")).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 3  # the distances, and their gradient to either side
    for line in products:
        assert "precision = [HIGHEST, HIGHEST]" in line


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("distance", METRICS)
def test_strict_promotion(distance, dtype):
    x, labels, margin, where = CASES["random"]
    x = jnp.asarray(x, dtype)
    with jax.numpy_dtype_promotion("strict"):
        for reduction, mining in zip((*REDUCTIONS, "sum"), MININGS, strict=True):
            traced = jax.eval_shape(
                value_and_grad(distance, reduction, mining), x, labels, margin, where
            )
            assert traced[1][0].dtype == dtype


# Checks


def test_plain_lists_and_numbers_are_accepted():
    loss, stats = mj.batch_all_triplet_loss([[0.0], [1.0], [1.5], [9.0]], [0, 0, 1, 1], 0)
    assert stats.totals() == {"valid": 8, "easy": 5, "semihard": 0, "hard": 3}
    assert loss == (0.5 + 7.0 + 6.0) / 3


ONES = np.ones((4, 3), np.float32)


@dataclasses.dataclass
class Weighted:
    """A distance that cannot be hashed."""

    weights: np.ndarray

    def __call__(self, x, y):
        return euclidean(x * self.weights, y * self.weights)


class Column:
    """As a table has them."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


WRONG = {
    "one_dimension": ({"embeddings": np.ones(4, np.float32)}, ValueError, r"\[rows, dim\].*\(4,\)"),
    "three_dimensions": ({"embeddings": ONES[None]}, ValueError, r"\[rows, dim\].*\(1, 4, 3\)"),
    "no_rows": ({"embeddings": ONES[:0], "labels": []}, ValueError, r"neither of them 0.*\(0, 3\)"),
    "no_columns": ({"embeddings": ONES[:, :0]}, ValueError, r"neither of them 0.*\(4, 0\)"),
    "int_embeddings": ({"embeddings": ONES.astype(int)}, TypeError, r"floating point; got int"),
    "float_labels": ({"labels": np.zeros(4)}, TypeError, r"labels must be integers; got float"),
    "bool_labels": ({"labels": np.ones(4, bool)}, TypeError, r"labels must be integers; got bool"),
    "text_labels": (
        {"labels": ["a", "a", "b", "b"]},
        TypeError,
        r"labels must be integers; got <U",
    ),
    "large_labels": ({"labels": [0, 0, 1, 2**40]}, ValueError, r"must fit int32; got 0 to 1099511"),
    "huge_labels": (
        {"labels": [0, 0, 1, 2**70]},
        TypeError,
        r"labels must be integers; got object",
    ),
    "few_labels": ({"labels": [0, 0, 1]}, ValueError, r"labels must .*\(4,\).*; got \(3,\)"),
    "column_labels": ({"labels": [[0]] * 4}, ValueError, r"labels must .*\(4,\).*; got \(4, 1\)"),
    "int_where": ({"where": [1, 1, 1, 0]}, TypeError, r"where must be boolean; got int"),
    "short_where": ({"where": [True]}, ValueError, r"where must have shape \(4,\); got \(1,\)"),
    "distance": (
        {"distance": "euclidian"},
        ValueError,
        r"distance must be one of euclidean.*got 'euclidian'. Did you mean 'euclidean'\?",
    ),
    "reduction": (
        {"reduction": "mean-active"},
        ValueError,
        r"reduction must be one of mean_active.*'mean-active'. Did you mean 'mean_active'\?",
    ),
    "mining": (
        {"mining": "semi-hard"},
        ValueError,
        r"mining must be one of all.*got 'semi-hard'. Did you mean 'semihard'\?",
    ),
    "distance_of_one_column": (
        {"distance": lambda x, y: jnp.sum(jnp.abs(x - y), axis=1, keepdims=True)},
        ValueError,
        r"must return shape \[B, N\] .*; got \(4, 1\) for \(4, 3\) and \(4, 3\)",
    ),
    "distance_of_rows": (
        {"distance": lambda x, y: jnp.sum(jnp.abs(x - y), axis=1)},
        ValueError,
        r"must return shape \[B, N\] .*; got \(4,\)",
    ),
    "distance_of_columns_by_rows": (
        {
            "distance": lambda x, y: euclidean(y, x),
            "references": ONES[:2],
            "reference_labels": [0, 1],
        },
        ValueError,
        r"got \(2, 4\) for \(4, 3\) and \(2, 3\)",
    ),
    "integer_distance": (
        {"distance": lambda x, y: jnp.zeros((len(x), len(y)), int)},
        TypeError,
        r"a distance must return floating point; got int",
    ),
    "distance_with_an_array": (
        {"distance": Weighted(np.ones(3))},
        TypeError,
        r"must be hashable, since programs are compiled for it; got Weighted: ",
    ),
    "no_such_thing": ({"mining": 3}, ValueError, r"mining must be one of .*; got 3\.$"),
    "nan_margin": ({"margin": float("nan")}, ValueError, r"and finite; got nan"),
    "infinite_margin": ({"margin": np.float32("inf")}, ValueError, r"finite; got inf"),
    "nan_margin_array": ({"margin": np.array(np.nan)}, ValueError, r"finite; got nan"),
    "three_margins": ({"margin": np.ones(3)}, ValueError, r"one for each anchor; got shape \(3,\)"),
    "complex_margin": ({"margin": 1j}, TypeError, r"margin must be a real number; got complex"),
    "array_of_text_as_margin": ({"margin": np.array("0.2")}, TypeError, r"a number, .*; got <U3"),
    "text_margin": ({"margin": "0.2"}, TypeError, r"margin must be a number, .*; got str"),
    "state_as_margin": (
        {"margin": mj.dams().init()},
        TypeError,
        r"margin must be a number, such as state\.margin; got ScheduleState",
    ),
    "no_reference_labels": ({"references": ONES}, ValueError, r"references need reference_labels"),
    "no_references": ({"reference_labels": [0, 1]}, ValueError, r"need references"),
    "where_without_references": ({"reference_where": [True]}, ValueError, r"need references"),
    "dimensions": (
        {"references": ONES[:, :2], "reference_labels": [0, 0, 1, 1]},
        ValueError,
        r"as many columns as embeddings, 3; got shape \(4, 2\)",
    ),
    "few_reference_labels": (
        {"references": ONES, "reference_labels": [0]},
        ValueError,
        r"reference_labels must .*\(4,\).*references; got \(1,\)",
    ),
    "labels_of_no_common_type": (
        {"references": ONES, "reference_labels": np.array([0, 0, 1, 2**32 - 1], np.uint32)},
        TypeError,
        r"no integer type in use holds labels and reference_labels; got int32 and uint32",
    ),
    "int_references": (
        {"references": ONES.astype(int), "reference_labels": [0, 0, 1, 1]},
        TypeError,
        r"references must be floating point; got int",
    ),
    "reference_where_type": (
        {"references": ONES, "reference_labels": [0, 0, 1, 1], "reference_where": [1, 1, 1, 1]},
        TypeError,
        r"reference_where must be boolean; got int",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_errors_say_what_was_expected_and_what_came(wrong, error, message):
    right = {"embeddings": ONES, "labels": [0, 0, 1, 1], "margin": 0.2}
    with pytest.raises(error, match=message):
        mj.batch_all_triplet_loss(**(right | wrong))


def test_counts_that_could_exceed_their_integers_are_refused():
    """46,341 positives and as many negatives make 2^31 + 4,633 triplets of one anchor."""

    def loss(x, y):
        labels = jnp.zeros(len(y), jnp.int32)
        return mj.batch_all_triplet_loss(
            x, jnp.zeros(len(x), jnp.int32), 0.2, references=y, reference_labels=labels
        )

    def trace(anchors, rows):
        shapes = (jax.ShapeDtypeStruct((n, 2), jnp.float32) for n in (anchors, rows))
        return jax.eval_shape(loss, *shapes)

    assert trace(1, 92_681)[1].hard.shape == (1,)
    with pytest.raises(ValueError, match=r"at most 92,681 rows, .* an int32; got 92,682"):
        trace(1, 92_682)
    shapes = ((92_682, 2), jnp.float32), ((92_682,), jnp.int32)
    batch = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    with pytest.raises(ValueError, match="got 92,682"):
        jax.eval_shape(lambda x, labels: mj.batch_all_triplet_loss(x, labels, 0.2), *batch)


@pytest.mark.parametrize("implementation", ["loop", "sorted"])
@pytest.mark.parametrize("option", ["plain", "swap", "soft", "where", "references"])
def test_nothing_is_promoted_in_silence(option, implementation):
    """Neither ranks nor types, as libraries of others may demand it of all that they call."""
    x, labels, margin, where = (jnp.asarray(v) for v in CASES["random"])
    options = {
        "plain": {},
        "swap": {"swap": True},
        "soft": {"soft": True},
        "where": {"where": where},
        "references": {"references": x, "reference_labels": labels},
    }[option]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for distance, mining in zip(METRICS, (*MININGS, *MININGS), strict=False):
            if option == "swap" and mining == "batch_hard":
                continue

            def loss(x, distance=distance, mining=mining):
                return mj.batch_all_triplet_loss(
                    x,
                    labels,
                    margin,
                    distance=distance,
                    mining=mining,
                    implementation=implementation,
                    **options,
                )

            (_, stats), _ = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), x)
            jax.eval_shape(mj.EpochStats.of, stats)


@pytest.mark.parametrize("margin", [2**40, 2**70, np.int64(2**40), np.array(2**40)])
def test_a_margin_may_be_any_integer(margin):
    assert mj.batch_all_triplet_loss(ONES, [0, 0, 1, 1], margin)[0] == float(margin)


@pytest.mark.parametrize("kind", [np.array, list, Column])
def test_labels_that_do_not_fit_are_refused(kind):
    """Hashed identities, say: cut to 32 bits they would merge without a word."""
    labels = kind([0, 0, 2**32, 2**32])
    with pytest.raises(ValueError, match="must fit int32; got 0 to 4294967296"):
        mj.batch_all_triplet_loss(ONES, labels, 0.2)


def test_a_distance_of_ones_own_may_compute_in_a_narrow_float():
    """What it returns is widened: sums over triplets are float32."""

    def narrow(x, y):
        x, y = (v.astype(jnp.bfloat16) for v in (x, y))
        return jnp.sum(jnp.abs(x[:, None] - y[None]), axis=-1)

    x, labels, margin, _ = CASES["random"]
    loss, stats = mj.batch_all_triplet_loss(x, labels, margin, distance=narrow)
    assert loss.dtype == stats.sum_ap.dtype == jnp.float32
    exact = mj.batch_all_triplet_loss(x, labels, margin, distance="manhattan")[0]
    assert loss == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize("kind", ["variable", "list"])
def test_labels_may_be_what_jax_takes_for_an_array(kind):
    def stats(labels):
        as_given = nnx.Variable(labels) if kind == "variable" else list(labels)
        return mj.batch_all_triplet_loss(ONES, as_given, 0.2)[1]

    labels = jnp.array([0, 0, 1, 1])
    for run in (stats, jax.jit(stats)):
        assert run(labels).totals()["valid"] == 8


def test_margins_in_a_list_are_looked_at_too():
    x, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="margin must be below 1e38 and finite"):
            mj.batch_all_triplet_loss(x, labels, [0.2, bad, 0.2, 0.2])
    for none in ([0.2, None], [{}], [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match=r"margin must be a number, such as .*; got list"):
            mj.batch_all_triplet_loss(x, labels, none)
    some = [0.1, 0.2, 0.3, 0.4]
    expected, _ = mj.batch_all_triplet_loss(x, labels, np.array(some))
    for given in (some, tuple(map(jnp.float32, some))):
        assert mj.batch_all_triplet_loss(x, labels, given)[0] == expected


def test_a_margin_that_is_nan_is_not_silent():
    x, labels, _, where = CASES["random"]
    (loss, _), _ = compiled()(x, labels, np.float32(np.nan), where)
    assert np.isnan(loss)
