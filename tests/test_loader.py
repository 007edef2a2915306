"""From a plan of batches to arrays on the devices: the right rows, in order, and no others."""

import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image

from margin_jax.data import folder
from margin_jax.data.loader import load_batches, read_ahead
from margin_jax.devices import meshes
from margin_jax.devices.meshes import make_mesh, own_rows, place_rows

PLAN = np.random.default_rng(0).permutation(40).reshape(5, 8)
LABELS = np.arange(40, dtype=np.int32) // 4


class Recording:
    """Images of one pixel, its row; remembers what is read, and can be slow or break."""

    def __init__(self, seconds=lambda rows: 0.0, broken=None):
        self.read, self.seconds, self.broken = [], seconds, broken

    def __getitem__(self, rows):
        time.sleep(self.seconds(rows))
        self.read.append(rows.tolist())
        if self.broken in rows:
            raise ValueError(f"{self.broken}.png is gone")
        return rows.astype(np.uint8).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of ten identities with four pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    for row, label in enumerate(LABELS):
        (root / f"{label}").mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (row, 2 * row, 3 * row)).save(root / f"{label}/{row:02}.png")
    return root


# --- batches ---


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("memory_limit", [np.inf, 0], ids=["held", "streamed"])
def test_batches_are_those_of_the_plan(pictures, memory_limit, devices):
    data = folder.load(pictures, 6, memory_limit=memory_limit)
    assert isinstance(data.examples, np.ndarray) == (memory_limit > 0)
    for first_step in range(len(PLAN) + 1):  # a training can go on from any of them
        mesh = make_mesh(devices, 8)
        batches = list(load_batches(data.examples, data.labels, PLAN, mesh, first_step=first_step))
        assert len(batches) == len(PLAN) - first_step
        for (images, labels), rows in zip(batches, PLAN[first_step:], strict=True):
            assert isinstance(images, jax.Array)
            assert {part.data.shape for part in images.addressable_shards} == {
                (8 // devices, 6, 6, 3)
            }
            np.testing.assert_array_equal(images[:, 5, 5], rows[:, None] * [1, 2, 3])
            np.testing.assert_array_equal(labels, LABELS[rows])


def test_one_process_owns_all_rows():
    mesh, rows = make_mesh(8, 16), np.arange(16)
    assert own_rows(mesh, 16).tolist() == rows.tolist()
    np.testing.assert_array_equal(place_rows(rows, mesh, 16), rows)
    assert [part.data.tolist() for part in place_rows(rows, mesh).addressable_shards] == [
        [row, row + 1] for row in range(0, 16, 2)
    ]


def test_a_process_reads_only_the_rows_of_its_devices(monkeypatch):
    """As if devices 1 and 3 of four were its own."""

    class Share(NamedSharding):
        def addressable_devices_indices_map(self, shape):
            everything = super().addressable_devices_indices_map(shape)
            return {device: part for device, part in everything.items() if device.id in (1, 3)}

    def parts(shape, sharding, read):
        assert shape == (8, 1, 1, 1)
        return [read(index) for index in sharding.addressable_devices_indices_map(shape).values()]

    monkeypatch.setattr(meshes, "NamedSharding", Share)
    monkeypatch.setattr(jax, "make_array_from_callback", parts)
    images = Recording()
    batches = list(load_batches(images, LABELS, PLAN, make_mesh(4, 8), first_step=1))
    own = PLAN[1:, [2, 3, 6, 7]].tolist()
    assert sorted(images.read) == sorted(own)
    for (first, second), labels in batches:
        rows = own.pop(0)
        assert (first.ravel().tolist(), second.ravel().tolist()) == (rows[:2], rows[2:])
        assert len(labels) == 8  # of the whole batch
    assert own == []


# --- reading ahead ---


def test_order_is_the_plans_however_long_a_batch_takes():
    rng = np.random.default_rng(0)
    plan = [rng.integers(0, 40, n) for n in rng.integers(0, 9, 30)]
    images = Recording(seconds=lambda rows: 0.001 * (len(rows) % 4))
    read = list(read_ahead(images, plan))
    assert [batch.ravel().tolist() for batch in read] == [rows.tolist() for rows in plan]
    assert images.read != [rows.tolist() for rows in plan]  # or nothing had been at stake


@pytest.mark.parametrize("step", range(5))
def test_an_error_surfaces_at_its_batch(step):
    batches = load_batches(Recording(broken=PLAN[step, 3]), LABELS, PLAN, make_mesh(1, 8))
    for rows in PLAN[:step]:
        np.testing.assert_array_equal(next(batches)[0].ravel(), rows)
    with pytest.raises(ValueError, match="gone") as raised:
        next(batches)
    assert str(raised.value) == f"{PLAN[step, 3]}.png is gone"
    assert raised.type is ValueError


def test_a_file_that_vanishes_is_named(tmp_path):
    for row in range(8):
        (tmp_path / f"{row}").mkdir()
        Image.new("L", (6, 6), row).save(tmp_path / f"{row}/1.png")
    data = folder.load(tmp_path, 6, memory_limit=0)
    (tmp_path / "5" / "1.png").unlink()
    plan = np.array([[0, 1], [6, 5]])
    batches = load_batches(data.examples, data.labels, plan, make_mesh(1, 2))
    assert next(batches)[0].ravel()[0] == 0
    with pytest.raises(ValueError, match=r"5/1\.png could be read before, and now cannot: No "):
        next(batches)


def test_threads_end_with_a_consumer_that_stops_early():
    before = set(threading.enumerate())
    images = Recording()
    batches = load_batches(images, LABELS, np.tile(PLAN, (100, 1)), make_mesh(1, 8))
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    deadline = time.monotonic() + 3600
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
    assert len(images.read) < 20


STOP_EARLY = """
import sys
from pathlib import Path
import numpy as np
from margin_jax.data import folder
from margin_jax.data.loader import read_ahead

images = folder.load(Path(sys.argv[1]), 6, memory_limit=0).examples
batches = read_ahead(images, np.random.default_rng(0).integers(0, len(images), (1000, 64)))
print(next(batches).shape)
"""


def test_a_process_can_end_in_the_middle_of_an_epoch(pictures):
    command = [sys.executable, "-c", STOP_EARLY, str(pictures)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("(64, 6, 6, 3)\n", "", 0)
