"""`axis_name`: inside shard_map the triplets are those of the global batch, the work is shared."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import margin_jax as mj
from margin_jax.losses import batch_all

N, DIM = 64, 8
SHARDED = ("embeddings", "labels", "where", "references", "reference_labels", "reference_where")


def mesh_of(devices, axes=("data",)):
    shape = (devices,) if len(axes) == 1 else (2, devices // 2)
    return jax.make_mesh(
        shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:devices]
    )


def batch(seed=0):
    """Classes of 1 to 20 rows in any order, so that devices meet unlike ones; some padding."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([5, -3, 0, 9, 1, 7, 2], [20, 15, 11, 9, 5, 3, 1]))
    where = rng.random(N) < 0.9
    x = rng.normal(size=(N, DIM)).astype(np.float32)
    return {
        "embeddings": np.where(where[:, None], x, np.nan).astype(np.float32),
        "labels": labels.astype(np.int32),
        "where": where,
    }


def global_loss(devices, axes=("data",), check_vma=True, **options):
    """The loss under shard_map as a function of the global batch."""
    axis_name = axes[0] if len(axes) == 1 else axes

    def local(arrays, margin):
        return mj.batch_all_triplet_loss(margin=margin, axis_name=axis_name, **arrays, **options)

    return jax.shard_map(
        local,
        mesh=mesh_of(devices, axes),
        in_specs=(P(axis_name), P()),
        out_specs=(P(), P(axis_name)),
        check_vma=check_vma,
    )


def one_device(arrays, margin, **options):
    return mj.batch_all_triplet_loss(margin=margin, **arrays, **options)


def value_and_grad(loss_fn, arrays, margin):
    """(loss, stats), gradients to embeddings (and references) and to the margin; finished."""
    floats = {k: v for k, v in arrays.items() if v.dtype == np.float32}
    rest = {k: v for k, v in arrays.items() if k not in floats}

    def of_floats(floats, margin, rest):
        return loss_fn(floats | rest, margin)

    differentiate = jax.jit(jax.value_and_grad(of_floats, argnums=(0, 1), has_aux=True))
    # Several programs with collectives must not queue up on CPU devices: they can deadlock.
    return jax.block_until_ready(differentiate(floats, jnp.float32(margin), rest))


def assert_same(result, expected):
    (loss, stats), gradients = result
    (loss2, stats2), gradients2 = expected
    np.testing.assert_allclose(loss, loss2, rtol=1e-5)
    for name in ("valid", "easy", "semihard", "hard", "positives", "negatives"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(stats2, name), err_msg=name)
    for name in ("sum_ap", "sum_an", "sum_ap_squared", "sum_an_squared"):
        np.testing.assert_allclose(getattr(stats, name), getattr(stats2, name), 1e-5, err_msg=name)
    assert stats.totals() == stats2.totals()
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradients2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale),
        gradients,
        gradients2,
    )


@functools.cache
def expected_on_one_device(**options):
    return value_and_grad(functools.partial(one_device, **options), batch(), 0.3)


OPTIONS = [
    {},
    {"reduction": "mean", "mining": "semihard", "distance": "cosine"},
    {"reduction": "sum", "mining": "hard", "distance": "manhattan"},
    {"swap": True, "soft": True},
    {"mining": "batch_hard"},
]


@pytest.mark.parametrize(
    ("devices", "options"),
    [(2, OPTIONS[0]), (8, OPTIONS[0]), *((4, options) for options in OPTIONS[1:])],
)
def test_equals_one_device(devices, options):
    expected = expected_on_one_device(**options)
    counts = expected[0][1].totals()
    assert min(counts.values()) > 0
    assert_same(value_and_grad(global_loss(devices, **options), batch(), 0.3), expected)


@pytest.mark.parametrize("check_vma", [True, False])
def test_equals_one_device_over_two_axes(check_vma):
    loss_fn = global_loss(8, axes=("replica", "data"), check_vma=check_vma)
    assert_same(value_and_grad(loss_fn, batch(), 0.3), expected_on_one_device())


def test_references_are_gathered_too():
    """Each device brings its share of the references; no row of them is an anchor itself."""
    others = {
        f"reference{'s' if name == 'embeddings' else '_' + name}": value[:40]
        for name, value in batch(seed=1).items()
    }
    arrays = batch() | others
    expected = value_and_grad(one_device, arrays, 0.3)
    assert_same(value_and_grad(global_loss(4), arrays, 0.3), expected)


@pytest.mark.parametrize("options", [{}, {"soft": True, "reduction": "mean"}])
def test_a_margin_for_each_anchor_is_that_of_its_device(options):
    margin = np.random.default_rng(3).uniform(0, 1, N).astype(np.float32)

    def local(arrays, margin):
        return mj.batch_all_triplet_loss(margin=margin, axis_name="data", **arrays, **options)

    shared = jax.shard_map(local, mesh=mesh_of(4), in_specs=P("data"), out_specs=(P(), P("data")))
    found, expected = (
        jax.block_until_ready(
            jax.jit(jax.value_and_grad(of, argnums=1, has_aux=True))(batch(), margin)
        )
        for of in (shared, functools.partial(one_device, **options))
    )
    assert_same(found, expected)
    assert len(set(np.asarray(found[1]).tolist())) > 10


def test_many_blocks_a_device(monkeypatch):
    monkeypatch.setattr(batch_all, "block_size", lambda anchors, references, width: 3)
    assert_same(value_and_grad(global_loss(4), batch(), 0.3), expected_on_one_device())


# Gradients taken inside


def linear_loss(params, x, labels, where, axis_name=None):
    options = {"where": where, "axis_name": axis_name}
    return mj.batch_all_triplet_loss(x @ params, labels, 0.3, **options)[0]


to_linear = jax.jit(jax.grad(linear_loss))


@pytest.mark.parametrize(
    ("check_vma", "finish"),
    [
        (True, lambda gradient: gradient),
        (True, lambda gradient: jax.lax.pmean(gradient, "data")),  # changes nothing
        (False, lambda gradient: jax.lax.pmean(gradient, "data")),
    ],
    ids=["checked", "checked_pmean", "unchecked_pmean"],
)
def test_gradient_to_replicated_parameters_taken_inside(check_vma, finish):
    """A step as users write it: replicated parameters, gradients taken on each device."""
    arrays = batch()
    x = np.where(arrays["where"][:, None], arrays["embeddings"], 0)
    params = np.random.default_rng(2).normal(size=(DIM, 3)).astype(np.float32)
    given = (params, x, arrays["labels"], arrays["where"])
    step = jax.shard_map(
        lambda *given: finish(jax.grad(linear_loss)(*given, "data")),
        mesh=mesh_of(4),
        in_specs=(P(), *[P("data")] * 3),
        out_specs=P(),
        check_vma=check_vma,
    )
    gradient, expected = jax.block_until_ready(jax.jit(step)(*given)), to_linear(*given)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_gradient_to_embeddings_taken_inside():
    """It is the gradient of the global loss, other devices' triplets with these rows included."""
    arrays = batch()

    def local(arrays):
        def loss_fn(x):
            rest = arrays | {"embeddings": x}
            return mj.batch_all_triplet_loss(margin=0.3, axis_name="data", **rest)[0]

        return jax.grad(loss_fn)(arrays["embeddings"])

    inside = jax.shard_map(local, mesh=mesh_of(4), in_specs=P("data"), out_specs=P("data"))
    gradient = jax.block_until_ready(jax.jit(inside)(arrays))
    expected = expected_on_one_device()[1][0]["embeddings"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by", ["shard_map", "pmap"])
def test_gradient_to_embeddings_where_jax_does_not_know_what_is_the_same(by):
    """A device's part comes out times the number of devices, as the docstring says."""
    arrays, devices = batch(), 4

    def local(arrays):
        def loss_fn(x):
            rest = arrays | {"embeddings": x}
            return mj.batch_all_triplet_loss(margin=0.3, axis_name="data", **rest)[0]

        return jax.grad(loss_fn)(arrays["embeddings"])

    if by == "pmap":
        parts = {name: v.reshape(devices, -1, *v.shape[1:]) for name, v in arrays.items()}
        local_devices = jax.devices()[:devices]
        gradient = jax.pmap(local, axis_name="data", devices=local_devices)(parts)
    else:
        specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
        gradient = jax.jit(jax.shard_map(local, mesh=mesh_of(devices), **specs))(arrays)
    gradient = np.asarray(jax.block_until_ready(gradient)).reshape(arrays["embeddings"].shape)
    expected = expected_on_one_device()[1][0]["embeddings"]
    np.testing.assert_allclose(gradient / devices, expected, rtol=1e-4, atol=1e-6)


def test_without_axis_name_each_device_has_its_own_triplets():
    arrays = batch()

    def local(arrays):
        loss, stats = mj.batch_all_triplet_loss(margin=jnp.float32(0.3), **arrays)
        return loss[None], stats

    run = jax.jit(jax.shard_map(local, mesh=mesh_of(2), in_specs=P("data"), out_specs=P("data")))
    losses, stats = jax.block_until_ready(run(arrays))
    for part, half in enumerate((slice(0, 32), slice(32, 64))):
        loss, stats2 = jax.jit(one_device)({k: v[half] for k, v in arrays.items()}, 0.3)
        np.testing.assert_allclose(losses[part], loss, rtol=1e-5)
        np.testing.assert_array_equal(stats.hard[half], stats2.hard)


# The compiled program

COLLECTIVES = r"= .*\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)[\w-]*\("


def compiled_step(devices, block):
    """Loss and gradient of 1,024 rows, compiled for so many devices, never run."""
    mesh = mesh_of(devices)
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    loss_fn = global_loss(devices)

    def of_embeddings(x, labels, margin):
        return loss_fn({"embeddings": x, "labels": labels}, margin)

    arguments = (
        jax.ShapeDtypeStruct((1024, 64), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((1024,), jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),
    )
    differentiate = jax.jit(jax.value_and_grad(of_embeddings, has_aux=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            batch_all, "block_size", lambda anchors, references, width: min(anchors, block)
        )
        return differentiate.lower(*arguments).compile()


def computations(text):
    """name → lines of every computation of a compiled program."""
    found, name = {}, None
    for line in text.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            name = opening[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def reached(text, names):
    """Lines of the named computations and of all that they call."""
    found, seen, todo = computations(text), set(), list(names)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            calls = r"(?:calls|to_apply|body|condition)=%?([\w.-]+)"
            todo += re.findall(calls, "\n".join(found[name]))
    return [line for name in seen for line in found[name]]


def is_matmul(line):
    return "dot(" in line or "matmul" in line


def scan_trips(text):
    """Trips of the scan over blocks, the one loop of a known length with matrix products in it."""
    (trips,) = (
        int(re.search(r'known_trip_count":\{"n":"(\d+)"', line)[1])
        for line in text.splitlines()
        if (body := re.search(r" while\(.*body=%?([\w.-]+)", line))
        and any(map(is_matmul, reached(text, [body[1]])))
    )
    return trips


def test_compiled_program_shares_the_work():
    devices = 8
    # A block of 32 for both, so that every program loops over blocks.
    alone, shared = compiled_step(1, 32), compiled_step(devices, 32)
    text = shared.as_text()
    trips_alone, trips = scan_trips(alone.as_text()), scan_trips(text)
    assert (trips_alone, trips) == (32, 32 // devices)

    assert len(re.findall(COLLECTIVES, text)) >= 3
    in_loops = reached(text, re.findall(r"(?:body|condition)=%?([\w.-]+)", text))
    assert any(map(is_matmul, in_loops))
    assert not [line for line in in_loops if re.search(COLLECTIVES, line)]

    # The analysis counts a loop's body once.
    flops_alone = alone.cost_analysis()["flops"] * trips_alone
    flops = shared.cost_analysis()["flops"] * trips
    assert flops <= 1.3 / devices * flops_alone


def test_memory_of_a_device_falls():
    """Once a device's rows are fewer than a block, which here has half the rows of the batch."""
    alone, memory = (compiled_step(n, 512).memory_analysis().temp_size_in_bytes for n in (1, 8))
    assert memory < 0.4 * alone


@pytest.mark.parametrize("in_context", [False, True])
def test_axes_of_the_type_explicit(in_context):
    """Those of ``jax.make_mesh`` by default, on which JAX would refuse to sort."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    arrays = {k: jax.device_put(v, NamedSharding(mesh, P("data"))) for k, v in batch().items()}
    (loss, stats), (gradient, _) = expected_on_one_device()

    def of_embeddings(embeddings, arrays):
        return one_device(arrays | {"embeddings": embeddings}, 0.3)

    def histogram(arrays, stats):
        x, labels, where = (arrays[name] for name in ("embeddings", "labels", "where"))
        return mj.effective_margin_histogram(x, labels, stats, jax.random.key(0), where=where)

    differentiate = jax.value_and_grad(of_embeddings, has_aux=True)
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        # Without one, JAX differentiates no function of such arrays outside jit.
        run = differentiate if in_context else jax.jit(differentiate)
        (found_loss, found_stats), slope = run(arrays["embeddings"], arrays)
        assert slope.sharding.spec == P("data", None)
        np.testing.assert_allclose(slope, gradient["embeddings"], atol=1e-6)
        assert found_loss == pytest.approx(float(loss), rel=1e-6)
        assert found_stats.totals() == stats.totals()
        sampled = histogram(arrays, found_stats)
        if not in_context:
            found_loss, found_stats = one_device(arrays, 0.3)
            assert found_loss == pytest.approx(float(loss), rel=1e-6)
            assert found_stats.totals() == stats.totals()
    np.testing.assert_array_equal(sampled, jax.jit(histogram)(batch(), stats))


def test_some_axes_of_a_mesh_may_be_left_to_the_compiler():
    arrays, mesh = batch(), mesh_of(8, ("data", "model"))

    def local(arrays):
        return mj.batch_all_triplet_loss(margin=0.3, axis_name="data", **arrays)

    shared = jax.shard_map(
        local, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")), axis_names={"data"}
    )
    loss, stats = jax.jit(shared)(arrays)
    expected, alone = one_device(arrays, 0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert stats.totals() == alone.totals()


def test_a_schedule_inside_sees_the_global_batch():
    arrays, schedule = batch(), mj.dams(threshold=0.4, increase=0.1)

    def local(state, arrays):
        stats = mj.triplet_stats(margin=state.margin, axis_name="data", **arrays)
        found = mj.EpochStats.of(stats, axis_name="data")
        return schedule.update(state, found), found

    inside = jax.shard_map(
        local, mesh=mesh_of(8), in_specs=(P(), P("data")), out_specs=P()
    )  # which JAX only accepts if they are the same on every device
    state, found = jax.jit(inside)(schedule.init(), arrays)
    expected = mj.EpochStats.of(mj.triplet_stats(margin=0.2, **arrays))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert state.margin == schedule.update(schedule.init(), expected).margin
