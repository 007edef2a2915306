"""Comparisons: paired cells, one compilation, resume, and the arithmetic of the table."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import margin_jax as mj
from margin_jax import comparison, training
from margin_jax.augmentation import make_augment
from margin_jax.comparison import Comparison

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = mj.TrainConfig(
    encoder="mlp",
    image_size=12,
    max_identities=60,
    epochs=2,
    identities_per_batch=8,
    learning_rate=2e-3,
)
SCHEDULES = ("linear", "constant:0.3", "dams")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    training._optimizer_and_step.cache_clear()
    out = tmp_path_factory.mktemp("compare") / "all"
    config = SMALL.replace(out=str(out))
    return config, mj.compare(config, SCHEDULES, (0, 1))


def test_cells_are_paired_and_share_one_compilation(compared):
    config, result = compared
    _, train_step = training._optimizer_and_step(
        *_step_arguments(mj.load_run(config.folder / "dams-seed0"))
    )
    assert training._optimizer_and_step.cache_info().misses == 1
    assert train_step._cache_size() == 1, "each cell compiled anew"
    for seed in (0, 1):
        runs = [
            mj.load_run(config.folder / f"{name}-seed{seed}")
            for name in ("linear", "constant-0.3", "dams")
        ]
        assert all(run.data == runs[0].data for run in runs)
        for run in runs:
            with np.load(run.path / "pairs.npz") as a, np.load(runs[0].path / "pairs.npz") as b:
                assert all(np.array_equal(a[name], b[name]) for name in b)
    assert result.histories["constant:0.3"][0][0]["margin"] == pytest.approx(0.3)
    assert result.histories["linear"][0][-1]["margin"] == 1.0
    first = [result.histories[name][0][0] for name in ("linear", "dams")]
    assert first[0]["loss"] == first[1]["loss"], "the same weights and batches to begin with"


def _step_arguments(run):
    config = run.config
    mesh = training.make_mesh(None, config.batch_size)
    return (
        run.encoder,
        ("adam", config.learning_rate, "constant", 1, 1, 0),
        config.histogram,
        make_augment(config.augment),
        config.microbatch,
        config.memory_warmup,
        mesh,
        config.make_loss(1),
    )


def test_it_leaves_a_table_a_picture_and_json(compared):
    config, result = compared
    assert (config.folder / "comparison.md").read_text().strip() == result.table()
    saved = json.loads((config.folder / "comparison.json").read_text())
    assert [(cell["schedule"], cell["seed"]) for cell in saved["cells"]] == [
        (name, seed) for name in SCHEDULES for seed in (0, 1)
    ]
    assert saved["baseline"] == "constant:0.3"
    picture = np.asarray(Image.open(config.folder / "comparison.png").convert("L"))
    assert picture.shape[0] > 900
    assert picture.std() > 10


def test_finished_cells_are_kept_and_missing_ones_trained(compared, monkeypatch):
    config, result = compared
    (config.folder / "dams-seed1" / "report.json").unlink()
    trained = []

    def counting(cell, **options):
        trained.append((cell.schedule, cell.seed))
        return training.fit(cell, **options)

    monkeypatch.setattr(comparison, "fit", counting)
    again = mj.compare(config, SCHEDULES, (0, 1))
    assert trained == [("dams", 1)]
    assert again.table() == result.table()
    with pytest.raises(ValueError, match=r"learning_rate is 0.002, asked for 0.01"):
        mj.compare(config.replace(learning_rate=0.01), SCHEDULES, (0, 1))


def test_two_comparisons_in_one_folder_are_refused(compared):
    config, _ = compared
    refused = []

    def again(*_):
        with pytest.raises(ValueError, match=r"in use by process \d+ on "):
            mj.compare(config.replace(overwrite=True), SCHEDULES, (0, 1))
        refused.append(True)

    mj.compare(config, SCHEDULES, (0, 1), on_cell=again)
    assert len(refused) == 6


def test_cells_of_other_images_are_not_compared(compared):
    config, _ = compared
    folder = config.folder / "dams-seed0"
    described = (folder / "data.json").read_text()
    (folder / "data.json").write_text(described.replace('"images": ', '"images": 1'))
    with pytest.raises(ValueError, match=r"dams-seed0 was .* differs in coverage, images\)"):
        mj.compare(config, SCHEDULES, (0, 1))
    (folder / "data.json").write_text(described)


def test_ones_own_network_and_images(tiny_encoder, tmp_path):
    faces = np.random.default_rng(0).integers(0, 256, (30, 1, 6, 6, 1))
    images = np.repeat(faces, 4, axis=1).reshape(-1, 6, 6, 1).astype(np.uint8)
    mine = mj.Dataset.from_arrays(images, np.arange(120) // 4)
    config = mj.TrainConfig(
        dataset="own", encoder="own", epochs=1, identities_per_batch=4, out=str(tmp_path)
    )
    result = mj.compare(config, ("constant", "dams"), (0,), dataset=mine, encoder=tiny_encoder)
    assert set(result.reports) == {"constant", "dams"}

    def again(images, encoder):
        mine = mj.Dataset.from_arrays(images, np.arange(120) // 4)
        return mj.compare(config, ("constant", "dams"), (0,), dataset=mine, encoder=encoder)

    assert again(images, tiny_encoder).reports == result.reports
    noise = np.random.default_rng(1).integers(0, 256, images.shape).astype(np.uint8)
    wider = mj.Encoder(type(tiny_encoder.module)(features=9))
    colour = mj.Encoder(tiny_encoder.module, colour=True)
    for other, what in (
        ((noise, tiny_encoder), "sha256"),
        ((images, wider), "network"),
        ((images, colour), "network"),
    ):
        with pytest.raises(ValueError, match=rf"\(data.json differs in {what}\)"):
            again(*other)
    with pytest.raises(ValueError, match="an encoder is given if"):
        again(images, None)


def test_without_a_folder_it_goes_to_none_of_a_run(compared, tmp_path, monkeypatch):
    config, result = compared
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.folder, "runs/compare-glyphs")  # cells that are there are kept
    (tmp_path / "runs" / "compare-glyphs" / "comparison.md").unlink()
    assert mj.compare(config.replace(out=None), SCHEDULES, (0, 1)).reports == result.reports
    assert [path.name for path in Path("runs").iterdir()] == ["compare-glyphs"]
    assert Path("runs/compare-glyphs/comparison.md").is_file()


def test_summaries_are_paired_t_intervals():
    rng = np.random.default_rng(0)
    auc = {"constant": rng.random(5), "dams": rng.random(5)}
    reports = {
        name: {seed: {"test": {"auc": values[seed]}} for seed in range(5)}
        for name, values in auc.items()
    }
    result = Comparison(("dams", "constant"), tuple(range(5)), reports, {})
    assert result.baseline == "constant"
    summary = result.summary("dams", "auc")
    low, high = stats.ttest_1samp(auc["dams"], 0).confidence_interval(0.95)
    assert summary.mean == pytest.approx((low + high) / 2)
    assert summary.interval == pytest.approx((high - low) / 2)
    low, high = stats.ttest_rel(auc["dams"], auc["constant"]).confidence_interval(0.95)
    assert summary.difference == pytest.approx((low + high) / 2)
    assert summary.difference_interval == pytest.approx((high - low) / 2)
    alone = Comparison(("dams",), (0,), reports, {}).summary("dams", "auc")
    assert math.isnan(alone.interval)


@pytest.mark.parametrize(
    ("schedules", "seeds", "message"),
    [
        ([], [0], "schedules must be at least one"),
        (["dams", "dams"], [0], "each once"),
        (["dams:0.1", "dams: 0.1"], [0], "schedules must have folders of their own"),
        (["dams"], [], "seeds must be at least one"),
        (["dams"], [0.5], "seed must be a whole number; got 0.5"),
        (["dams"], "31", "seed must be a whole number; got '3'"),
        (["dams:high"], [0], "NAME:KEY=VALUE,...; got 'dams:high', where margin is no number"),
        (["dasm"], [0], "Did you mean 'dams'"),
        (["constant:-1"], [0], "margin must be at least 0; got -1.0"),
        (["litm:stages=2.5"], [0], "where stages is no whole number"),
        (["dams:treshold=0.9"], [0], "a parameter of dams must be one of .* 'threshold'"),
    ],
)
def test_bad_requests(schedules, seeds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        mj.compare(SMALL.replace(out=str(tmp_path / "out")), schedules, seeds)
    assert not (tmp_path / "out").exists()
