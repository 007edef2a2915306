"""What a run trains and tests on: the options of data, split and sampler, from end to end."""

import dataclasses
import functools
import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli, plots
from margin_jax.runs import arms
from margin_jax.runs.describe import describe
from margin_jax.runs.evaluate import embed_identities, evaluate_run
from margin_jax.runs.run_data import plan_epoch, prepare_data, reading_of, settle_batches
from margin_jax.runs.use import embed_folder, verify_images

pytestmark = pytest.mark.usefixtures("no_pictures")
TIMING = ("seconds", "images_per_second", "data_wait")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """30 identities of 2 to 6 pictures, three with one, and a file that is none."""
    root = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    for person in range(33):
        face = rng.integers(0, 200, (10, 12, 3))
        for shot in range(2 + person % 5 if person < 30 else 1):
            path = root / f"p{person:02}" / f"{shot}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray((face + rng.integers(0, 55, face.shape)).astype(np.uint8)).save(path)
    (root / "p00" / "broken.jpg").write_bytes(b"")
    return root


def config(people, out, **options):
    return mj.TrainConfig(
        dataset="folder",
        data_dir=people,
        image_size=12,
        encoder="own",
        identities_per_batch=4,
        epochs=2,
        out=out,
        **options,
    )


def timeless(history):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in history]


@pytest.fixture(scope="module")
def fit(tiny_encoder):
    return functools.partial(mj.fit, encoder=tiny_encoder)


@pytest.fixture(scope="module")
def held(people, fit, tmp_path_factory):
    return fit(config(people, tmp_path_factory.mktemp("runs") / "held"))


def test_streamed_images_give_the_same_run(people, held, fit, tmp_path):
    streamed = fit(config(people, tmp_path / "run", memory_limit=0))
    assert timeless(streamed.history) == timeless(held.history)
    assert streamed.data == held.data
    assert streamed.report["test"].pop("raw") is None
    raw = held.report["test"]["raw"]
    assert streamed.report == {
        **held.report,
        "test": {k: v for k, v in held.report["test"].items() if k != "raw"},
    }
    assert raw["auc"] > 0.5
    dataset = prepare_data(streamed.config).dataset
    assert not isinstance(dataset.examples, np.ndarray)
    assert dataset.digest() == prepare_data(held.config).dataset.digest()
    # It can be resumed with its images held, for that decides nothing.
    longer = streamed.config.replace(epochs=3, resume=True, memory_limit=4.0, out=tmp_path / "run")
    assert timeless(fit(longer).history)[:2] == timeless(held.history)
    embedded = embed_identities(streamed, people)
    assert np.array_equal(embedded.vectors, embed_identities(held, people).vectors)


def test_a_run_reads_other_pictures_as_its_own(people, held, fit, tmp_path):
    run = fit(config(people, tmp_path / "run", fit="crop"))
    assert run.history[0]["loss"] != held.history[0]["loss"]
    assert run.data["notes"] == ["123 of 123 pictures are not square: cropped"]
    own = run.embed(prepare_data(run.config).dataset.examples)
    for other in (embed_identities(run, people).vectors, embed_folder(run, people).vectors):
        np.testing.assert_array_equal(other, own)
    padded = dataclasses.replace(run, config=run.config.replace(fit="pad"))
    assert not np.allclose(embed_folder(padded, people).vectors, own)
    first, second = people / "p00" / "0.png", people / "p01" / "0.png"
    distances = [verify_images(r, first, second) for r in (run, padded)]
    row = embed_folder(run, people).files.index("p01/0.png")
    assert distances[0] == pytest.approx(np.linalg.norm(own[0] - own[row]), rel=1e-4)
    assert distances[1] != pytest.approx(distances[0], rel=1e-3)


def test_waiting_for_data_is_recorded(held):
    assert all(0 < record["data_wait"] < 1 for record in held.history)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "balanced"},
        {"fillers": 2, "images_per_identity": 3},
        {"augment": "flip,shift:2,crop:0.8"},
        {"split": "halves"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_the_training_and_can_be_repeated(people, held, fit, tmp_path, options):
    run, again = (
        fit(config(people, tmp_path / name, **options, **held_options))
        for name, held_options in (("one", {}), ("two", {"memory_limit": 0}))
    )
    assert timeless(run.history) == timeless(again.history)
    assert run.history[0]["loss"] != held.history[0]["loss"]
    plan, coverage = plan_epoch(
        run.config, (data := prepare_data(run.config)).dataset, data.train, 0
    )
    assert run.history[0]["images"] == plan.size
    assert run.history[0]["steps"] == len(plan)
    assert plan.shape[1] == run.config.batch_size
    assert run.data["coverage"]["used"] == coverage.used == len(np.unique(plan))
    if "split" in options:
        assert run.data["identities"]["test"] == [f"p{i:02}" for i in range(16, 33)]


def test_a_split_can_be_used_again_by_name(people, held, tmp_path, monkeypatch):
    monkeypatch.chdir(held.path.parent)
    again = config(people, tmp_path / "run", split="held/data.json", seed=7)
    assert again.split == str(held.path / "data.json")
    assert prepare_data(again).described["identities"] == held.data["identities"]
    fewer = json.loads((held.path / "data.json").read_text())["identities"]
    fewer["test"] = fewer["test"][:5]
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    data = prepare_data(config(people, tmp_path / "run", split=str(tmp_path / "fewer.json")))
    assert data.described["identities"] == fewer
    listed = {name for part in fewer.values() for name in part}
    rows = np.unique(np.concatenate([p.rows.ravel() for p in data.pairs.values()]))
    names = np.array(data.dataset.identities)[data.dataset.labels]
    assert set(names[rows]) | set(names[data.train]) <= listed


def test_a_finished_run_is_tested_on_the_names_that_it_saved(people, held, fit, tmp_path):
    """Whatever has become of the file of lists."""
    lists = tmp_path / "lists.json"
    lists.write_text((held.path / "data.json").read_text())
    run = fit(config(people, tmp_path / "run", split=str(lists)))
    names = json.loads(lists.read_text())["identities"]
    lists.write_text(json.dumps({**names, "test": names["train"], "train": names["test"]}))
    assert evaluate_run(run, embed_identities(run)).auc == run.report["test"]["auc"]
    lists.unlink()
    assert evaluate_run(run, embed_identities(run)).auc == run.report["test"]["auc"]


def test_a_comparison_loads_what_its_configuration_says(
    people, tiny_encoder, tmp_path, monkeypatch
):
    asked = config(people, tmp_path / "all", memory_limit=0.5)
    monkeypatch.setattr(arms, "load", lambda given: pytest.fail(repr(given == asked)))
    with pytest.raises(pytest.fail.Exception, match="True"):
        mj.compare({"constant": asked}, [0], encoder=tiny_encoder)


def test_description(people, tmp_path):
    described = config(people, tmp_path / "run", images_per_identity=3, fillers=2)
    dataset = prepare_data(described.replace(fillers=0)).dataset
    text = "\n".join(describe(described, dataset))
    sizes = [2 + person % 5 for person in range(30)] + [1] * 3
    assert f"{sum(sizes)} images of 33 identities, 12 x 12 in colour" in text
    assert "1 unreadable, skipped; first p00/broken.jpg" in text
    assert "images of an identity: 1 to 6, median 4" in text
    assert f"{sum(sizes)} of {sum(sizes)} pictures are not square: padded" in text
    assert text.splitlines()[5].split() == ["1", "3", "3"]
    assert text.splitlines()[6].split() == ["2", "to", "3", "12", "30"]
    assert text.splitlines()[7].split() == ["4", "to", "7", "18", "90"]
    for sampler in ("pk", "balanced"):
        data = prepare_data(described.replace(sampler=sampler))
        share = data.described["coverage"]["used"] / data.described["coverage"]["images"]
        plan, _ = plan_epoch(described.replace(sampler=sampler), dataset, data.train, 0)
        line = f"sampler {sampler}: {len(plan)} batches of 4 x 3 and 2 fillers, {share:.1%} of"
        assert line in text
    too_many = "\n".join(describe(described.replace(identities_per_batch=30), dataset))
    assert "a batch needs 30 identities" in too_many


def test_describe_on_the_command_line(people, tmp_path, monkeypatch, capsys):
    command = ["datasets", "describe", "folder", "--data-dir", str(people)]
    small = ["--identities-per-batch", "4", "--max-identities", "20"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, *small, "--out", str(tmp_path / "sheet.png")])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "images of 20 identities, 64 x 64 in colour" in shown
    assert f"contact sheet: {tmp_path / 'sheet.png'}" in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 1000
    # What there is is said though it cannot be split.
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--max-identities", "6"])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert "images of 6 identities" in shown.out
    assert "split needs at least 15 identities" in shown.err
    # Where nothing is said nothing is written.
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, *small])
    assert not stopped.value.code
    assert "contact sheet" not in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_contact_sheet_shows_large_and_small_identities_of_any_name():
    labels = np.repeat(["$x^2$", "中文", "caf\udce9", "c"], [40, 3, 2, 1])
    images = np.arange(46, dtype=np.uint8).reshape(46, 1, 1, 1).repeat(8, 1).repeat(8, 2) * 5
    figure = plots.plot_contact_sheet(mj.Dataset.from_arrays(images, labels), 20, 5)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "$x^2$ (40)",
        "中文 (3)",
        "caf\\udce9 (2)",  # no text, and what a typeface could not draw
    ]
    figure.savefig(io.BytesIO())  # in silence, though no typeface here has 中文
    sheet = axes.images[0].get_array()
    for row, name in enumerate(["$x^2$", "中文", "caf\udce9"]):
        own = np.flatnonzero(labels == name)
        assert sheet[row * 9 + 4, 4] == own[0] * 5
    figure.canvas.draw()


def test_the_list_of_datasets(tmp_path, capsys):
    (tmp_path / "emnist" / "balanced" / "3.1.0").mkdir(parents=True)
    (tmp_path / "emnist" / "balanced" / "3.1.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "mine" / "1.0.0").mkdir(parents=True)
    (tmp_path / "mine" / "1.0.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "mnist" / "incomplete.X_3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "incomplete.X_3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(SystemExit):
        cli.main(["datasets", "--data-dir", str(tmp_path)])
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if ":" in line}
    assert said["tfds:emnist:balanced"].endswith(" prepared")
    assert said["tfds:mine"].endswith(" prepared")
    for name in ("lfw", "caltech_birds2011", "cars196", "omniglot", "mnist", "fashion_mnist"):
        assert said[f"tfds:{name}"].endswith("not prepared")


def test_a_run_of_an_earlier_time_reads_pictures_as_it_did(people, tmp_path):
    """Its configuration does not have the options that came later."""
    saved = json.loads(config(people, tmp_path / "run").to_json())
    assert mj.TrainConfig.from_json(json.dumps(saved)) == config(people, None)
    for name in ("fit", "bits", "transparency", "repeated_names"):
        del saved[name]
    earlier = mj.TrainConfig.from_json(json.dumps(saved))
    assert reading_of(earlier) == ("stretch", "ignore", 16)
    assert earlier.repeated_names == "separate"


def small_set(identities, images):
    labels = np.repeat(np.arange(identities), images)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
    return mj.Dataset.from_arrays(pixels, labels)


def test_a_small_set_trains_at_the_defaults(tiny_encoder, tmp_path):
    options = {"dataset": "own", "encoder": "own", "epochs": 1, "out": str(tmp_path)}
    said = "a batch has 16 identities of 4 images, as there are 16 to train on; identities_per"
    with pytest.warns(UserWarning, match=said):
        run = mj.fit(mj.TrainConfig(**options), dataset=small_set(40, 10), encoder=tiny_encoder)
    assert run.history[0]["images"] == 2 * 16 * 4
    # What was chosen is the run's: another rule of a later version would not change it.
    assert (run.config.identities_per_batch, run.config.images_per_identity) == (16, 4)
    saved = mj.load_run(tmp_path, encoder=tiny_encoder).config
    assert saved.experiment() == run.config.experiment()


@pytest.mark.parametrize(("identities", "said"), [(100, False), (40, True)])
def test_what_is_said_of_a_batch_is_of_its_identities(identities, said):
    """That its images are as many as was asked for is no news."""
    asked = mj.TrainConfig(dataset="own", encoder="own", images_per_identity=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settled, _ = settle_batches(asked, small_set(identities, 4))
    assert settled.identities_per_batch == (16 if said else 32)
    assert [str(w.message)[:42] for w in caught] == (
        ["a batch has 16 identities of 4 images, as "] if said else []
    )


def test_a_comparison_settles_its_batches_and_goes_on(tiny_encoder, tmp_path):
    options = {"dataset": "own", "encoder": "own", "epochs": 1, "out": str(tmp_path)}
    cells = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="a batch has 16 identities"):
            mj.compare(
                mj.vary(mj.TrainConfig(**options), schedule=["constant"]),
                [0],
                dataset=small_set(40, 10),
                encoder=tiny_encoder,
            )
        cells.append((tmp_path / "constant-seed0" / "report.json").stat().st_mtime_ns)
    assert cells[0] == cells[1]


def test_the_smallest_sets_say_what_can_be_done():
    asked = mj.TrainConfig(dataset="own", encoder="own")
    with pytest.raises(ValueError, match="two identities for each part are six at least: add some"):
        prepare_data(asked, small_set(5, 3))
    with pytest.raises(ValueError, match="--split 40/30/30 would do with 7"):
        prepare_data(asked, small_set(7, 3))
    assert prepare_data(asked.replace(split="40/30/30"), small_set(7, 3)).train.size == 9
    with pytest.raises(ValueError, match="set identities_per_batch to at most 16"):
        prepare_data(asked.replace(identities_per_batch=32), small_set(40, 10))


def test_a_batch_that_follows_the_data_is_divided_by_the_microbatch(tiny_encoder, tmp_path):
    asked = mj.TrainConfig(dataset="own", encoder="own", out=str(tmp_path), microbatch=7)
    with pytest.raises(ValueError, match="must divide the batch, here of 64 rows; got 7"):
        mj.fit(asked, dataset=small_set(40, 10), encoder=tiny_encoder)


def test_a_name_that_is_no_text_is_named(tiny_encoder, tmp_path):
    mine = small_set(40, 4)
    mine = dataclasses.replace(mine, identities=("caf\udce9", *mine.identities[1:]))
    asked = mj.TrainConfig(dataset="own", encoder="own", out=str(tmp_path), identities_per_batch=8)
    with pytest.raises(
        ValueError, match=r"must be text; caf\\udce9 has bytes that are not text: rename"
    ):
        mj.fit(asked, dataset=mine, encoder=tiny_encoder)
