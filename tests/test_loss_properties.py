"""What must hold of every loss that has a name, whatever it sums."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.losses import LOSSES, make_loss
from margin_jax.losses.base import first_state, in_epoch, keeps_state

N, DIM, CLASSES = 32, 8, 5
COUNTS = (40, 3, 17, 9, 5)
# A loss whose parameters have a row for each class.
OF_CLASSES = ("arcface", "cosface", "balancing_margin")
OF_COUNTS = ("balancing_margin", "transplant")


# At the published 0.01 hardly anything is easy.
SAID = {name: f"{name}:lam=0.8" for name in ("fisher_triplet", "fisher_contrastive")}


def loss_of(name):
    return in_epoch(make_loss(SAID.get(name, name), {}), 1, COUNTS)


def params_of(name):
    return loss_of(name).init(jax.random.key(5), DIM, CLASSES)


def batch(seed=0):
    """Classes of unlike sizes in any order, some padding; vectors of any length."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), [12, 9, 6, 4, 1]))
    where = rng.random(N) < 0.85
    x = rng.normal(size=(N, DIM)) + 0.7 * np.eye(DIM)[labels]
    return x.astype(np.float32), labels.astype(np.int32), where


def called(loss, *args, **options):
    """``(loss, stats)``; of one that keeps a state, in its first step."""
    if keeps_state(loss):
        return loss(*args, state=loss.init_state(), **options)[:2]
    return loss(*args, **options)


@functools.cache
def compiled(name):
    loss = loss_of(name)

    def of(params, x, margin, labels, where):
        return called(loss, params, x, labels, margin, where=where)

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))


def run(name, x, labels, where=None, margin=0.3, params=None):
    where = np.ones(len(x), bool) if where is None else where
    params = params_of(name) if params is None else params
    return compiled(name)(params, x, np.float32(margin), labels, where)


def assert_close(found, expected):
    (loss, stats), gradients = found
    (loss2, stats2), gradients2 = expected
    np.testing.assert_allclose(loss, loss2, rtol=1e-5)
    assert stats.totals() == stats2.totals()
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradients2))
    for g, g2 in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients2), strict=True):
        np.testing.assert_allclose(g, g2, rtol=1e-4, atol=1e-5 * scale)


every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
def test_it_has_something_to_learn(name):
    """Or what follows would hold of a loss that is 0."""
    (loss, stats), (_, to_x) = run(name, *batch())
    counts = stats.totals()
    assert loss != 0
    assert np.abs(to_x).max() > 1e-4
    assert min(counts["easy"], counts["hard"]) > 0


@every_loss
def test_the_order_of_rows_is_nothing(name):
    x, labels, where = batch()
    order = np.random.default_rng(1).permutation(N)
    (loss, stats), (to_params, to_x) = run(name, x[order], labels[order], where[order])
    (_, stats2), _ = expected = run(name, x, labels, where)
    np.testing.assert_array_equal(stats.valid, stats2.valid[order])
    np.testing.assert_array_equal(stats.hard, stats2.hard[order])
    back = np.argsort(order)
    assert_close(((loss, stats), (to_params, to_x[back])), expected)


# Elsewhere counts of images, which are a part of the loss's value, go with the names.
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OF_COUNTS])
def test_names_of_classes_are_nothing(name):
    """Where classes have parameters, these go with the names."""
    x, labels, where = batch()
    names = np.array([3, 0, 4, 1, 2], np.int32)
    params = params_of(name)
    moved = params[np.argsort(names)] if name in OF_CLASSES else params
    (value, (to_params, to_x)) = run(name, x, names[labels], where, params=moved)
    to_params = to_params[names] if name in OF_CLASSES else to_params
    assert_close((value, (to_params, to_x)), run(name, x, labels, where))


@functools.cache
def of_real_rows(name):
    """The loss without any mask."""
    x, labels, where = batch()
    loss = loss_of(name)

    def alone(params, x):
        return called(loss, params, x, jnp.asarray(labels[where]), 0.3)

    differentiate = jax.jit(jax.value_and_grad(alone, argnums=(0, 1), has_aux=True))
    return differentiate(params_of(name), x[where])


@every_loss
@pytest.mark.parametrize("junk", [np.nan, np.inf, 0.0])
def test_padding_is_nothing(name, junk):
    """The loss of the real rows alone, to rounding; whatever stands in the others."""
    x, labels, where = batch()
    padded = np.where(where[:, None], x, np.float32(junk))
    others = np.where(where, labels, 99).astype(np.int32)  # no class
    (value, (to_params, to_x)) = run(name, padded, others, where)
    assert not np.any(to_x[~where])
    assert not np.any(value[1].valid[~where])
    assert_close((value, (to_params, to_x[where])), of_real_rows(name))


@every_loss
def test_devices_are_nothing(name):
    """The loss and its gradients; parameters, the same on every device, are not added up."""
    x, labels, where = batch()
    loss = loss_of(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def sharded(params, x, margin, labels, where):
        local = functools.partial(called, loss, axis_name="data")
        return jax.shard_map(
            lambda params, x, labels, margin, where: local(params, x, labels, margin, where=where),
            mesh=mesh,
            in_specs=(P(), P("data"), P("data"), P(), P("data")),
            out_specs=(P(), P("data")),
        )(params, x, labels, margin, where)

    given = params_of(name), x, jnp.float32(0.3), labels, where
    found = jax.block_until_ready(jax.jit(sharded)(*given))
    assert_close(found, run(name, x, labels, where))


@every_loss
def test_narrow_floats_are_computed_in_float32(name):
    x, labels, _ = batch()
    narrow = jnp.asarray(x, jnp.bfloat16)
    (loss, stats), (_, to_x) = run(name, narrow, labels)
    assert loss.dtype == jnp.float32
    assert to_x.dtype == jnp.bfloat16
    (wide, counts), (_, to_wide) = run(name, narrow.astype(jnp.float32), labels)
    assert loss == wide
    assert stats.totals() == counts.totals()
    np.testing.assert_array_equal(to_x, to_wide.astype(jnp.bfloat16))


@every_loss
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["equal", "zero", "pairs", "far"])
def test_gradients_are_finite_at_duplicates_and_at_zero(name, margin, kind):
    x, labels, _ = batch()
    x = {
        "equal": np.ones_like(x),
        "zero": np.zeros_like(x),
        "pairs": np.concatenate([x[:16], x[:16]]),
        "far": np.concatenate([1e-18 * x[:16], 1e15 * x[16:]]),
    }[kind]
    (loss, _), gradients = run(name, x, labels, margin=margin)
    assert np.isfinite(loss)
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(gradient))
    params = params_of(name)
    if name in OF_CLASSES:  # rows that are their proxies
        (loss, _), gradients = run(name, np.asarray(params)[labels], labels, margin=margin)
        assert np.isfinite(loss)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in LOSSES
        for kind in ("no row", "one class", "one of each")
        if kind == "no row" or name not in OF_CLASSES  # whose proxies are positives and negatives
    ],
)
def test_without_a_triplet_there_is_no_loss(name, kind):
    x, labels, _ = batch()
    labels = np.zeros_like(labels) if kind == "one class" else labels
    where = np.full(N, kind != "no row")
    if kind == "one of each":
        where[:], where[np.unique(labels, return_index=True)[1]] = False, True
    (loss, stats), gradients = run(name, x, labels, where)
    assert loss == 0
    assert stats.totals()["valid"] == 0
    assert not any(np.any(gradient) for gradient in jax.tree.leaves(gradients))


@every_loss
def test_a_new_margin_compiles_nothing(name):
    x, labels, where = batch()
    run(name, x, labels, where, 0.2)
    before = compiled(name)._cache_size()
    for margin in (0.1, 0.5):
        run(name, x, labels, where, margin)
    assert compiled(name)._cache_size() == before


@every_loss
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_matrix_products_have_the_highest_precision(name, platform):
    x, labels, where = batch()
    given = params_of(name), x, np.float32(0.3), labels, where
    lowered = compiled(name).trace(*given).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert all("HIGHEST" in line for line in products)
    assert products or "fisher" in name  # which has sums only


@every_loss
def test_it_trains(name):
    """Through the step, as `fit` does it: the margin moves, all that is trained moves."""
    import optax

    def embed(params, batch_stats, rows, *, train, key):
        return rows @ params, batch_stats

    loss, optimizer = loss_of(name), optax.sgd(0.1)
    params = np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32)
    schedule = mj.dams(margin=0.3, threshold=0.0)
    of_loss = {"loss_params": params_of(name), "loss_state": first_state(loss)}
    state = mj.create_state(params, {}, optimizer, schedule, jax.random.key(0), **of_loss)
    step = mj.make_train_step(embed, optimizer, loss)
    x, labels, _ = batch()
    after, record = mj.train_epoch(state, step, [(x, labels)] * 3, schedule)
    assert record.next_margin > record.margin
    assert record.valid > 0
    for moved, still in zip(
        jax.tree.leaves(after.trained), jax.tree.leaves(state.trained), strict=True
    ):
        assert np.any(np.asarray(moved) != np.asarray(still))


@pytest.mark.parametrize("x64", [False, True])
@every_loss
def test_nothing_is_promoted_in_silence(name, x64):
    """Neither ranks nor types, as libraries of others may demand it of all that they call."""
    x, labels, where = (jnp.asarray(v) for v in batch())
    loss, params, margin = loss_of(name), params_of(name), jnp.float32(0.3)

    def of(params, x, **options):
        return called(loss, params, x, labels, margin, **options)

    strict = jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict")
    with strict[0], strict[1], jax.enable_x64(x64):
        jax.eval_shape(jax.grad(of, argnums=(0, 1), has_aux=True), params, x)
        jax.eval_shape(jax.grad(of, argnums=(0, 1), has_aux=True), params, x, where=where)


@pytest.mark.parametrize(
    "name",
    [
        "arcface",
        "balancing_margin",
        "supcon",
        "fisher_triplet",
        "transplant",
        "dynamic_soft_margin",
    ],
)
def test_outside_jit_it_is_one_program(name, caplog):
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(7, DIM)).astype(np.float32), rng.integers(0, CLASSES, 7)
    loss, params = loss_of(name), params_of(name)
    with jax.log_compiles():
        found = called(loss, params, x, labels, 0.3)
    said = [record.getMessage() for record in caplog.records]
    programs = [line for line in said if line.startswith("Finished XLA compilation of")]
    # The rest brings the arguments to the device.
    assert len([line for line in programs if "_compute" in line or "_loss" in line]) == 1
    assert len(programs) < 12
    expected = jax.jit(functools.partial(called, loss))(params, x, labels, 0.3)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [float("inf"), np.float32("nan")])
def test_a_margin_that_is_no_number_is_refused(margin):
    x, labels, _ = batch()
    with pytest.raises(ValueError, match="margin must be below 1e38 and finite"):
        mj.triplet_stats(x, labels, margin)
    for name in LOSSES:
        with pytest.raises(ValueError, match="margin must be below 1e38 and finite"):
            called(loss_of(name), params_of(name), x, labels, margin)


def test_a_loss_with_an_array_in_it_says_that_it_must_be_hashable():
    x, labels, _ = batch()
    with pytest.raises(TypeError, match="a loss must be hashable"):
        mj.SupConLoss(temperature=jnp.float32(0.1))({}, x, labels, 0.2)
