"""Arms of a comparison: paired cells, one compilation, resume, what may differ and what not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.cli.compare import read_varied
from margin_jax.data.augmentation import make_augment
from margin_jax.devices.meshes import make_mesh
from margin_jax.runs import arms, fit, setting

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
    setting.optimizer_and_step.cache_clear()
    out = tmp_path_factory.mktemp("compare") / "all"
    config = SMALL.replace(out=str(out))
    return config, mj.compare(mj.vary(config, schedule=SCHEDULES), (0, 1))


def test_cells_are_paired_and_share_one_compilation(compared):
    config, result = compared
    _, train_step = setting.optimizer_and_step(
        *_step_arguments(mj.load_run(config.folder / "dams-seed0"))
    )
    assert setting.optimizer_and_step.cache_info().misses == 1
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
    mesh = make_mesh(None, config.batch_size)
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
    assert (config.folder / "comparison.md").read_text().strip() == result.markdown()
    saved = json.loads((config.folder / "comparison.json").read_text())
    assert [(cell["arm"], cell["seed"]) for cell in saved["cells"]] == [
        (name, seed) for name in SCHEDULES for seed in (0, 1)
    ]
    assert saved["baseline"] == "constant:0.3"
    assert saved["verdict"] == result.verdict()
    picture = np.asarray(Image.open(config.folder / "comparison.png").convert("L"))
    assert picture.shape[0] > 900
    assert picture.std() > 10


def test_finished_cells_are_kept_and_missing_ones_trained(compared, monkeypatch):
    config, result = compared
    (config.folder / "dams-seed1" / "report.json").unlink()
    trained = []

    def counting(cell, **options):
        trained.append((cell.schedule, cell.seed))
        return fit.fit(cell, **options)

    monkeypatch.setattr(arms, "fit", counting)
    again = mj.compare(mj.vary(config, schedule=SCHEDULES), (0, 1))
    assert trained == [("dams", 1)]
    assert again.table() == result.table()
    with pytest.raises(ValueError, match=r"learning_rate is 0.002, asked for 0.01"):
        mj.compare(mj.vary(config.replace(learning_rate=0.01), schedule=SCHEDULES), (0, 1))


@pytest.mark.filterwarnings("ignore:a batch has 23 identities")
def test_no_cell_is_changed_if_one_of_them_cannot_go_on(tmp_path):
    """More epochs of a constant are the same run; those of a line are another one."""
    follows = {"identities_per_batch": None}
    config = SMALL.replace(encoder="linear", epochs=1, out=str(tmp_path), **follows)
    first = mj.compare(mj.vary(config, schedule=("constant", "linear")), [0])
    longer = mj.vary(config.replace(epochs=2), schedule=("constant", "linear"))
    with pytest.raises(ValueError, match=r"epochs is 1, asked for 2; give --overwrite, or choose"):
        mj.compare(longer, [0])
    assert mj.load_run(tmp_path / "constant-seed0").report == first.reports["constant"][0]
    constants = mj.vary(config.replace(epochs=2), schedule=("constant",))
    assert len(mj.compare(constants, [0]).histories["constant"][0]) == 2


def test_a_run_that_diverges_does_not_keep_the_others_from_their_turn(tmp_path):
    config = SMALL.replace(out=str(tmp_path / "out"), epochs=1)
    arms = mj.vary(config, learning_rate=[9e37, 2e-3])
    with pytest.raises(mj.DivergedError, match=r"not finite.*kept in .*9e\+37-seed0\. A lower"):
        mj.compare(arms, (0,))
    mj.load_run(tmp_path / "out" / "learning_rate0.002-seed0")


def test_two_comparisons_in_one_folder_are_refused(compared):
    config, _ = compared
    refused = []

    def again(*_):
        with pytest.raises(ValueError, match=r"in use by process \d+ on "):
            mj.compare(mj.vary(config.replace(overwrite=True), schedule=SCHEDULES), (0, 1))
        refused.append(True)

    mj.compare(mj.vary(config, schedule=SCHEDULES), (0, 1), on_cell=again)
    assert len(refused) == 6


def test_cells_of_other_images_are_not_compared(compared):
    config, _ = compared
    folder = config.folder / "dams-seed0"
    described = (folder / "data.json").read_text()
    (folder / "data.json").write_text(described.replace('"examples": ', '"examples": 1'))
    with pytest.raises(ValueError, match=r"dams-seed0 was .* differs in examples\)"):
        mj.compare(mj.vary(config, schedule=SCHEDULES), (0, 1))
    (folder / "data.json").write_text(described)


def test_ones_own_network_and_images(tiny_encoder, tmp_path):
    faces = np.random.default_rng(0).integers(0, 256, (30, 1, 6, 6, 1))
    images = np.repeat(faces, 4, axis=1).reshape(-1, 6, 6, 1).astype(np.uint8)
    mine = mj.Dataset.from_arrays(images, np.arange(120) // 4)
    config = mj.TrainConfig(
        dataset="own", encoder="own", epochs=1, identities_per_batch=4, out=str(tmp_path)
    )
    both = {
        "constant": config.replace(schedule="constant"),
        "mine": config.replace(loss="own", schedule="own"),
    }
    loss, schedule = mj.TripletLoss(reduction="sum"), mj.constant(0.7)
    result = mj.compare(
        both, (0,), dataset=mine, encoder=tiny_encoder, loss=loss, schedule=schedule
    )
    margins = {name: by_seed[0][0]["margin"] for name, by_seed in result.histories.items()}
    assert margins == {"constant": np.float32(0.2), "mine": np.float32(0.7)}

    def again(images, encoder, loss=loss, schedule=schedule):
        mine = mj.Dataset.from_arrays(images, np.arange(120) // 4)
        return mj.compare(both, (0,), dataset=mine, encoder=encoder, loss=loss, schedule=schedule)

    assert again(images, tiny_encoder).reports == result.reports
    noise = np.random.default_rng(1).integers(0, 256, images.shape).astype(np.uint8)
    wider = mj.Encoder(type(tiny_encoder.module)(features=9))
    colour = mj.Encoder(tiny_encoder.module, colour=True)
    for other, what in (
        ((images, tiny_encoder, mj.TripletLoss(swap=True)), "loss"),
        ((images, tiny_encoder, loss, mj.constant(0.8)), "schedule"),
        ((noise, tiny_encoder), "sha256"),
        ((images, wider), "network"),
        ((images, colour), "network"),
    ):
        with pytest.raises(ValueError, match=rf"\(data.json differs in {what}\)"):
            again(*other)
    with pytest.raises(ValueError, match="an encoder object and"):
        again(images, None)


def test_without_a_folder_it_goes_to_none_of_a_run(compared, tmp_path, monkeypatch):
    config, result = compared
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.folder, "runs/compare-glyphs")  # cells that are there are kept
    (tmp_path / "runs" / "compare-glyphs" / "comparison.md").unlink()
    again = mj.compare(mj.vary(config.replace(out=None), schedule=SCHEDULES), (0, 1))
    assert again.reports == result.reports
    assert [path.name for path in Path("runs").iterdir()] == ["compare-glyphs"]
    assert Path("runs/compare-glyphs/comparison.md").is_file()


def folder_of_pictures(root, identities=30):
    rng = np.random.default_rng(0)
    for person in range(identities):
        face = rng.integers(0, 200, (12, 12))
        for shot in range(4):
            path = root / f"p{person:02}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = (face + rng.integers(0, 55, face.shape)).astype(np.uint8)
            Image.fromarray(noisy).save(path)
    return root


def test_arms_may_differ_in_anything_but_the_data(tiny_encoder, tmp_path, monkeypatch):
    config = mj.TrainConfig(
        dataset="folder",
        data_dir=str(folder_of_pictures(tmp_path / "people")),
        encoder="own",
        image_size=8,
        identities_per_batch=4,
        epochs=1,
        out=str(tmp_path / "out"),
    )
    given = {
        "mlp": config.replace(encoder="mlp", reduction="mean", learning_rate=0.01),
        "large": config.replace(image_size=12),
        "balanced": config.replace(sampler="balanced", distance="cosine", epochs=2),
    }
    loaded = []
    load = arms.load
    monkeypatch.setattr(arms, "load", lambda c: loaded.append(c.image_size) or load(c))
    result = mj.compare(given, [3], baseline="balanced", encoder=tiny_encoder)
    assert loaded == [8, 12], "arms that read pictures alike share them"
    assert (result.arms, result.baseline) == (tuple(given), "balanced")
    runs = [
        mj.load_run(tmp_path / "out" / f"{name}-seed3", encoder=own)
        for name, own in (("mlp", None), ("large", tiny_encoder), ("balanced", tiny_encoder))
    ]
    assert [run.config.image_size for run in runs] == [8, 12, 8]
    assert [len(run.history) for run in runs] == [1, 1, 2]
    assert (runs[0].config.encoder, runs[0].config.learning_rate) == ("mlp", 0.01)
    assert all(run.data["identities"] == runs[0].data["identities"] for run in runs)
    for run in runs:
        with np.load(run.path / "pairs.npz") as a, np.load(runs[0].path / "pairs.npz") as b:
            assert all(np.array_equal(a[name], b[name]) for name in b)
    # Finished cells are compared with their own arm's batches and pictures, not with the first's.
    assert mj.compare(given, [3], encoder=tiny_encoder).reports == result.reports
    picture = np.asarray(Image.open(tmp_path / "out" / "comparison.png").convert("L"))
    assert picture.std() > 10


def test_names_say_what_differs():
    made = mj.vary(SMALL, schedule=["dams"], reduction=["mean", "sum"], learning_rate=[0.1, 1e-5])
    assert list(made) == [
        f"reduction={reduction}/learning_rate={rate}"
        for reduction in ("mean", "sum")
        for rate in ("0.1", "1e-05")
    ]
    assert made["reduction=sum/learning_rate=0.1"] == SMALL.replace(
        schedule="dams", reduction="sum", learning_rate=0.1
    )
    assert list(mj.vary(SMALL, schedule=["dams"])) == ["dams"]
    assert list(mj.vary(SMALL)) == [SMALL.schedule]
    both = mj.vary(SMALL, schedule=SCHEDULES, memory=[None, 64])
    assert list(both)[:3] == ["linear/memory=none", "linear/memory=64", "constant:0.3/memory=none"]
    stems = mj.vary(SMALL, encoder=["nn2"], small_stem=[False, True])
    assert list(stems) == ["small_stem=false", "small_stem=true"]


def test_the_first_constant_schedule_is_the_baseline_unless_another_is_named(compared):
    config, result = compared
    given = mj.vary(config, schedule=SCHEDULES)
    assert result.baseline == "constant:0.3"
    assert mj.compare(given, (0, 1), baseline="dams").baseline == "dams"
    others = {name: given[name] for name in ("linear", "dams")}
    assert mj.compare(others, (0, 1)).baseline == "linear"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("reduction=mean,mean_active", ["mean", "mean_active"]),
        ("schedule=constant:0.2,dams", ["constant:0.2", "dams"]),
        (
            "schedule=dams:margin=0.2,increase=0.1,linear:0.1,margin_end=2,constant",
            ["dams:margin=0.2,increase=0.1", "linear:0.1,margin_end=2", "constant"],
        ),
        ("mining=all;all,11:semihard", ["all", "all,11:semihard"]),
        ("augment=flip, shift:2;none", ["flip, shift:2", "none"]),
        ("loss=triplet,triplet:swap=true,soft=true", ["triplet", "triplet:swap=true,soft=true"]),
        ("learning-rate=0.01,1e-3", [0.01, 1e-3]),
        ("--epochs=1, 2", [1, 2]),
        ("memory=none,64", [None, 64]),
        ("small_stem=true,false", [True, False]),
    ],
)
def test_values_as_text(text, values):
    ((name, found),) = read_varied([text]).items()
    assert name == text.split("=")[0].lstrip("-").replace("-", "_")
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_field_said_twice_has_all_its_values():
    said = ["schedule=dams:0.1,increase=0.2", "epochs=3", "schedule=constant"]
    assert read_varied(said) == {"schedule": ["dams:0.1,increase=0.2", "constant"], "epochs": [3]}


def test_the_command_trains_the_product_and_goes_on(compared, tmp_path, monkeypatch, capsys):
    config, result = compared
    trained = []

    def counting(cell, **options):
        trained.append((cell.schedule, cell.reduction, cell.seed))
        return fit.fit(cell, **options)

    monkeypatch.setattr(arms, "fit", counting)
    common = [
        *("--encoder", "mlp", "--image-size", "12", "--max-identities", "60", "--epochs", "2"),
        *("--identities-per-batch", "8", "--learning-rate", "2e-3"),
    ]

    def command(*options):
        trained.clear()
        with pytest.raises(SystemExit) as left:
            cli.main(["compare", *common, *options])
        printed, shown = capsys.readouterr()
        assert not left.value.code, shown
        return printed

    # Cells of a comparison of schedules are those of the arms of the same names.
    there = ("--out", str(config.folder), "--seeds", "2")
    printed = command(*there, "--schedules", "linear,constant:0.3,dams")
    assert trained == []
    assert printed.splitlines()[-3] == result.verdict()
    command(*there, "--vary", "schedule=linear,constant:0.3", "--vary", "schedule=dams")
    assert trained == []

    varied = ("--schedules", "dams", "--vary", "reduction=mean,mean_active", "--seeds", "1")
    printed = command("--out", str(tmp_path / "new"), *varied)
    assert trained == [("dams", "mean", 0), ("dams", "mean_active", 0)]
    assert {path.name for path in (tmp_path / "new").glob("*-seed0")} == {
        "reductionmean-seed0",
        "reductionmean_active-seed0",
    }
    assert "differences to reduction=mean are paired" in printed
    printed = command(
        "--out", str(tmp_path / "new"), *varied, "--baseline", "reduction=mean_active"
    )
    assert trained == []
    assert "differences to reduction=mean_active are paired" in printed


def test_a_command_varies_nothing_but_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text('{"schedule": "litm"}')
    asked = {}

    def compare(given, seeds, **_):
        asked.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "compare", compare)
    for options, names in (
        ([], ["constant", "linear", "dams"]),
        (["--vary", "learning-rate=0.1,0.2"], ["learning_rate=0.1", "learning_rate=0.2"]),
        (["--config", "run.json", "--vary", "epochs=1,10"], ["epochs=1", "epochs=10"]),
        (["--config", "run.json", "--schedules", "dams,cosine"], ["dams", "cosine"]),
        (["--schedules", "all"], mj.schedules.ALONE),
    ):
        asked.clear()
        with pytest.raises(SystemExit):
            cli.main(["compare", *options])
        assert list(asked) == names
        if names == ["epochs=1", "epochs=10"]:
            assert {arm.schedule for arm in asked.values()} == {"litm"}
    assert {arm.epochs for arm in asked.values()} == {10}


@pytest.mark.parametrize(
    ("schedules", "seeds", "message"),
    [
        ([], [0], "schedule must be varied over at least one value"),
        ("dams", [0], "schedule must be varied over at least one value, each once; got dams"),
        (["dams", "dams"], [0], "each once"),
        (["dams:0.1", "dams: 0.1"], [0], "arms must have folders of their own"),
        (["dams"], [], "seeds must be at least one"),
        (["dams"], [0, 0], "seeds must be at least one, each once"),
        (["dams"], [0.5], "seed must be a whole number; got 0.5"),
        (["dams"], "31", "seed must be a whole number; got '3'"),
        (["dams:high"], [0], "NAME:KEY=VALUE,...; got 'dams:high', where margin is not a number"),
        (["dasm"], [0], "Did you mean 'dams'"),
        (["constant:-1"], [0], "margin must be at least 0; got -1.0"),
        (["litm:stages=2.5"], [0], "where stages is not a whole number"),
        (["dams:treshold=0.9"], [0], "a parameter of dams must be one of .* 'threshold'"),
    ],
)
def test_bad_requests(schedules, seeds, message, tmp_path):
    config = SMALL.replace(out=str(tmp_path / "out"))

    def asked():
        return mj.compare(mj.vary(config, schedule=schedules), seeds)

    with pytest.raises(ValueError, match=message):
        asked()
    assert not (tmp_path / "out").exists()


OWN = SMALL.replace(encoder="own")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "arms must be at least one; got none"),
        ({"a": "dams"}, {}, "an arm must be a TrainConfig; got 'dams' for 'a'"),
        (
            {"a": SMALL, "b": SMALL.replace(split="50/10/40")},
            {},
            "split must be the same in every arm; got None for a and '50/10/40' for b",
        ),
        (
            {"a": SMALL, "b": SMALL.replace(max_identities=50)},
            {},
            "max_identities must be the same in every arm; got 60 for a and 50 for b",
        ),
        ({"a": SMALL, "b": SMALL.replace(seed=1)}, {}, "seed must be the same in every arm"),
        ({"a": SMALL, "b": SMALL.replace(out="there")}, {}, "out must be the same in every arm"),
        (
            {"a": SMALL, "b": SMALL.replace(image_size=24)},
            {"dataset": True},
            "image_size must be the same in every arm; got 12 for a and 24 for b",
        ),
        ({"a": SMALL}, {"baseline": "c"}, "baseline must be one of a; got 'c'"),
        (
            {
                "a": SMALL.replace(loss="shadow"),
                "b": SMALL.replace(loss="shadow", distance="cosine"),
            },
            {},
            "arms must differ; a and b are the same configuration",
        ),
        ({"a": SMALL, "b": OWN}, {}, "an encoder object and"),
        ({"a": SMALL}, {"encoder": True}, "an encoder object and"),
        ({"a": SMALL, "b": SMALL.replace(loss="own")}, {}, "a loss object and"),
        ({"a": SMALL}, {"loss": mj.TripletLoss()}, "a loss object and"),
        ({"a": SMALL, "b": SMALL.replace(schedule="own")}, {}, "a schedule object and"),
        ({"a": SMALL}, {"schedule": mj.dams()}, "a schedule object and"),
    ],
)
def test_arms_that_can_not_be_compared(
    given, options, message, tiny_encoder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "dataset" in options:
        options = {"dataset": mj.load_dataset("glyphs", None, 12)}
    if "encoder" in options:
        options = {"encoder": tiny_encoder}
    with pytest.raises(ValueError, match=message):
        mj.compare(given, [0], **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vary", "reduction"], "--vary must be OPTION=VALUE,VALUE; got 'reduction'"),
        (["--vary", "reducton=mean"], "an option to vary must be one of "),
        (["--vary", "reduction=mean,max"], "mean_active, mean, sum; got 'max'"),
        (["--vary", "epochs=2,two"], "epochs must be a whole number; got 'two'"),
        (["--vary", "pretrained=yes"], "pretrained must be true or false; got 'yes'"),
        (["--vary", "epochs=2,2"], "epochs must be varied over at least one value, each once"),
        (["--vary", "seed=0,1"], "seed must be the same in every arm"),
        (["--schedule", "dams"], "nothing is varied, and the schedule is dams in every arm: give"),
        (["--baseline", "dasm"], "baseline must be one of constant, linear, dams; got 'dasm'"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", *options])
    _, shown = capsys.readouterr()
    assert left.value.code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
