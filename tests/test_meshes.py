"""The same run on one device, on several, and on several processes."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import margin_jax as mj
from margin_jax.cli import main
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows
from margin_jax.evaluation.embedding import embed_examples
from margin_jax.models.make import make_encoder
from margin_jax.training.checkpoint import Checkpoint


def test_mesh_takes_what_divides_the_batch():
    assert make_mesh(4, 64).size == 4
    assert make_mesh(None, 64).size == 1  # virtual CPU devices share the same cores
    for none in (0, -1):
        with pytest.raises(ValueError, match=f"devices must be at least 1; got {none}"):
            make_mesh(none, 64)
    with pytest.raises(ValueError, match="at most 8, all there are; got 9"):
        make_mesh(9, 63)
    with pytest.raises(ValueError, match="batch of 64 rows cannot be shared equally by 5"):
        make_mesh(5, 64)


ENCODER, OPTIMIZER, SCHEDULE = (
    make_encoder("small_cnn", 8),
    optax.sgd(0.05, 0.9),
    mj.dams(0.2, 0.05),
)
STEPS = 6


def an_epoch(devices):
    """The record, the state and the gradient-like figures of an epoch, all as NumPy has them."""
    rng = np.random.default_rng(0)
    batches = [
        (
            rng.integers(0, 256, (24, 12, 12, 1), np.uint8),
            np.repeat(np.arange(8, dtype=np.int32), 3),
        )
        for _ in range(STEPS)
    ]
    params, batch_stats = ENCODER.init(jax.random.key(0), (12, 12, 1))
    state = mj.create_state(params, batch_stats, OPTIMIZER, SCHEDULE, jax.random.key(1))
    mesh = make_mesh(devices, 24)
    train_step = mj.make_train_step(
        ENCODER.apply,
        OPTIMIZER,
        histogram=True,
        augment=mj.make_augment("flip,shift:1"),
        mesh=mesh,
    )
    state = place_copies(state, mesh)
    outputs = []

    def noted(state, images, labels):
        state, output = train_step(state, images, labels)
        jax.block_until_ready(output)
        assert len(output.loss.devices()) == devices
        outputs.append(jax.device_get((output, state.params, state.batch_stats)))
        return state, output

    placed = ((place_rows(x, mesh), place_copies(y, mesh)) for x, y in batches)
    state, record = mj.train_epoch(state, noted, placed, SCHEDULE)
    vectors = embed_examples(
        ENCODER.apply,
        state.params,
        state.batch_stats,
        np.concatenate([x for x, _ in batches]),
        np.arange(STEPS * 24 - 5),
        mesh,
    )
    return record, outputs, vectors


def test_a_mesh_that_would_fail_later_is_refused():
    """JAX makes axes of the type Explicit, which a histogram or copies of labels do not fit."""
    for mesh in (jax.make_mesh((2,), ("data",)), make_mesh(2, 8).update(axis_names=("batch",))):
        with pytest.raises(ValueError, match=r"an axis \"data\", and axes of the type Auto, as"):
            mj.make_train_step(lambda *_, **__: None, OPTIMIZER, mesh=mesh)


def test_a_batch_that_devices_cannot_share_is_refused():
    def embed(params, batch_stats, images, *, train, key):
        return images @ params, batch_stats

    state = mj.create_state(np.eye(2), {}, OPTIMIZER, SCHEDULE, jax.random.key(0))
    train_step = mj.make_train_step(embed, OPTIMIZER, mesh=make_mesh(2, 4))
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be shared equally by 2 devices"):
        train_step(state, np.ones((5, 2), np.float32), np.arange(5) // 2)


def test_a_batch_that_leaves_devices_idle_is_said(monkeypatch):
    class Accelerator:
        platform = "gpu"

    monkeypatch.setattr(jax, "devices", lambda: [Accelerator()] * 8)
    monkeypatch.setattr(jax, "make_mesh", lambda shape, *args, **kwargs: shape)
    assert make_mesh(None, 64) == (8,)
    with pytest.warns(UserWarning, match="batch of 68 rows is shared by 4 of 8 devices"):
        assert make_mesh(None, 68) == (4,)


def test_an_epoch_is_the_same_on_any_number_of_devices():
    """Triplets, batch statistics and augmentation are those of the global batch.

    Counts and margins exactly; losses to 1e-5, gradients (their length) to 1e-4, parameters and
    statistics to 1e-4 of the largest, after every step.
    """
    record, outputs, vectors = an_epoch(1)
    other, other_outputs, other_vectors = an_epoch(8)
    exact = ("valid", "easy", "semihard", "hard", "margin", "next_margin", "easy_fraction")
    assert [getattr(other, name) for name in exact] == [getattr(record, name) for name in exact]
    assert record.next_margin > record.margin
    assert min(record.easy, record.semihard, record.hard) > 0
    for (a, *trees), (b, *other_trees) in zip(outputs, other_outputs, strict=True):
        assert b.stats.totals() == a.stats.totals()
        for name in ("positives", "negatives", "semihard", "hard"):
            np.testing.assert_array_equal(getattr(b.stats, name), getattr(a.stats, name))
        np.testing.assert_allclose(b.stats.sum_an, a.stats.sum_an, rtol=1e-4)
        np.testing.assert_allclose(b.loss, a.loss, rtol=1e-5)
        np.testing.assert_allclose(b.gradient_norm, a.gradient_norm, rtol=1e-4)
        assert b.histogram.sum() == a.histogram.sum() == 512
        assert np.abs(b.histogram - a.histogram).sum() <= 8  # a distance may cross an edge
        for one, many in zip(trees, other_trees, strict=True):
            for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
                np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4 * np.abs(x).max())
    np.testing.assert_allclose(other_vectors, vectors, atol=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_new_state_goes_to_the_mesh_by_itself(sharded):
    """By public names alone, as people begin."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, 5)).astype(np.float32), np.repeat(np.arange(4, dtype=np.int32), 2)
    params = rng.normal(size=(5, 3)).astype(np.float32)
    shares = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))

    def embed(params, batch_stats, images, *, train, key):
        return images @ params, batch_stats

    def trained(mesh, batch):
        step = mj.make_train_step(embed, OPTIMIZER, mesh=mesh)
        state = mj.create_state(params, {}, OPTIMIZER, SCHEDULE, jax.random.key(0))
        return mj.train_epoch(state, step, [batch, batch], SCHEDULE)[0]

    one, many = trained(None, batch), trained(mesh, shares if sharded else batch)
    assert len(many.params.devices()) == 4
    np.testing.assert_allclose(many.params, one.params, rtol=1e-5)


def test_the_work_is_shared_and_not_the_images():
    """Each of 8 devices computes an eighth; what is gathered are embeddings, not images."""

    def compiled(devices):
        mesh = make_mesh(devices, 96)
        params, batch_stats = ENCODER.init(jax.random.key(0), (12, 12, 1))
        state = mj.create_state(params, batch_stats, OPTIMIZER, SCHEDULE, jax.random.key(1))
        images = place_rows(np.zeros((96, 12, 12, 1), np.uint8), mesh)
        labels = place_copies(np.zeros(96, np.int32), mesh)
        step = mj.make_train_step(ENCODER.apply, OPTIMIZER, mesh=mesh)
        arguments = place_copies(state, mesh), images, labels
        step.trace(*arguments).lower(lowering_platforms=("tpu", "cuda"))  # it does
        return step.lower(*arguments).compile()

    one, eight = compiled(1), compiled(8)
    flops = [program.cost_analysis()["flops"] for program in (one, eight)]
    assert flops[1] < flops[0] / 6
    temporary = [program.memory_analysis().temp_size_in_bytes for program in (one, eight)]
    assert temporary[1] < temporary[0] / 3
    gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather(?:-start)?\(", eight.as_text())
    sizes = [math.prod(map(int, shape.split(","))) for _, shape in gathered]
    assert sizes
    assert max(sizes) <= 96 * 8  # rows × numbers of an embedding


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_together(*commands, status=0, meanwhile=lambda processes: None):
    """The last line that each of some Python commands prints; run together, killed if one hangs."""
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for command in commands
    ]
    try:
        meanwhile(processes)
        shown = [process.communicate(timeout=3600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * len(processes), shown
    return [((errors if status else out).splitlines() or [""])[-1] for out, errors in shown]


COUNT = """
import json, sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P
import margin_jax as mj
from margin_jax.devices.meshes import make_mesh, place_rows

jax.config.update("jax_num_cpu_devices", 2)
if sys.argv[1:]:
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
rng = np.random.default_rng(0)
mesh = make_mesh(len(jax.devices()), 64)
x = place_rows(rng.normal(size=(64, 4)).astype(np.float32), mesh)
labels = place_rows(rng.integers(0, 12, 64), mesh)
count = jax.shard_map(
    lambda x, labels: mj.batch_all_triplet_loss(x, labels, 0.5, axis_name="data"),
    mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")),
)
stats = jax.block_until_ready(jax.jit(count)(x, labels))[1]
assert stats.hard.is_fully_addressable == (not sys.argv[1:])
totals = mj.EpochTotals().add(stats).add(stats)
print(json.dumps([stats.totals(), totals.counts(), float(totals.stats().mean_effective)]))
"""


def test_counts_of_a_batch_that_no_process_can_fetch():
    address = free_address()
    first, second = run_together(*(["-c", COUNT, address, rank] for rank in "01"))
    (alone,) = run_together(["-c", COUNT])
    counts, twice, mean = json.loads(alone)
    assert twice == {name: 2 * count for name, count in counts.items()}
    assert min(counts.values()) > 0
    assert json.loads(first) == json.loads(second) == [counts, twice, pytest.approx(mean)]


SMALL = ["--max-identities", "60", "--identities-per-batch", "8", "--epochs", "2"]
SMALL += ["--encoder", "mlp", "--image-size", "12"]
TIMING = {"seconds", "images_per_second", "data_wait"}


def command(out, *more):
    return ["-m", "margin_jax", "train", *SMALL, "--out", str(out), *more]


def job(out, *more):
    """The commands of two processes."""
    address = ["--coordinator", free_address(), "--processes", "2"]
    return [command(out, *more, *address, "--process", rank) for rank in "01"]


def history(out):
    lines = (out / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def test_two_processes_train_as_one(tmp_path, no_pictures):
    run_together(*job(tmp_path / "two"))
    _, _, *arguments = command(tmp_path / "one", "--devices", "2")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == 2
    for alone, together in zip(one, two, strict=True):
        exact = [name for name, value in alone.items() if isinstance(value, int)] + ["margin"]
        assert {"valid", "easy", "hard", "steps", "images"} <= set(exact)
        assert [together[name] for name in exact] == [alone[name] for name in exact]
        for name in ("loss", "mean_an", "validation_auc", "gradient_norm"):
            assert together[name] == pytest.approx(alone[name], rel=1e-3)
    assert (tmp_path / "two" / "report.json").is_file()


def test_a_job_of_two_is_refused_as_one(tmp_path):
    """Whatever only one of the processes finds out, all of them say, at once and in one line."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    shown = run_together(*job(tmp_path / "full"), status=2)
    assert all("is not empty and not a run folder" in line for line in shown)
    assert all("Traceback" not in line for line in shown)


def test_a_job_of_two_different_runs_is_refused(tmp_path):
    first, second = job(tmp_path / "run")
    shown = run_together(first, [*second, "--seed", "7"], status=2)
    assert all("do not have the same run" in line for line in shown)


def test_sigterm_to_one_process_stops_the_job_where_it_can_go_on(tmp_path):
    def terminate(processes):
        deadline = time.monotonic() + 3600
        while not (tmp_path / "run" / "history.jsonl").is_file() or not history(tmp_path / "run"):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)

    commands = job(tmp_path / "run", "--epochs", "500")
    shown = run_together(*commands, status=143, meanwhile=terminate)
    assert all("Stopped by SIGTERM after epoch" in line for line in shown)
    with Checkpoint(tmp_path / "run" / "checkpoints") as checkpoint:
        assert checkpoint.step
