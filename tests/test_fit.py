"""Whole runs, small ones: what they leave behind, determinism, resume, and refusals."""

import dataclasses
import itertools
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import margin_jax as mj
from margin_jax.cli.train import summary
from margin_jax.devices.meshes import place_copies
from margin_jax.files import to_json
from margin_jax.runs import claim, fit, resume
from margin_jax.runs.folder import read_config, read_history
from margin_jax.runs.resume import is_finished
from margin_jax.runs.run_data import prepare_data
from margin_jax.runs.validation import best_epoch, is_over
from margin_jax.training.checkpoint import Checkpoint

TIMING = ("seconds", "images_per_second", "data_wait")
SMALL = mj.TrainConfig(
    max_identities=60,
    epochs=3,
    identities_per_batch=8,
    images_per_identity=4,
    schedule="dams:threshold=0.5",
    image_size=16,
    width=0.25,
)


def timeless(history):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in history]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return mj.fit(SMALL.replace(out=str(out)))


def test_a_run_leaves_all_that_the_readme_lists(finished):
    found = {path.name for path in finished.path.iterdir()}
    assert found == {
        "checkpoints",
        "config.json",
        "data.json",
        "figures",
        "history.jsonl",
        "pairs.npz",
        "report.json",
    }
    figures = sorted(path.name for path in (finished.path / "figures").iterdir())
    drawn = ("det", "distances", "effective_margin", "loss", "margin", "roc")
    assert figures == [f"{name}.png" for name in drawn]
    for name in figures:
        pixels = np.asarray(Image.open(finished.path / "figures" / name).convert("L"))
        assert pixels.shape[1] > 600
        assert pixels.std() > 10, f"{name} is blank"


def test_history_tells_the_margin_in_force_and_the_next(finished):
    history = finished.history
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert [record["valid"] for record in history] == [
        record["easy"] + record["semihard"] + record["hard"] for record in history
    ]
    for record, after in itertools.pairwise(history):
        assert after["margin"] == record["next_margin"]
    for record in history:
        raised = record["easy_fraction"] >= 0.5
        expected = np.float32(record["margin"]) + np.float32(0.05 if raised else 0)
        assert np.float32(record["next_margin"]) == expected
    assert history[-1]["next_margin"] > history[0]["margin"], "the rule was never put to use"


def test_report_is_about_the_best_epoch_and_the_saved_pairs(finished):
    test = finished.report["test"]
    aucs = [record["validation_auc"] for record in finished.history]
    assert finished.report["best_epoch"] == 1 + int(np.argmax(aucs))
    assert finished.report["validation"]["auc"] == pytest.approx(max(aucs))
    assert test["published"]["same_pairs"] == test["published"]["different_pairs"] == 500
    assert {"auc", "eer", "accuracy", "hard", "raw"} <= set(test)

    # From the files alone: the saved pairs, embedded by the loaded run, give the reported figures.
    run = mj.load_run(finished.path)
    dataset = prepare_data(SMALL).dataset
    with np.load(run.path / "pairs.npz") as pairs:
        rows, same, files = pairs["test_rows"], pairs["test_same"], pairs["files"]
        validation, alike = pairs["validation_rows"], pairs["validation_same"]
    assert tuple(files) == dataset.files
    vectors = run.embed(dataset.examples)
    apart = np.linalg.norm(np.diff(vectors[validation], axis=1)[:, 0], axis=1)
    chosen = mj.choose_threshold(apart, alike)
    assert test["threshold"] == pytest.approx(chosen, abs=1e-3)
    distances = np.linalg.norm(vectors[rows[:, 0]] - vectors[rows[:, 1]], axis=1)
    report = mj.verification_report(distances, same, threshold=test["threshold"])
    assert report.auc == pytest.approx(test["auc"], abs=1e-5)
    assert report.accuracy == pytest.approx(test["accuracy"], abs=2e-3)


def test_a_threshold_for_a_false_match_rate(finished, tmp_path):
    run = mj.fit(SMALL.replace(out=str(tmp_path / "run"), fmr=0.006))
    assert timeless(run.history) == timeless(finished.history), "it decides nothing else"
    with np.load(run.path / "pairs.npz") as pairs, np.load(finished.path / "pairs.npz") as others:
        assert {*pairs} - {*others} == {"threshold_rows", "threshold_same"}
        rows, same = pairs["threshold_rows"], pairs["threshold_same"]
        np.testing.assert_array_equal(
            rows[same], others["validation_rows"][others["validation_same"]]
        )
    dataset = prepare_data(SMALL).dataset
    names = np.array([name.split()[0] for name in dataset.files])
    assert set(names[rows].ravel()) == set(run.data["identities"]["validation"])
    assert np.count_nonzero(~same) == 5184
    vectors = run.embed(dataset.examples)
    apart = np.linalg.norm(vectors[rows[:, 0]] - vectors[rows[:, 1]], axis=1)
    chosen = mj.choose_threshold(apart, same, 0.006)
    assert run.threshold == pytest.approx(chosen, abs=1e-3)
    assert run.report["validation"]["threshold"] == run.threshold != finished.threshold
    assert run.report["test"]["auc"] == finished.report["test"]["auc"]
    assert "chosen on validation for FMR 0.006" in summary(run)
    assert "chosen on validation for FMR 0.006" in run._repr_markdown_()
    assert mj.load_run(run.path).config.fmr == 0.006


def test_parts_share_no_identity_and_pairs_stay_in_their_part(finished):
    identities = finished.data["identities"]
    everyone = [name for part in identities.values() for name in part]
    assert len(everyone) == len(set(everyone)) == 60
    with np.load(finished.path / "pairs.npz") as pairs:
        names = np.array([file.split()[0] for file in pairs["files"]])
        for name in ("validation", "test", "published", "hard"):
            part = "validation" if name == "validation" else "test"
            assert set(names[pairs[f"{name}_rows"]].ravel()) <= set(identities[part])


def test_the_same_seed_gives_the_same_history_and_another_does_not(finished, tmp_path):
    again = mj.fit(SMALL.replace(out=str(tmp_path / "again")))
    assert timeless(again.history) == timeless(finished.history)
    assert again.report == finished.report
    other = mj.fit(SMALL.replace(out=str(tmp_path / "other"), seed=1, epochs=1))
    assert timeless(other.history) != timeless(finished.history[:1])
    assert other.data["identities"] != finished.data["identities"]


class Killed(BaseException):
    """Like a signal."""


def test_a_killed_run_resumes_as_if_nothing_had_happened(finished, tmp_path):
    config = SMALL.replace(out=str(tmp_path / "run"))

    def kill(record):
        if record["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        mj.fit(config, on_epoch=kill)
    with pytest.raises(ValueError, match="no finished run"):
        mj.load_run(config.folder)
    # A record without its saved state, and half a line: what a kill at a bad moment leaves.
    with open(config.folder / "history.jsonl", "a") as file:
        file.write(to_json({**read_history(config.folder)[-1], "epoch": 3}) + '\n{"epoch": 4')
    seen = []
    resumed = mj.fit(config.replace(resume=True), on_epoch=lambda r: seen.append(r["epoch"]))
    assert seen == [3]
    assert timeless(resumed.history) == timeless(finished.history)
    assert resumed.report == finished.report


def test_killed_after_any_save_it_goes_on_to_the_last_bit(tiny_fit, tmp_path, monkeypatch):
    """In the middle of epochs too, with a memory, a histogram, and mining that changes."""
    options = {
        "schedule": "automargin:smoothing=0.7,k=1.5",
        "mining": "all,2:semihard",
        "histogram": True,
        "augment": "flip,shift:1",
        "microbatch": 4,
        "memory": 21,
        "memory_warmup": 3,
        "checkpoint_steps": 4,
        "epochs": 2,
    }
    whole = tiny_fit(tmp_path / "whole", **options)
    save, saved = Checkpoint.save, []

    def save_and_die(checkpoint, step, arrays, record):
        save(checkpoint, step, arrays, record)
        checkpoint.wait()
        saved.append(step)
        raise Killed

    lives = 0
    with monkeypatch.context() as patched:
        patched.setattr(fit, "_SAVE_SECONDS", 0)
        patched.setattr(Checkpoint, "save", save_and_die)
        while True:
            lives += 1
            try:
                resumed = tiny_fit(tmp_path / "killed", resume=True, **options)
                break
            except Killed:
                continue
    steps = [record["steps"] for record in whole.history]
    assert saved == [0, *(s for s in range(1, sum(steps) + 1) if s % steps[0] in (0, 4, 8))]
    assert lives == len(saved) + 1
    assert timeless(resumed.history) == timeless(whole.history)
    assert resumed.report == whole.report
    assert read_history(resumed.path) == resumed.history
    assert len({record["margin"] for record in whole.history}) == 2
    assert all(len(record["effective_quantiles"]) == 7 for record in whole.history)
    assert all(record["memory"]["valid"] > record["valid"] / 2 for record in whole.history)
    with pytest.raises(ValueError, match=r"mining is all,2:semihard, asked for all$"):
        tiny_fit(tmp_path / "killed", resume=True, **{**options, "mining": "all"})


def test_resumed_on_other_devices_it_is_the_same_to_rounding(tiny_fit, tmp_path):
    whole, out = tiny_fit(tmp_path / "whole", schedule="dams:threshold=0.5"), tmp_path / "run"
    for epochs, devices in ((1, 1), (3, 4)):
        run = tiny_fit(
            out, schedule="dams:threshold=0.5", epochs=epochs, devices=devices, resume=True
        )
    for record, expected in zip(run.history, whole.history, strict=True):
        assert record["next_margin"] == expected["next_margin"]
        assert record["valid"] == expected["valid"]
        for name in ("loss", "mean_an", "gradient_norm", "validation_auc"):
            assert record[name] == pytest.approx(expected[name], rel=1e-4)
    assert run.history[0]["loss"] == whole.history[0]["loss"]


def test_sigterm_saves_and_exits_with_143(tiny_fit, tmp_path, monkeypatch):
    whole, out = tiny_fit(tmp_path / "whole"), tmp_path / "run"
    load, sent = fit.load_batches, []

    def terminated(*args, first_step, **more):
        batches = load(*args, first_step=first_step, **more)
        for step, batch in enumerate(batches, first_step):
            if step == 5 and len(sent) < 2:
                sent.append(step)
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(fit, "load_batches", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        tiny_fit(out)
    assert stopped.value.code == 143
    assert stopped.value.when == "after epoch 0 and 5 steps"
    assert signal.getsignal(signal.SIGTERM) is before
    seen = []
    with pytest.raises(SystemExit):  # at once again, before a step
        tiny_fit(out, resume=True, on_epoch=lambda record: seen.append(record["epoch"]))
    resumed = tiny_fit(out, resume=True)
    assert seen == []
    assert timeless(resumed.history) == timeless(whole.history)
    assert resumed.report == whole.report

    with pytest.raises(SystemExit) as stopped:
        tiny_fit(tmp_path / "other", on_epoch=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.value.when == "after epoch 1"

    close = Checkpoint.close
    monkeypatch.setattr(
        Checkpoint, "close", lambda self: (close(self), os.kill(os.getpid(), signal.SIGTERM))
    )
    with pytest.raises(SystemExit) as stopped:  # while the last of it is saved
        tiny_fit(tmp_path / "last", epochs=1)
    assert stopped.value.when == "after epoch 1"


def test_a_run_that_diverges_says_where_and_keeps_its_state(tiny_fit, tmp_path):
    out = tmp_path / "run"
    message = r"epoch 1, step 2 is not finite: loss nan.*identities of its batch: \d+, .*9e\+37"
    with pytest.raises(mj.DivergedError, match=message) as diverged:
        tiny_fit(out, learning_rate=9e37, checkpoint_steps=1)  # step 1 is not proven good
    assert (diverged.value.epoch, diverged.value.step) == (1, 2)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"nan.* in .*\.py, line"):
        tiny_fit(out, learning_rate=9e37, resume=True)
    with pytest.raises(ValueError, match=r"learning_rate is 9e\+37, asked for 0.001; --allow-ch"):
        tiny_fit(out, resume=True)
    run = tiny_fit(out, resume=True, allow_changes=True)  # from the state before it went wrong
    assert np.isfinite(run.report["test"]["auc"])
    assert read_config(out).learning_rate == 0.001
    (change,) = map(json.loads, (out / "changes.jsonl").read_text().splitlines())
    assert change == {"whole_epochs": 0, "changed": "learning_rate is 9e+37, asked for 0.001"}


def test_what_no_change_can_be_asked_for(tiny_fit, tmp_path):
    """What would mix two splits, make the best epoch another, or tell what did not happen."""
    tiny_fit(tmp_path, epochs=2)
    again = {"resume": True, "allow_changes": True}
    for change in (
        {"seed": 1, "epochs": 3},
        {"select": "loss", "epochs": 3},
        {"images_per_identity": 3, "epochs": 3},
        {"optimizer": "adagrad", "epochs": 3},
        {"learning_rate": 0.5, "epochs": 2},
        {"epochs": 1},
    ):
        with pytest.raises(ValueError, match=r"as another run: .*asked for [^;]*$"):
            tiny_fit(tmp_path, **{"epochs": 2, **again, **change})
    with pytest.raises(ValueError, match="damaged, or of another"):  # its schedule has a memory
        tiny_fit(tmp_path, **again, schedule="automargin", epochs=3)
    assert read_config(tmp_path).epochs == 2
    assert not (tmp_path / "changes.jsonl").exists()


def test_a_run_without_its_checkpoint_is_not_begun_anew(tiny_fit, tmp_path):
    tiny_fit(tmp_path, epochs=1)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="nothing in checkpoints; --overwrite begins anew"):
        tiny_fit(tmp_path, resume=True)
    assert len(read_history(tmp_path)) == 1
    assert (tmp_path / "report.json").is_file()


def test_a_callback_that_fails_loses_no_epoch(tiny_fit, tmp_path):
    whole = tiny_fit(tmp_path / "whole")

    def disconnected(record):
        if record["epoch"] == 2:
            raise ConnectionError("no network")  # an OSError, but not of the run folder

    seen = []
    with pytest.raises(ConnectionError):
        tiny_fit(tmp_path / "run", on_epoch=disconnected)
    run = tiny_fit(tmp_path / "run", resume=True, on_epoch=lambda r: seen.append(r["epoch"]))
    assert seen == [3]
    assert timeless(run.history) == timeless(whole.history)


class Point(nn.Module):
    """Whatever the image, nearly the same embedding."""

    @nn.compact
    def __call__(self, images, *, train):
        x = 1 + 1e-4 * nn.Dense(8)(images.reshape(len(images), -1))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Returns(nn.Module):
    """Whatever it is told to make of a layer."""

    made: Callable

    @nn.compact
    def __call__(self, images, *, train):
        return self.made(nn.Dense(8)(images.reshape(len(images), -1)))


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda x: (x, x), "(ShapeDtypeStruct(shape=(1, 8), dtype=float32), Shape"),
        (lambda x: x[:, None], "ShapeDtypeStruct(shape=(1, 1, 8), dtype=float32)"),
        (lambda x: x[0], "ShapeDtypeStruct(shape=(8,), dtype=float32)"),
        (lambda x: x.astype(int), "ShapeDtypeStruct(shape=(1, 8), dtype=int32)"),
    ],
    ids=["two", "rank 3", "rank 1", "integers"],
)
def test_a_network_that_returns_no_embeddings_is_refused_at_once(tiny_fit, tmp_path, made, got):
    with pytest.raises(ValueError, match=rf"\(1, d\) for one example; got {re.escape(got)}"):
        tiny_fit(tmp_path / "run", encoder=mj.Encoder(Returns(made)))
    assert not (tmp_path / "run").exists()


def test_a_collapse_is_said(tiny_fit, tmp_path):
    with pytest.warns(UserWarning, match=r"collapsed.*the margin, 0.2, .*Lower the learning rate"):
        run = tiny_fit(tmp_path, encoder=mj.Encoder(Point()), epochs=1)
    assert run.history[0]["loss"] == pytest.approx(0.2, rel=0.1)
    assert run.history[0]["collapsed"]


def test_a_full_disk_stops_the_run_and_leaves_its_last_state(tiny_fit, tmp_path, monkeypatch):
    """No file of this process may grow: a full disk, for one test."""
    monkeypatch.setattr(fit, "_SAVE_SECONDS", 0)
    whole, out = tiny_fit(tmp_path / "whole"), tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))

    try:
        with pytest.raises(OSError, match=r"cannot (save|write)"):
            tiny_fit(out, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resumed = tiny_fit(out, resume=True)
    assert timeless(resumed.history) == timeless(whole.history)
    assert resumed.report == whole.report


def test_a_full_disk_leaves_the_pairs_of_a_finished_run(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", epochs=1)
    pairs = (run.path / "pairs.npz").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(pairs) // 2, before[1]))
        with pytest.raises(ValueError, match="cannot write the run folder"):
            tiny_fit(run.path, epochs=1, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (run.path / "pairs.npz").read_bytes() == pairs
    assert not list(run.path.glob("*.partial"))


def test_a_refused_resume_changes_nothing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    before = (folder / "config.json").read_text()
    for arrays in (folder / "checkpoints").glob("*/arrays"):
        shutil.rmtree(arrays)
    with pytest.raises(ValueError, match=r"cannot restore .*checkpoints: it is damaged"):
        mj.fit(SMALL.replace(out=str(folder), resume=True, epochs=9))
    assert (folder / "config.json").read_text() == before


def test_a_schedule_gets_the_histogram_that_it_needs(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", schedule="quantile_margin:low=-1")
    for record in run.history:
        low, high = record["effective_quantiles"][1:3]  # 5 and 25 %, around its own 10 %
        assert low <= record["next_margin"] <= high
    without = tiny_fit(tmp_path / "without", epochs=1)
    assert without.history[0]["effective_quantiles"] is None


def test_resume_takes_more_epochs_of_the_same_run_only(tiny_fit, tmp_path):
    out, again = tmp_path / "run", {"resume": True, "schedule": "dams:threshold=0.5"}
    whole = tiny_fit(tmp_path / "whole", schedule="dams:threshold=0.5")
    tiny_fit(out, schedule="dams:threshold=0.5", epochs=2)
    longer = tiny_fit(out, **again)
    assert timeless(longer.history) == timeless(whole.history)
    for change, message in (
        ({"seed": 5}, "seed is 0, asked for 5"),
        ({"schedule": "constant"}, "schedule is dams:threshold=0.5, asked for constant"),
        ({"epochs": 1}, "epochs is 3, asked for 1"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_fit(out, **{**again, **change})
    assert timeless(read_history(out)) == timeless(whole.history)


def test_another_schedule_may_say_another_margin(tiny_fit, tmp_path):
    tiny_fit(tmp_path, schedule="dams", epochs=1)
    changed = {"schedule": "constant:0.3", "epochs": 2, "resume": True, "allow_changes": True}
    assert tiny_fit(tmp_path, **changed).config.margin == 0.3


def epochs_of(values):
    return [{"epoch": i + 1, "validation_auc": value} for i, value in enumerate(values)]


def test_patience_counts_from_the_best_epoch():
    config = mj.TrainConfig(epochs=6, patience=2)
    for values, over in (
        ([], False),
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.4], True),
        ([0.5, 0.5, 0.5], True),  # as good is not better
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.4, 0.6, 0.5, 0.5], True),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),
    ):
        assert is_over(config, epochs_of(values)) == over, values
    for values in ([], [0.5, 0.4, 0.3, 0.2, 0.1]):
        assert not is_over(config.replace(patience=None), epochs_of(values))
    losses = [
        {"epoch": i + 1, "validation_loss": v, "validation_auc": i}
        for i, v in enumerate((1.0, 3.0))
    ]
    assert is_over(config.replace(select="loss", patience=1), losses)
    assert not is_over(config.replace(patience=1), losses)


def test_a_run_without_patience_left_stops_and_resumes_to_the_same_end(tiny_fit, tmp_path):
    """Its validation is best after the first epoch; and its learning rate falls as planned."""
    options = {"epochs": 9, "learning_rate_schedule": "exponential"}
    whole = tiny_fit(tmp_path / "whole", **options)
    best = best_epoch(whole.history, "auc")
    assert best + 2 < 9
    run = tiny_fit(tmp_path / "patient", **options, patience=2)
    assert timeless(run.history) == timeless(whole.history)[: best + 2]
    assert run.report["stopped_early"] == {"patience": 2, "of_epochs": 9}
    assert run.report["epochs"] == best + 2
    assert run.report["test"] == whole.report["test"]
    assert "stopped_early" not in whole.report

    class Killed(BaseException):
        pass

    def kill(record):
        if record["epoch"] in (best, best + 2):
            raise Killed

    out = tmp_path / "killed"
    for _ in range(2):
        with pytest.raises(Killed):
            tiny_fit(out, **options, patience=2, resume=True, on_epoch=kill)
    assert not (out / "report.json").exists()
    seen = []
    resumed = tiny_fit(out, **options, patience=2, resume=True, on_epoch=seen.append)
    assert seen == []  # it had stopped already
    assert timeless(resumed.history) == timeless(run.history)
    assert resumed.report == run.report

    again = {"resume": True, **options}
    with pytest.raises(ValueError, match=r"patience is 2, asked for 4; --allow-changes goes on"):
        tiny_fit(out, **again, patience=4)
    assert (out / "report.json").exists()
    longer = tiny_fit(out, **again, patience=4, allow_changes=True)
    assert timeless(longer.history) == timeless(whole.history)[: best + 4]


def test_a_run_that_stopped_early_is_finished_whatever_epochs_are_asked_for(tmp_path, no_pictures):
    config = mj.TrainConfig(
        max_identities=40,
        encoder="mlp",
        learning_rate=1e-12,  # so that no epoch is better than the first
        epochs=4,
        patience=1,
        identities_per_batch=4,
        out=str(tmp_path / "run"),
    )
    assert not is_finished(config)
    assert len(mj.fit(config).history) == 2
    assert is_finished(config)
    assert is_finished(config.replace(epochs=9))
    assert not is_finished(config.replace(patience=3))
    assert not is_finished(config.replace(epochs=9, learning_rate=1e-3))


def test_resume_takes_the_same_images_and_network_only(tiny_encoder, tmp_path, no_pictures):
    images = np.random.default_rng(0).integers(0, 256, (120, 6, 6, 1)).astype(np.uint8)
    config = mj.TrainConfig(
        dataset="own", encoder="own", epochs=1, identities_per_batch=4, out=str(tmp_path / "run")
    )

    def train(images, encoder, **options):
        mine = mj.Dataset.from_arrays(images, np.arange(120) // 4)
        return mj.fit(config.replace(**options), dataset=mine, encoder=encoder)

    train(images, tiny_encoder)
    wider = mj.Encoder(type(tiny_encoder.module)(features=9))
    for other, what in (((255 - images, tiny_encoder), "sha256"), ((images, wider), "network")):
        with pytest.raises(ValueError, match=rf"other examples .* \(data.json differs in {what}\)"):
            train(*other, epochs=2, resume=True)
    assert len(train(images, tiny_encoder, epochs=2, resume=True).history) == 2


def test_a_run_that_is_there_is_not_touched_without_being_asked(finished, tmp_path):
    before = (finished.path / "history.jsonl").read_text()
    with pytest.raises(ValueError, match="holds a run"):
        mj.fit(SMALL.replace(out=str(finished.path)))
    assert (finished.path / "history.jsonl").read_text() == before
    # Nor is anything that is no run, whatever is asked.
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a run folder"):
        mj.fit(SMALL.replace(out=str(tmp_path), overwrite=True))
    (tmp_path / "config.json").write_text("{}")  # of something else
    with pytest.raises(ValueError, match="not a run folder"):
        mj.fit(SMALL.replace(out=str(tmp_path), overwrite=True))
    for name in ("data.json", "pairs.npz"):
        (tmp_path / name).write_text('{"precious": 1}')
    with pytest.raises(ValueError, match="not a run folder"):
        mj.fit(SMALL.replace(out=str(tmp_path), overwrite=True))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "data.json").write_text('{"precious": 1}')
    with pytest.raises(ValueError, match="not a run folder"):
        mj.fit(SMALL.replace(out=str(alone), resume=True))
    assert (alone / "data.json").read_text() == '{"precious": 1}'


def test_a_longer_run_has_no_report_until_it_is_finished(tiny_fit, tmp_path):
    """Its weights would be others than those that the report is about."""
    out = tmp_path / "run"
    tiny_fit(out, epochs=1)

    def kill(record):
        raise Killed

    with pytest.raises(Killed):
        tiny_fit(out, on_epoch=kill, resume=True)
    with pytest.raises(ValueError, match="no finished run"):
        mj.load_run(out)
    (out / "history.jsonl").write_text("")  # nothing is lost: the checkpoint has it too
    assert len(tiny_fit(out, resume=True).history) == 3
    assert len(read_history(out)) == 3


def test_what_a_kill_left_of_a_beginning_can_be_begun_again(tiny_fit, tmp_path):
    (tmp_path / "data.json").write_text('{"identities": {}, "coverage": {}}')
    (tmp_path / "config.json.partial").write_text("{")
    assert len(tiny_fit(tmp_path, epochs=1, resume=True).history) == 1


def test_overwriting_removes_the_run_and_nothing_else(tiny_fit, tmp_path):
    tiny_fit(tmp_path, epochs=1)
    (tmp_path / "notes.txt").write_text("kept")
    run = tiny_fit(tmp_path, overwrite=True, epochs=2, seed=1)
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert read_config(tmp_path).seed == 1
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_nobody_else_may_begin_resume_or_overwrite_a_run_that_is_trained(
    tiny_fit, tmp_path, monkeypatch
):
    """Nor even look at what it would remove, which comes and goes while a run is saved."""
    monkeypatch.setattr(claim, "check_removable", lambda folder: pytest.fail("it is not ours"))
    whole, out = tiny_fit(tmp_path / "whole"), tmp_path / "run"
    refused = []

    def another(record):
        used = rf"in use by process {os.getpid()} on "
        for how, message in (
            ({}, "a run: add --resume"),
            ({"resume": True}, used),
            ({"overwrite": True}, used),
        ):
            with pytest.raises(ValueError, match=message):
                tiny_fit(out, **how)
            refused.append(record["epoch"])

    run = tiny_fit(out, on_epoch=another)
    assert refused == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert timeless(read_history(out)) == timeless(whole.history) == timeless(run.history)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.path.iterdir()}


def test_a_run_in_brackets_trains_resumes_and_loads(tiny_fit, tmp_path):
    out = tmp_path / "lr[0.1]" / "run *"
    tiny_fit(out, epochs=1)
    run = tiny_fit(out, epochs=2, resume=True)
    assert read_history(out) == run.history
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert run.path == out


def test_a_run_that_appears_while_the_data_are_loaded_is_left_alone(
    tiny_fit, tmp_path, monkeypatch
):
    """On a file system without locks, say."""
    done, out = tiny_fit(tmp_path / "done", epochs=1), tmp_path / "run"
    prepare = resume.prepare_folder

    def meanwhile(config, data):
        shutil.copytree(done.path, out, dirs_exist_ok=True)
        return prepare(config, data)

    monkeypatch.setattr(resume, "prepare_folder", meanwhile)
    with pytest.raises(ValueError, match="holds a run"):
        tiny_fit(out)
    assert read_history(out) == done.history
    assert (out / "report.json").is_file()


IN_THE_WAY = {
    "a link": (lambda out: move(out / "checkpoints"), "a link to somewhere else"),
    "a file for a folder": (lambda out: move(out / "checkpoints", link=False), "is not a folder"),
    "a folder for a file": (
        lambda out: [(out / "pairs.npz").unlink(), (out / "pairs.npz").mkdir()],
        "which is a folder",
    ),
}


def move(path, link=True):
    path.rename(path.with_name("moved"))
    if link:
        path.symlink_to(path.with_name("moved"))
    else:
        path.touch()


@pytest.mark.parametrize(("change", "message"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_a_run_is_overwritten_whole_or_not_at_all(change, message, tiny_fit, tmp_path):
    tiny_fit(tmp_path, epochs=1)
    change(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"not removing .*{message}"):
        tiny_fit(tmp_path, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_data_leaves_an_old_run_alone(finished):
    config = SMALL.replace(out=str(finished.path), overwrite=True)
    for change, message in (
        ({"identities_per_batch": 500}, "a batch needs 500 identities"),
        ({"encoder": "large_cnn"}, "encoder must be one of"),
        ({"encoder": "own", "width": 1.0}, "an encoder object and"),
    ):
        with pytest.raises(ValueError, match=message):
            mj.fit(config.replace(**change))
    assert mj.load_run(finished.path).report == finished.report


def test_an_image_folder_trains(tmp_path):
    rng = np.random.default_rng(0)
    for person in range(24):
        face = rng.integers(0, 200, (12, 12, 3))
        for shot in range(4):
            path = tmp_path / "people" / f"p{person:02}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (face + rng.integers(0, 55, face.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    (tmp_path / "people" / "p00" / "broken.jpg").write_bytes(b"")
    run = mj.fit(
        mj.TrainConfig(
            dataset="folder",
            data_dir=str(tmp_path / "people"),
            image_size=16,
            encoder="mlp",
            embedding_size=8,
            out=str(tmp_path / "run"),
            epochs=2,
            identities_per_batch=4,
            select="loss",
        )
    )
    losses = [record["validation_loss"] for record in run.history]
    assert run.report["best_epoch"] == 1 + int(np.argmin(losses))
    assert run.data["example_shape"] == [16, 16, 3]
    assert [text.split(":")[0] for text in run.data["skipped"]] == ["p00/broken.jpg"]
    assert "hard" not in run.report["test"]


def test_a_loss_without_triplets_does_not_choose_the_best_epoch(tiny_encoder, tmp_path):
    """Where four images of an identity are asked for, and those of the validation have two."""
    names = {part: [f"{part} {i:02}" for i in range(10)] for part in ("train", "validation")}
    names["test"] = [f"who is tested {i:02}" for i in range(10)]
    labels = np.repeat(names["train"] + names["test"], 4).tolist() + names["validation"] * 2
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 6, 6, 1)).astype(np.uint8)
    mine = mj.Dataset.from_arrays(images, np.array(labels))
    (tmp_path / "split.json").write_text(json.dumps(names))
    config = mj.TrainConfig(
        dataset="own",
        encoder="own",
        epochs=2,
        select="loss",
        identities_per_batch=4,
        images_per_identity=4,
        split=str(tmp_path / "split.json"),
        out=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match=r"two validation .* with 4 images or more; got 0 of 10"):
        mj.fit(config, dataset=mine, encoder=tiny_encoder)
    assert not (tmp_path / "run").exists()
    repeated = config.replace(small_identities="repeat")
    run = mj.fit(repeated, dataset=mine, encoder=tiny_encoder)
    assert np.all(np.isfinite([record["validation_loss"] for record in run.history]))


@pytest.mark.parametrize("select", ["auc", "loss"])
def test_best_epoch_is_the_first_of_the_best(select):
    history = [
        {"epoch": 1, "validation_auc": 0.5, "validation_loss": 0.2},
        {"epoch": 2, "validation_auc": 0.9, "validation_loss": 0.3},
        {"epoch": 3, "validation_auc": 0.9, "validation_loss": 0.1},
        {"epoch": 4, "validation_auc": 0.8, "validation_loss": 0.1},
        {"epoch": 5, "validation_auc": 0.8, "validation_loss": None},
    ]
    assert best_epoch(history, select) == {"auc": 2, "loss": 3}[select]


def test_embed_refuses_what_is_not_an_image_of_the_run(finished):
    good = np.zeros((2, 16, 16, 1), np.uint8)
    assert finished.embed(good).shape == (2, 128)
    with pytest.raises(TypeError, match=r"uint8.*got float32"):
        finished.embed(good.astype(np.float32))
    with pytest.raises(ValueError, match=r"shape \(n, \*\(16, 16, 1\)\); got \(2, 16, 16, 3\)"):
        finished.embed(np.zeros((2, 16, 16, 3), np.uint8))


def test_weights_are_brought_to_the_device_once(finished, monkeypatch):
    run = dataclasses.replace(finished)
    images, brought = np.zeros((2, *run.data["example_shape"]), np.uint8), []

    def place(tree, mesh):
        brought.append(mesh)
        return place_copies(tree, mesh)

    for module in ("runs.run", "evaluation.embedding"):
        monkeypatch.setattr(f"margin_jax.{module}.place_copies", place)
    first, second = run.embed(images), run.embed(images)
    assert len(brought) == 1
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, finished.embed(images))


def test_embed_takes_some_rows_and_refuses_others(finished):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    vectors = finished.embed(images)
    assert np.abs(vectors[2] - vectors[0]).max() > 1e-3
    np.testing.assert_allclose(finished.embed(images, [2, 0]), vectors[[2, 0]], atol=1e-6)
    for rows in ([], [3], [-1], [0.0], [[0]], [True, False, True]):
        with pytest.raises(ValueError, match=r"rows must be integers from 0 to 2; got \["):
            finished.embed(images, rows)


def test_distances_are_of_the_pairs_that_are_named(finished, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
    pairs = np.array([[4, 1], [1, 1], [0, 4]])
    vectors = finished.embed(images)
    expected = [np.linalg.norm(vectors[a] - vectors[b]) for a, b in pairs]
    embed, embedded = finished.embed, []

    def watched(self, images, rows):
        embedded.extend(rows)
        return embed(images, rows)

    monkeypatch.setattr(type(finished), "embed", watched)
    # Rounding may leave an image a little apart from itself: by the root of what a square has.
    np.testing.assert_allclose(finished.distances(images, pairs), expected, atol=1e-3)
    assert embedded == [0, 1, 4]
    report = finished.verify(finished.distances(images, pairs), np.array([False, True, False]))
    assert (report.same, report.different, report.auc) == (1, 2, 1.0)
    for wrong in ([0, 1, 2, 3], [[0, 1, 2], [2, 3, 4]]):
        with pytest.raises(ValueError, match=r"pairs must have shape \(pairs, 2\); got \("):
            finished.distances(images, wrong)


def test_records_are_strict_json():
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5]})) == {
        "a": None,
        "b": [None, 1.5],
    }
