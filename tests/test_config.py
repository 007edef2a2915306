"""What a run is: texts with parameters, parts, and options from a file."""

import dataclasses
import json
import types

import pytest

import margin_jax as mj
from margin_jax import cli, spec
from margin_jax.config import PARTS
from margin_jax.config.file import read_options
from margin_jax.models import ENCODERS, resolve_encoder


def test_every_option_is_of_one_part():
    names = [name for part in PARTS for name in part.__annotations__ if name != "PANEL"]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(mj.TrainConfig))
    assert len(names) == len(set(names))


# Texts


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("nn2:small_stem=true,dtype=bfloat16", {"small_stem": True, "dtype": "bfloat16"}),
        ("nn2:small_stem=false", {"small_stem": False}),
        ("small_cnn:width=0.5", {"width": 0.5}),
    ],
)
def test_an_encoder_s_text_says_what_its_options_do(text, options):
    by_text = mj.TrainConfig(encoder=text)
    by_options = mj.TrainConfig(encoder=text.partition(":")[0], **options)
    assert by_text.encoder_parameters() == by_options.encoder_parameters()
    for name, value in options.items():
        assert getattr(by_text, name) == value


def test_another_encoder_inherits_nothing_that_the_old_one_s_text_said():
    said = mj.TrainConfig(encoder="nn2:small_stem=true,dtype=bfloat16", embedding_size=64)
    plain = said.replace(encoder="nn2")
    assert (plain.small_stem, plain.dtype, plain.embedding_size) == (False, "float32", 64)
    assert said.replace(encoder="small_cnn").dtype == "float32"
    assert said.replace(encoder="small_cnn", dtype="bfloat16").dtype == "bfloat16"
    assert said.replace(epochs=3).dtype == "bfloat16"
    assert mj.TrainConfig(dtype="bfloat16").replace(encoder="nn2").dtype == "bfloat16"
    cells = mj.vary(said, encoder=["nn2", "small_cnn:width=0.5"])
    assert [arm.dtype for arm in cells.values()] == ["float32"] * 2


@pytest.mark.parametrize(
    ("text", "options"),
    [("width=0.5", {"width": 2.0}), ("dtype=float32", {"dtype": "bfloat16"})],
)
def test_an_option_may_not_contradict_the_text_of_the_encoder(text, options):
    (name, value), (given,) = text.split("="), options.values()
    with pytest.raises(ValueError, match=f"{name} must be {value}, as encoder .*; got {given}$"):
        mj.TrainConfig(encoder=f"small_cnn:{text}", **options)


@pytest.mark.parametrize(
    ("schedule", "name", "value"),
    [
        ("constant:0.05", "margin", 0.05),
        ("dams:cap=1,margin=0.1", "margin", 0.1),
        ("linear:margin_end=0.5", "margin_end", 0.5),
    ],
)
def test_an_option_may_not_contradict_the_text_of_the_schedule(schedule, name, value):
    message = f"^{name} must be {value}, as schedule {schedule} says; got 3.0$"
    with pytest.raises(ValueError, match=message):
        mj.TrainConfig(schedule=schedule, **{name: 3.0})
    config = mj.TrainConfig(schedule=schedule, epochs=9)
    assert getattr(config, name) == value
    old = json.dumps({**json.loads(config.to_json()), name: 3.0})  # of version 0.2.0
    assert mj.TrainConfig.from_json(old) == config
    assert config.replace(schedule="dams") == mj.TrainConfig(schedule="dams", epochs=9)
    assert getattr(config.replace(schedule="linear", **{name: 3.0}), name) == 3.0


@pytest.mark.parametrize("name", ["glyphs", "folder", "vectors", "list", "own"])
def test_a_name_means_the_same_whatever_lies_in_the_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = mj.TrainConfig(dataset=name, data_dir=None if name in ("glyphs", "own") else "x")
    (tmp_path / name).mkdir()
    assert mj.TrainConfig.from_json(config.to_json()).dataset == name


def test_a_split_may_be_a_path(tmp_path):
    path = tmp_path / "split.json"
    assert mj.TrainConfig(split=path).split == str(path)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_s_name_alone_is_enough(name):
    found, values = resolve_encoder(name, {"width": 0.5, "no parameter": 1})
    assert found == name
    assert values.get("width", 0.5) == 0.5
    assert {"dtype", *ENCODERS[name].parameters} == set(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "nn3"}, "encoder must be one of small_cnn.*Did you mean 'nn2'"),
        ({"encoder": "nn2:width=2"}, "a parameter of nn2 must be one of dtype, small_stem; got"),
        ({"encoder": "nn2:small_stem=1"}, "where small_stem is neither true nor false"),
        ({"encoder": "nn2:dtype=float16"}, "dtype must be one of float32, bfloat16; got 'float16'"),
        ({"encoder": "small_cnn:width=wide"}, "where width is not a number"),
        ({"encoder": "small_cnn:width=0"}, "width must be above 0 and at most 100; got 0"),
        ({"encoder": "mlp", "width": 2.0}, "width is for small_cnn; got it with encoder mlp"),
        ({"encoder": "own", "dtype": "bfloat16"}, "dtype is for small_cnn, .* with encoder own"),
        ({"optimizer": "adam:b1=1"}, r"b1 of adam must be at least 0 and below 1; got 1\.0"),
        ({"optimizer": "adam:eps=-1"}, r"eps of adam must be at least 0 and finite; got -1\.0"),
        ({"optimizer": "adam:lr=1"}, "a parameter of adam must be one of b1, b2, eps; got 'lr'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adagrad, rmsprop; got 'sgd'"),
    ],
)
def test_texts_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        mj.TrainConfig(**options)


def test_kinds_are_those_of_the_signature():
    def function(a: float, b: int = 1, c: bool = False, d: str = "", e: str | None = None):
        pass

    assert spec.kinds(function) == {"a": float, "b": int, "c": bool, "d": str, "e": str}
    name, values = spec.resolve("a thing", "f:2,c=TRUE", {"f": function}, {"b": 7}, short=True)
    assert (name, values) == ("f", {"a": 2.0, "b": 7, "c": True, "d": "", "e": None})


# Files


FILE = """
seed = 3
[data]
max_identities = 40
[loss]
loss = "triplet:soft=true"
[training]
epochs = 2
learning-rate = 0.01
[run]
out = "there"
"""


def test_a_file_says_options_alone_or_in_tables(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(FILE, encoding="utf-8")
    assert read_options(path) == {
        "seed": 3,
        "max_identities": 40,
        "loss": "triplet:soft=true",
        "epochs": 2,
        "learning_rate": 0.01,
        "out": "there",
    }


def test_a_run_s_own_configuration_is_one(tmp_path):
    config = mj.TrainConfig(encoder="nn2:small_stem=true", split="40/10/50", memory=100)
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert mj.TrainConfig(**read_options(path)) == config


@pytest.mark.parametrize(("name", "text"), [("a.TOML", "epochs = 3"), ("a.JSON", '{"epochs": 3}')])
def test_a_file_may_begin_with_a_mark_and_end_in_capitals(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_options(tmp_path / name) == {"epochs": 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "epoch = 3", "an option of .*a.toml must be one of .*Did you mean 'epochs'"),
        ("a.toml", "[training]\nseed = 1\n[data]\nepochs = 3", r"in \[data\] of .* must be one of"),
        ("a.toml", "[trainin]\nepochs = 3", "a table of .* Did you mean 'training'"),
        ("a.toml", "epochs = 3\n[training]\nepochs = 4", "each option once; got epochs twice"),
        ("a.toml", "epochs: 3", "config must be TOML or JSON; .*a.toml: "),
        ("a.json", "[1]", "config must hold options by name; .*a.json holds"),
        ("a.json", "{", "config must be TOML or JSON; .*a.json: "),
        ("none.toml", None, "config must be a file; cannot read .*none.toml: No such file"),
    ],
)
def test_files_that_are_none(tmp_path, capsys, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_options(tmp_path / name)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--config", str(tmp_path / name)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_options_go_over_the_file(tmp_path, monkeypatch):
    """And a command takes of a file what it has: a comparison sets the seeds itself."""
    asked = {}

    def note(command, result):
        return lambda config, **_: asked.update({command: config}) or result

    path = tmp_path / "a.json"
    path.write_text(json.dumps({"epochs": 2, "margin": 0.7, "seed": 9, "schedule": "litm"}))
    monkeypatch.setattr("margin_jax.runs.fit.fit", note("train", types.SimpleNamespace(path="")))
    monkeypatch.setattr("margin_jax.cli.train.summary", lambda run: "")
    monkeypatch.setattr("margin_jax.runs.arms.vary", note("compare", ["all", "hard"]))
    monkeypatch.setattr(
        "margin_jax.runs.arms.compare", lambda *_, **__: mj.Comparison((), (), {}, {}, "")
    )
    monkeypatch.setattr("margin_jax.Comparison.markdown", lambda self: "")
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path), "--epochs", "5"])
    with pytest.raises(SystemExit):
        cli.main(["compare", "--config", str(path), "--margin", "0.3", "--vary", "mining=all,hard"])
    assert (asked["train"].epochs, asked["train"].margin, asked["train"].seed) == (5, 0.7, 9)
    assert (asked["compare"].epochs, asked["compare"].margin) == (2, 0.3)
    # Another loss inherits nothing that the file's had settled.
    path.write_text(mj.TrainConfig(loss="triplet:reduction=sum,mining=hard").to_json())
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path), "--loss", "triplet:reduction=mean"])
    assert (asked["train"].reduction, asked["train"].mining) == ("mean", "all")
    # Nor another encoder; and what no version knows settled nothing.
    path.write_text('{"encoder": "small_cnn:width=0.5", "loss": "unknown"}')
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", str(path), "--encoder", "small_cnn", "--loss", "supcon"])
    assert (asked["train"].width, asked["train"].loss) == (1.0, "supcon")
