"""The measurements on accelerators: what they compare with is right, and none is lost."""

import json
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

import margin_jax as mj

ROOT = Path(__file__).parent.parent


@pytest.fixture
def accelerator(monkeypatch, tmp_path):
    """The script, with its path and its flags of the environment given back afterwards."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
    import accelerator

    monkeypatch.setattr(accelerator, "PEERS", {})
    return accelerator


def run(accelerator, monkeypatch, out, *options):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(out), *options])
    accelerator.main()
    path = out.with_suffix(".jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
def test_the_float64_it_compares_with_is_the_plain_loops(accelerator, distance):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(10, 3)) / 2, rng.integers(0, 3, 10)
    found = accelerator.of_plain_loops(x, labels, distance)
    wanted = oracle.batch_all(
        x, labels, accelerator.MARGIN, distance=distance, reduction="mean_active"
    )
    assert found["active"] == wanted.counts["semihard"] + wanted.counts["hard"] > 0
    np.testing.assert_allclose(found["loss"], wanted.loss, rtol=1e-9)
    np.testing.assert_allclose(found["gradient"], wanted.to_embeddings, rtol=1e-6, atol=1e-9)


def test_check_tells_a_wrong_gradient_and_rounded_factors(accelerator, monkeypatch):
    right = accelerator.check("euclidean", 8)
    assert right["loss_error"] < 1e-6 > right["distance_error"]
    assert right["gradient_error"] < 1e-5
    off = abs(right["active"] - right["active_float64"])
    assert off <= right["within_rounding_of_a_tie"]

    exact = accelerator.DISTANCES["euclidean"]

    def rounded(x, y):
        return exact(x.astype("bfloat16").astype(x.dtype), y.astype("bfloat16").astype(y.dtype))

    monkeypatch.setitem(accelerator.DISTANCES, "euclidean", rounded)
    wrong = accelerator.check("euclidean", 8)
    assert wrong["distance_error"] > 1e-4 < wrong["gradient_error"]


def test_rows_are_kept_as_they_come_and_measured_once(accelerator, monkeypatch, tmp_path, capsys):
    asked = []

    def loss(n, k):
        asked.append(n)
        if n == 2:
            raise MemoryError("out of memory\nand much more")
        if n == 3:
            raise KeyboardInterrupt
        return {"ms": 1234.5 * n, "validation_auc": [0.25, 0.5, 0.75]}

    rows = [(loss, (n, 8)) for n in (1, 2, 3, 4)]
    monkeypatch.setattr(accelerator, "plan", lambda options: rows)
    with pytest.raises(KeyboardInterrupt):
        run(accelerator, monkeypatch, tmp_path / "found")
    rows.pop(2)
    found = run(accelerator, monkeypatch, tmp_path / "found")
    assert asked == [1, 2, 3, 2, 4]  # what failed again, and not 1
    assert [row["row"] for row in found] == [["loss", n, 8] for n in (1, 2, 4)]
    assert found[1]["found"] == {"failed": "MemoryError: out of memory"}
    assert {row["device"] for row in found} == {accelerator.DEVICE}

    table = (tmp_path / "found.md").read_text()
    assert f"## {accelerator.DEVICE}, jax" in table
    assert "| loss | ms | validation auc | failed |" in table
    assert "| 1, 8 | 1,234 | 0.25 to 0.75 | – |" in table
    assert "| 2, 8 | – | – | MemoryError: out of memory |" in table

    run(accelerator, monkeypatch, tmp_path / "found", "--again")
    assert asked[5:] == [1, 2, 4]
    assert run(accelerator, monkeypatch, tmp_path / "other", "--minutes", "0") == []
    assert "no time for ['loss', 4, 8]" in capsys.readouterr().out


def test_the_plan_begins_with_what_is_worth_most(accelerator, monkeypatch, tmp_path):
    faces = ["--images", "pictures/faces", "--weights", "weights/lite0.safetensors"]
    seen = []
    for name in ("check", "loss", "step", "block", "way", "glyphs", "faces"):
        function = getattr(accelerator, name)

        def note(*arguments, name=function.__name__):
            seen.append((name, *arguments))
            return {}

        note.__name__ = name
        monkeypatch.setattr(accelerator, name, note)
    found = run(accelerator, monkeypatch, tmp_path / "found", *faces)
    assert seen[0] == ("check", "euclidean", 8)
    assert {name for name, *_ in seen} == {
        "check",
        "loss",
        "step",
        "block",
        "way",
        "glyphs",
        "faces",
    }
    (first, _) = [row["row"] for row in found if row["row"][0] == "faces"]
    assert first[1:3] == ["faces", "lite0.safetensors"]  # no paths of a machine


def test_a_block_row_leaves_the_usual_size(accelerator):
    usual = accelerator.batch_all.block_size
    assert accelerator.block(64, 2, 16)["ms"] > 0
    assert accelerator.batch_all.block_size is usual


@pytest.mark.usefixtures("no_pictures")
def test_a_run_row_tells_the_run(accelerator, monkeypatch):
    monkeypatch.setenv("MARGIN_JAX_SMALL", "1")
    found = accelerator.train(mj.TrainConfig(epochs=2, encoder="mlp", image_size=12))
    assert found["epochs"] == 2 == len(found["margin"])
    assert 0 < found["auc"] <= 1
    assert found["seconds"] > 0
