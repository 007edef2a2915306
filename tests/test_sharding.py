"""The same run on one device, on several, and on several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import margin_jax as mj
from margin_jax.models import make_encoder
from margin_jax.sharding import make_mesh, place_copies, place_rows

ROOT = Path(__file__).parent.parent


def test_mesh_takes_what_divides_the_batch():
    assert make_mesh(4, 64).size == 4
    assert make_mesh(None, 64).size == 1  # virtual CPU devices share the same cores
    with pytest.raises(ValueError, match="at most 8, all there are; got 9"):
        make_mesh(9, 63)
    with pytest.raises(ValueError, match="batch of 64 rows can not be shared equally by 5"):
        make_mesh(5, 64)


@pytest.mark.parametrize("devices", [2, 8])
def test_a_step_is_the_same_on_any_number_of_devices(devices):
    """Triplets and batch statistics are those of the global batch, wherever its rows are."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 12, 12, 1), np.uint8)
    labels = np.repeat(np.arange(4, dtype=np.int32), 4)
    encoder, optimizer, schedule = make_encoder("small_cnn", 8), optax.sgd(0.1), mj.dams(0.2)
    params, batch_stats = encoder.init(jax.random.key(0), (12, 12, 1))
    fresh = mj.create_state(params, batch_stats, optimizer, schedule, jax.random.key(1))

    def step(devices):
        mesh = make_mesh(devices, 16)
        train_step = mj.make_train_step(encoder.apply, optimizer, mesh=mesh)
        batch = place_rows(images, mesh), place_copies(labels, mesh)
        state, output = train_step(place_copies(fresh, mesh), *batch)
        return jax.device_get((state, output)), jax.block_until_ready(output)

    (state, output), _ = step(1)
    (sharded, sharded_output), on_device = step(devices)
    assert len(on_device.loss.devices()) == devices
    assert sharded_output.stats.totals() == output.stats.totals()
    np.testing.assert_allclose(sharded_output.loss, output.loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (sharded.params, sharded.batch_stats),
        (state.params, state.batch_stats),
    )


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_together(*commands):
    """The last line that each of some Python commands prints; run together, killed if one hangs."""
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )
        for command in commands
    ]
    try:
        shown = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), shown
    return [(out.splitlines() or [""])[-1] for out, _ in shown]


COUNT = """
import json, sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P
import margin_jax as mj
from margin_jax.sharding import make_mesh, place_rows

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


def test_two_processes_train_as_one(tmp_path):
    script = str(ROOT / "experiments" / "train_tpu.py")
    options = ["--max-identities", "60", "--identities-per-batch", "8", "--epochs", "2"]
    job = ["--coordinator", free_address(), "--processes", "2", "--process"]
    out = [*options, "--out", str(tmp_path / "two")]
    run_together(*([script, *job, rank, *out] for rank in "01"))
    run_together([script, *options, "--out", str(tmp_path / "one")])

    one, two = (
        [json.loads(line) for line in (tmp_path / out / "history.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert len(one) == len(two) == 2
    assert two[0]["valid"] == one[0]["valid"]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=0.02)
    assert two[-1]["validation_auc"] == pytest.approx(one[-1]["validation_auc"], abs=0.02)
    assert (tmp_path / "two" / "report.json").is_file()
