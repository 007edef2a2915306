"""A model folder: what is written comes back, and what is not one is refused in one line."""

import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file, save_file

import margin_jax as mj
from margin_jax import cli
from margin_jax.files import sha256
from margin_jax.runs.portable import MODEL
from margin_jax.runs.weights import WEIGHTS

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Pictures in grey, read from files, in a network small enough to compile at once."""
    from PIL import Image

    root = tmp_path_factory.mktemp("portable")
    rng = np.random.default_rng(0)
    for i in range(80):
        folder = root / "pictures" / f"Anna {i // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 14), np.uint8)).save(folder / f"{i}.png")
    small = {"epochs": 2, "identities_per_batch": 2, "image_size": 8, "encoder": "mlp"}
    folder = {"dataset": "folder", "data_dir": str(root / "pictures"), "out": str(root / "run")}
    return mj.fit(mj.TrainConfig(**small, **folder, distance="cosine", fit="crop", bits=12))


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    return run.save_pretrained(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit(folder, change):
    """Changes the description, which stays one of JSON."""
    described = json.loads((folder / MODEL).read_text())
    change(described)
    (folder / MODEL).write_text(json.dumps(described))


def rewrite(folder, change):
    """Changes the arrays, and says so in the description."""
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)
    sign(folder)


def sign(folder):
    digest = sha256((folder / WEIGHTS).read_bytes())
    edit(folder, lambda d: d["sha256"].update({WEIGHTS: digest}))


def refused(folder, capsys):
    """The one line that is said of a folder; nothing in it, or beside it, changes."""
    before = sorted(path for path in folder.parent.rglob("*"))
    with pytest.raises(SystemExit) as error:
        cli.main(["verify", str(folder), "a.png", "b.png"])
    shown = capsys.readouterr()
    assert (error.value.code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert len(shown.err) < 600
    assert sorted(path for path in folder.parent.rglob("*")) == before
    return shown.err


# What is written


def test_a_run_comes_back_whole(run, model):
    back = mj.load_pretrained(model)
    chex.assert_trees_all_equal(
        (back.params, back.batch_stats), (run.params, run.batch_stats), strict=True
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(back.embed(images), run.embed(images))
    assert back.threshold == run.threshold
    assert back.report == run.report
    assert [record["margin"] for record in back.history] == [r["margin"] for r in run.history]
    kept = ("encoder", "embedding_size", "distance", "fit", "bits", "schedule", "seed", "epochs")
    assert [getattr(back.config, n) for n in kept] == [getattr(run.config, n) for n in kept]
    assert back._repr_markdown_().splitlines()[0] == run._repr_markdown_().splitlines()[0]


def test_what_came_back_is_saved_as_it_was(model, tmp_path):
    again = mj.load_pretrained(model).save_pretrained(tmp_path / "again")
    assert {p.name for p in again.iterdir()} == {MODEL, WEIGHTS, "README.md"}
    for path in again.iterdir():
        assert path.read_bytes() == (model / path.name).read_bytes(), path.name


def test_no_path_and_no_name_goes_out(run, model):
    for path in model.iterdir():
        content = path.read_bytes()
        assert b"Anna" not in content, path.name
        assert str(run.path.parent).encode() not in content, path.name


def test_the_card_has_the_figures_the_data_and_the_schedule(run, model):
    card = (model / "README.md").read_text()
    test = run.report["test"]
    assert f"| embedding | {test['auc']:.4f} |" in card
    assert "folder-pictures: 80 images" in card
    assert "8 trained on, 2 for validation, 10 tested" in card
    assert "dams:margin=0.2,threshold=0.95" in card
    assert f"best epoch {run.report['best_epoch']} of 2" in card
    assert f"{run.threshold:.6g}" in card
    assert f"FMR {run.report['test']['fmr']:.2%}" in card
    assert "encoder.jaxexport" not in card  # there is none


def test_commands_take_the_folder(run, model, tmp_path, capsys):
    pictures = run.path.parent / "pictures" / "Anna 0"
    answers = []
    for folder in (run.path, model):
        with pytest.raises(SystemExit):
            cli.main(["verify", str(folder), str(pictures / "0.png"), str(pictures / "1.png")])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    for more, status in (([], 2), (["--data-dir", str(run.path.parent / "pictures")], 0)):
        with pytest.raises(SystemExit) as error:
            cli.main(["evaluate", str(model), *more])
        assert error.value.code == status
    assert "has no examples of its own: give --data-dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(model), *more, "--fmr", "0.1"])
    assert "a threshold for a false match rate needs the run itself" in capsys.readouterr().err


def test_the_threshold_that_people_see_counts(copy):
    edit(copy, lambda d: d.update(threshold=0.125))
    with pytest.warns(UserWarning, match=r"has the threshold 0.125, and not the [\d.]+ of its"):
        assert mj.load_pretrained(copy).threshold == 0.125


def test_a_network_of_ones_own(tiny_fit, tmp_path):
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(36, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)])

        def __call__(self, examples):
            x = examples.reshape(len(examples), -1)
            for layer in self.layers:
                x = layer(x)
            return x

    run = tiny_fit(tmp_path / "run", encoder=mj.Encoder(Own), epochs=1)
    folder = run.save_pretrained(tmp_path / "model")
    back = mj.load_pretrained(folder, encoder=mj.Encoder(Own))
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 1), np.uint8)
    np.testing.assert_array_equal(back.embed(images), run.embed(images))
    with pytest.raises(ValueError, match="the configuration says 'own'"):
        mj.load_pretrained(folder)


class Masked(nn.Module):
    """A parameter without axes, and a mask of infinities that is not trained."""

    @nn.compact
    def __call__(self, examples, *, train):
        x = nn.Dense(8)(examples.reshape(examples.shape[0], -1))
        least = self.variable("batch_stats", "least", lambda: jnp.full((), -jnp.inf))
        return self.param("scale", nn.initializers.ones, ()) * jnp.maximum(x, least.value)


def test_arrays_without_axes_and_infinities_come_back(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", encoder=mj.Encoder(Masked()), epochs=1)
    back = mj.load_pretrained(run.export(tmp_path / "model"), encoder=run.encoder)
    trees = [jax.device_get((r.params, r.batch_stats)) for r in (back, run)]
    chex.assert_trees_all_equal(*trees, strict=True)


def test_a_run_on_bfloat16_comes_back(tiny_encoder, tmp_path):
    examples = np.random.default_rng(0).normal(size=(120, 6)).astype(jnp.bfloat16)
    mine = mj.Dataset.from_arrays(examples, np.arange(120) // 4)
    own = {"dataset": "own", "encoder": "own", "out": str(tmp_path / "run")}
    config = mj.TrainConfig(**own, epochs=1, identities_per_batch=4)
    run = mj.fit(config, dataset=mine, encoder=tiny_encoder)
    back = mj.load_pretrained(run.save_pretrained(tmp_path / "model"), encoder=tiny_encoder)
    np.testing.assert_array_equal(back.embed(examples[:5]), run.embed(examples[:5]))


def test_an_epoch_without_triplets_comes_back(run, tmp_path):
    history = [{**record, "easy_fraction": math.nan} for record in run.history[:1]]
    silent = dataclasses.replace(run, history=[*history, *run.history[1:]])
    back = mj.load_pretrained(silent.save_pretrained(tmp_path / "model"))
    assert [record["easy_fraction"] is None for record in back.history] == [True, False]
    lines = [shown._repr_markdown_().splitlines()[0] for shown in (silent, back)]
    assert "easy triplets none -> " in lines[0]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: {"params": jax.tree.map(lambda v: v * np.nan, run.params)}, "is not finite"),
        (lambda run: {"report": {**run.report, "a": "b" * 1001}}, "no text may have more than"),
        (lambda run: {"params": jax.tree.map(np.float16, run.params)}, "must be float32"),
    ],
    ids=["not finite", "long text", "another type"],
)
def test_no_model_is_left_that_cannot_be_loaded(run, tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(run, **change(run)).save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# Where it is written


def test_only_a_model_is_replaced_and_only_if_asked(run, model, tmp_path):
    out = Path(shutil.copytree(model, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"out holds a model: add --overwrite"):
        run.save_pretrained(out)
    (out / WEIGHTS).write_bytes(b"")
    run.save_pretrained(out, overwrite=True)
    assert (out / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    mine = tmp_path / "notes"
    mine.mkdir()
    (mine / "README.md").write_text("my own")
    with pytest.raises(ValueError, match="is not empty and not a model folder"):
        run.save_pretrained(mine, overwrite=True)
    assert (mine / "README.md").read_text() == "my own"
    shutil.rmtree(mine)
    (out / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and not a model folder"):
        run.save_pretrained(out, overwrite=True)
    with pytest.raises(ValueError, match="is not empty and not a model folder"):
        run.save_pretrained(run.path, overwrite=True)
    assert (out / "thesis.tex").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    assert mj.load_pretrained(run.save_pretrained(empty)).threshold == run.threshold


def test_what_fails_half_way_leaves_what_was_there(run, model, tmp_path, monkeypatch):
    from margin_jax.runs import export

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_text", full)
    out = Path(shutil.copytree(model, tmp_path / "out"))
    for target in (out, tmp_path / "new"):
        with pytest.raises(OSError, match=rf"cannot write {target}: No space left"):
            run.save_pretrained(target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


# What a hostile folder can do: nothing


def at(*path, to):
    """Sets what is at a path of the description."""

    def change(described):
        for name in path[:-1]:
            described = described[name]
        described[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at("format", to="margin-jax model 2"), "format must be 'margin-jax model 1'"),
        (at("plugin", to="os.system"), "'plugin' is not known"),
        (lambda d: d.pop("report"), "'report' is missing"),
        (at("config", "encoder", to="own"), "the configuration says 'own'"),
        (at("config", "encoder", to="../../evil"), "encoder must be one of"),
        (at("config", "encoder", to="nn2"), "nn2 takes no examples|has no place|must be|missing"),
        (at("config", "encoder", to="mlp:" + "x" * 2000), "more than 1,000 characters"),
        (at("config", "evil", to=1), "not a configuration of this version: unknown"),
        (at("config", "out", to="/etc"), "must name no dataset, path or file"),
        (at("config", "weights", to="/etc/passwd"), "weights|no dataset, path or file"),
        (at("config", "dataset", to="folder"), "needs --data-dir"),
        (at("config", "dataset", to="glyphs"), "must name no dataset, path or file"),
        (at("config", "embedding_size", to=10**30), "--embedding-size must be"),
        (at("config", "embedding_size", to=64), "must be float32"),
        (at("config", "distance", to="squared_euclidean"), "distance must be"),
        (at("config", to=[]), "not a configuration"),
        (at("threshold", to="0.5"), "expected a number"),
        (at("threshold", to=True), "expected a number"),
        (at("threshold", to=10**400), "expected a number"),
        (at("report", "test", to=None), "model.json is damaged"),
        (at("report", "test", "auc", to="high"), "model.json is damaged"),
        (at("report", "test", "auc", to=10**400), "model.json is damaged"),
        (at("history", to=[]), "model.json is damaged"),
        (at("history", 0, "margin", to=None), "expected a number"),
        (at("sha256", to={}), "sha256 must be of"),
        (at("sha256", "../../etc/passwd", to="0"), "sha256 must be of"),
        (at("data", "files", to=["/etc/passwd"]), "'files' is not known"),
        (at("data", "example_shape", to=[8, 8, 2]), "1 or 3"),
        (at("data", "example_shape", to=[8, -8, 1]), "whole numbers from 1 on"),
        (at("data", "example_shape", to=[2**20, 2**20, 1]), "example_shape must be"),
        (at("data", "example_shape", to=[9, 8, 1]), "must be float32"),
        (at("data", "example_shape", to="8"), "model.json is damaged"),
        (at("data", "example_dtype", to="object"), "example_dtype must be"),
        (at("data", "dataset", to=None), "dataset must be a name"),
    ],
)
def test_a_description_that_is_none(copy, capsys, change, said):
    edit(copy, change)
    assert re.search(said, refused(copy, capsys))


def test_a_schedule_may_list_the_margin_of_every_epoch(copy):
    margins = "replay:" + "/".join(["0.2000000001"] * 200)
    edit(copy, at("config", "schedule", to=margins))
    assert mj.load_pretrained(copy).config.schedule == margins


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"format": ' + b"9" * 100_000 + b"}",
        b'{"format": NaN}',
        pickle.dumps({"format": 1}),
        b" " * 2**23,
    ],
    ids=range(10),
)
def test_a_description_that_is_no_json(copy, capsys, content):
    (copy / MODEL).write_bytes(content)
    assert "model.json" in refused(copy, capsys)


FIRST = "params/head/Dense_0/kernel"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop(FIRST), f"{FIRST} is missing"),
        (lambda a: a.update({"../../evil": a[FIRST]}), "../../evil has no place in the encoder"),
        (lambda a: a.update({FIRST: a[FIRST][:-1]}), f"{FIRST} must be float32"),
        (lambda a: a.update({FIRST: a[FIRST].astype(np.float16)}), f"{FIRST} must be float32"),
        (lambda a: a.update({FIRST: a[FIRST] * np.float32(np.nan)}), f"{FIRST} is not finite"),
    ],
)
def test_weights_that_do_not_fit(copy, capsys, change, said):
    rewrite(copy, change)
    assert said in refused(copy, capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}" + bytes(100),
        struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999]}}',
        struct.pack("<Q", 55)
        + b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
        + bytes(4),
    ],
    ids=range(6),
)
def test_weights_that_are_no_safetensors(copy, capsys, content):
    (copy / WEIGHTS).write_bytes(content)
    assert "is not the file that model.json describes" in refused(copy, capsys)
    sign(copy)
    assert "weights.safetensors" in refused(copy, capsys)


def test_files_that_are_none(copy, capsys):
    (copy / WEIGHTS).unlink()
    assert "there is no file weights.safetensors" in refused(copy, capsys)
    os.mkfifo(copy / WEIGHTS)
    assert "there is no file weights.safetensors" in refused(copy, capsys)
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).symlink_to("/dev/zero")
    assert "there is no file weights.safetensors" in refused(copy, capsys)
    (copy / WEIGHTS).unlink()
    with open(copy / WEIGHTS, "wb") as file:
        file.truncate(2**40)
    assert "bytes, and can have" in refused(copy, capsys)
    (copy / MODEL).unlink()
    assert "no finished run in" in refused(copy, capsys)


def test_other_files_are_not_looked_at(copy):
    (copy / "config.py").write_text("raise SystemExit")
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    mj.load_pretrained(copy)


# The hub


def hub(monkeypatch, **functions):
    module = types.ModuleType("huggingface_hub")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_model_of_the_hub_is_downloaded(model, monkeypatch):
    asked = []

    def download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        return str(model)

    hub(monkeypatch, snapshot_download=download)
    assert mj.load_pretrained("hub:anna/faces").threshold == mj.load_pretrained(model).threshold
    mj.load_run(Path("hub:anna/faces@1.0"))
    files = [MODEL, WEIGHTS]
    assert asked == [("anna/faces", None, files), ("anna/faces", "1.0", files)]


@pytest.mark.parametrize(
    "name", ["hub:", "hub:a", "hub:../a", "hub:a/b/c", "hub:a/../b", "hub:a /b"]
)
def test_names_that_the_hub_does_not_have(name, run, monkeypatch):
    hub(monkeypatch)
    with pytest.raises(ValueError, match="a model on the hub is hub:USER/NAME"):
        mj.load_pretrained(name)
    with pytest.raises(ValueError, match="a model on the hub is hub:USER/NAME"):
        run.push_to_hub(name)


def test_a_hub_that_can_not_be_reached(run, monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    hub(monkeypatch, snapshot_download=fail, create_repo=fail)
    assert "cannot download https://huggingface.co/anna/faces (ConnectionError)" in refused(
        Path("hub:anna/faces"), capsys
    )
    with pytest.raises(
        ValueError, match=r"cannot upload .*anna/faces \(ConnectionError: no route\)"
    ):
        run.push_to_hub("anna/faces")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"models on the hub need huggingface_hub: pip install"):
        mj.load_pretrained("hub:anna/faces")


def test_a_model_is_uploaded_with_its_card(run, monkeypatch):
    made, sent = [], {}

    def upload(repo_id, folder_path, commit_message):
        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    def create(repo, private, exist_ok):
        made.append((repo, private, exist_ok))

    hub(monkeypatch, create_repo=create, upload_folder=upload)
    assert run.push_to_hub("anna/faces", private=True) == "https://huggingface.co/anna/faces"
    assert made == [("anna/faces", True, True)]
    assert set(sent) == {MODEL, WEIGHTS, "README.md", "encoder.jaxexport"}
    assert sent["README.md"].startswith(b"---\nlibrary_name: margin-jax\n")
