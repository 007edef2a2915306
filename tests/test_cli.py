"""The command line: what it does, and one line and status 2 for what it cannot do."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import __version__, cli
from margin_jax.cli.train import summary
from margin_jax.config import TrainConfig

TPU_SCRIPT = Path(__file__).parent.parent / "experiments" / "train_tpu.py"


def run(*arguments, **environment):
    """A process of its own, as a person would start it."""
    return subprocess.run(
        [sys.executable, "-m", "margin_jax", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=3600,
    )


@pytest.fixture
def people(tmp_path):
    """A folder of eight identities: enough to read, too few to train on."""
    for name in "abcdefgh":
        (tmp_path / "people" / name).mkdir(parents=True)
        for shot in "12":
            Image.new("L", (9, 9), ord(name)).save(tmp_path / "people" / name / f"{shot}.png")
    return tmp_path / "people"


def test_train_resume_and_summary(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    options = ("--encoder", "mlp", "--compilation-cache", tmp_path / "cache")
    shown = run("train", "--out", out, "--seed", 3, *options, MARGIN_JAX_SMALL="1")
    assert shown.returncode == 0, shown.stderr
    config = json.loads((out / "config.json").read_text())
    assert (config["epochs"], config["max_identities"], config["seed"]) == (2, 60, 3)
    report = json.loads((out / "report.json").read_text())
    assert f"{report['test']['auc']:.4f}" in shown.stdout
    assert "raw values" in shown.stdout
    assert "margin=0.20" in shown.stderr  # the progress bar
    assert "easy=" in shown.stderr
    assert "Warning" not in shown.stderr
    assert any((tmp_path / "cache").iterdir())

    # Resumed with nothing but its folder: the rest is read from it, and all of it is done.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setenv("HOME", str(tmp_path))  # a shell leaves the ~ of --out=~/run to others
    with pytest.raises(SystemExit) as again:
        cli.main(["train", "--out=~/run", "--resume"])
    told = capsys.readouterr()
    assert not again.value.code, told.err
    assert told.out.startswith(f"the run in {tmp_path}/run is finished; there is nothing to do\n")
    assert f"{report['test']['auc']:.4f}" in told.out
    with pytest.raises(SystemExit):
        cli.main(["train", f"--out={out}", "--resume", "--quiet"])
    assert capsys.readouterr() == ("", "")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    (out / "pairs.npz").write_bytes(b"damaged")  # which is mended
    with pytest.raises(SystemExit):
        cli.main(["train", f"--out={out}", "--resume", "--quiet"])
    assert capsys.readouterr() == ("", "")
    mj.load_run(out)
    assert (out / "pairs.npz").stat().st_size > 1000
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as again:
            cli.main(["train", f"--out={out}", "--resume"])
    assert again.value.code == 0, "it is finished, whatever can be shown"
    assert f"No space left on device; what was done is in {out}\n" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        cli.main(["train", "--out", str(out), "--resume", "--margin", "0.5"])
    assert refused.value.code == 2
    assert "margin is 0.2, asked for 0.5" in capsys.readouterr().err


BAD = {
    "no command like it": (["trian"], "Did you mean 'train'?"),
    "no option like it": (["train", "--margni", "1"], "No such option: --margni"),
    "a name of others": (["train", "--lr", "1"], "--lr; here that is --learning-rate"),
    "a batch of others": (
        ["train", "--batch-size", "64"],
        "that is --identities-per-batch ti",
    ),
    "a preset": (["train", "--dataset", "lfw"], "use tfds:lfw"),
    "a folder as a dataset": (["train", "--dataset", "."], "--dataset folder --data-dir ."),
    "a bucket": (["train", "--out", "s3://runs/a"], "out must be a path of this machine; got s3:"),
    "another bucket": (["train", "--out", "gs://runs/a", "--resume"], "out must be a path of"),
    "an address": (
        ["train", "--dataset", "folder", "--data-dir", "file:///pictures"],
        "--data-dir must be a path of this machine; got file:///pictures: mount",
    ),
    "a split in a bucket": (["train", "--split", "hdfs://a/b.json"], "split must be a path of"),
    "a cache in a bucket": (["train", "--compilation-cache", "gs://a"], "cache must be a path of"),
    "a run in a bucket": (["evaluate", "gs://runs/a"], "'RUN': it must be a path of this machine"),
    "a comparison in a bucket": (["compare", "--out", "s3://a"], "out must be a path of this"),
    "not a number": (["train", "--margin", "wide"], "Invalid value for '--margin'"),
    "no value": (["train", "--epochs"], "requires an argument"),
    "unknown dataset": (["train", "--dataset", "glyph"], "Did you mean 'glyphs'?"),
    "unknown schedule": (["train", "--schedule", "dmas"], "Did you mean 'dams'?"),
    "unknown distance": (["train", "--distance", "euclid"], "Did you mean 'euclidean'?"),
    "unknown reduction": (["train", "--reduction", "max"], "mean_active, mean, sum; got 'max'"),
    "unknown mining": (
        ["train", "--mining", "easy"],
        "all, semihard, hard, batch_hard; got 'easy'",
    ),
    "unknown encoder": (["train", "--encoder", "resnet"], "linear, mlp; got 'resnet'"),
    "unknown selection": (["train", "--select", "acc"], "auc, loss; got 'acc'"),
    "negative margin": (["train", "--margin", "-1"], "margin must be at least 0; got -1.0"),
    "margin NaN": (["train", "--margin", "nan"], "got nan"),
    "margin infinite": (["train", "--margin-end", "inf"], "got inf"),
    "exponential from 0": (["train", "--schedule", "exponential", "--margin", "0"], "above 0"),
    "learning rate 0": (["train", "--learning-rate", "0"], "--learning-rate must be above 0"),
    "margin beyond float32": (["train", "--margin", "1e39"], "got 1e+39"),
    "huge seed": (["train", "--seed", "4294967296"], "must be at most 4294967295; got"),
    "huge embedding": (["train", "--embedding-size", "10000000000"], "at most 65536"),
    "run within the data": (
        ["train", "--dataset", "folder", "--data-dir", ".", "--out", "run"],
        "out must not lie in --data-dir",
    ),
    "no epochs": (["train", "--epochs", "0"], "epochs must be at least 1; got 0"),
    "negative seed": (["train", "--seed", "-1"], "seed must be at least 0"),
    "one identity a batch": (["train", "--identities-per-batch", "1"], "at least 2; got 1"),
    "one image an identity": (["train", "--images-per-identity", "1"], "at least 2; got 1"),
    "tiny images": (["train", "--image-size", "4"], "--image-size must be at least 8"),
    "P too large": (["train", "--identities-per-batch", "999"], "needs 999 identities"),
    "K too large": (["train", "--images-per-identity", "13"], "at least 13 images"),
    "too few identities": (["train", "--max-identities", "7"], "needs at least 15"),
    "folder without a folder": (["train", "--dataset", "folder"], "needs --data-dir"),
    "folder not needed": (["train", "--data-dir", "x"], "--data-dir is for dataset folder"),
    "no dataset named": (["train", "--dataset", "tfds:"], "tfds:NAME; got 'tfds:'"),
    "no such TensorFlow dataset": (["train", "--dataset", "tfds:mnits"], "Did you mean mnist"),
    "manual_dir not needed": (["train", "--manual-dir", "x"], "--manual-dir is for datasets tfds:"),
    "label_key not needed": (["train", "--label-key", "x"], "--label-key is for datasets tfds:"),
    "split that is none": (["train", "--split", "40/10/60"], "sum to 100"),
    "split without a file": (["train", "--split", "no.json"], "cannot read the split"),
    "unknown sampler": (["train", "--sampler", "balance"], "Did you mean 'balanced'?"),
    "fillers that are not there": (["train", "--fillers", "3"], "between 0 and 0"),
    "negative fillers": (["train", "--fillers", "-1"], "fillers must be at least 0"),
    "a microbatch that leaves some": (
        ["train", "--microbatch", "24"],
        "microbatch must divide the batch, here of 64 rows; got 24",
    ),
    "no memory": (["train", "--memory", "0"], "memory must be at least 1; got 0"),
    "a warm-up of no memory": (["train", "--memory-warmup", "9"], "is for memory; got 9 without"),
    "unknown augmentation": (["train", "--augment", "flop"], "Did you mean 'flip'?"),
    "shift beyond the image": (["train", "--augment", "shift:28"], "larger than 28 pixels"),
    "negative memory": (["train", "--memory-limit", "-1"], "--memory-limit must be at least 0"),
    "describe what is not": (["datasets", "describe", "glyfs"], "Did you mean 'glyphs'?"),
    "describe a folder": (["datasets", "describe", "folder"], "needs --data-dir"),
    "weights for a network without any": (["train", "--pretrained"], "got 'small_cnn'"),
    "two sources of weights": (
        ["train", "--encoder", "efficientnet_b0", "--pretrained", "--weights", "x"],
        "--pretrained and --weights cannot be used together",
    ),
    "no file of weights": (
        ["train", "--encoder", "efficientnet_b0", "--weights", "no.safetensors"],
        "there is no file",
    ),
    "nothing to freeze": (["train", "--freeze", "1"], "got small_cnn"),
    "negative freeze": (["train", "--encoder", "mlp", "--freeze", "-1"], "freeze must be at least"),
    "unknown dtype": (["train", "--dtype", "float16"], "Did you mean 'bfloat16'?"),
    "unknown optimizer": (["train", "--optimizer", "adm"], "Did you mean 'adam'?"),
    "unknown learning rate": (["train", "--learning-rate-schedule", "exp"], "warmup_linear; got"),
    "width 0": (["train", "--width", "0"], "width must be above 0"),
    "a width it does not have": (
        ["train", "--width", "2", "--encoder", "mlp"],
        "width is for small_cnn",
    ),
    "a stem it does not have": (["train", "--small-stem", "--encoder", "mlp"], "--small-stem is"),
    "both": (["train", "--overwrite", "--resume"], "cannot be used together"),
    "a save every 0 steps": (["train", "--checkpoint-steps", "0"], "must be at least 1; got 0"),
    "a coordinator without a port": (["train", "--coordinator", "host"], "HOST:PORT; got host"),
    "a job of nobody knows whom": (["train", "--processes", "2"], "cannot join the job"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    printed, shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert printed == ""
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "out of memory: Unable to allocate 9 TiB; small"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a dump"),
            "out of memory on the device: RESOURCE_EXHAUSTED: Out of memory; smaller images",
        ),
    ],
)
def test_too_little_memory_is_one_line(error, message, monkeypatch, capsys):
    assert_fails_with(3, error, message, monkeypatch, capsys)


def test_a_fault_of_the_program_is_shown_whole_and_is_no_answer(monkeypatch, capsys):
    """Python's own status, 1, would say `verify` that two pictures show two people."""
    assert_fails_with(3, KeyError("name"), "Traceback", monkeypatch, capsys)


def test_a_run_that_diverges_is_one_line_and_status_1(monkeypatch, capsys):
    """It is not the input that was bad: 2 would say so."""
    error = mj.DivergedError("epoch 1, step 2 is not finite", 1, 2)
    assert_fails_with(1, error, "margin-jax: epoch 1, step 2 is not finite\n", monkeypatch, capsys)


def test_a_warning_names_options_as_they_are_typed(monkeypatch, capsys):
    def command(*_, **__):
        warnings.simplefilter("always")  # an error in other tests
        warnings.warn("identities_per_batch is small", stacklevel=1)
        raise ValueError("images_per_identity must be at least 2")

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit):
        cli.main(["datasets", "describe", "glyphs"])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "margin-jax: --identities-per-batch is small"
    assert said[1].startswith("margin-jax: --images-per-identity must be")


def assert_fails_with(status, error, message, monkeypatch, capsys):
    def describe(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", describe)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["datasets", "describe", "glyphs", "--image-size", "20000"])
    assert stopped.value.code == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "there is no folder"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "no images below"),
        (lambda folder: folder / "a" / "1.png", "1.png is a file: give the folder"),
        (
            lambda folder: folder / "a",
            "2 files lie in no folder of their own: move",
        ),  # images, but of no identity
        (lambda folder: folder, "at least 15 identities"),
    ],
)
def test_bad_folders(make, message, people, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--dataset", "folder", "--data-dir", str(make(people))])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_in_the_data_is_none_of_the_run_folder(people, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["train", "--dataset", "folder", "--data-dir"]
    assert TrainConfig(dataset="folder", data_dir="people/../people").folder == Path(
        "runs/folder-people-dams-0"
    )
    old = tmp_path / "runs" / "folder-typo-dams-0"
    old.mkdir(parents=True)
    for name in ("data.json", "pairs.npz", "config.json"):
        (old / name).write_text('{"identities": {}, "coverage": {}}')
    with pytest.raises(SystemExit):
        cli.main([*given, "typo"])
    said = capsys.readouterr().err
    assert "--data-dir must be a folder of images; there is no folder" in said
    assert "overwrite" not in said


def test_a_resume_of_nothing_is_said_first(tmp_path, capsys):
    small = ["train", "--resume", "--out", str(tmp_path / "none"), "--identities-per-batch", "999"]
    with pytest.raises(SystemExit):
        cli.main(small)
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"margin-jax: no run in {tmp_path / 'none'} to resume: a new one begins"
    assert "needs 999 identities" in second


@pytest.mark.parametrize(
    ("platform", "command"),
    [("cuda", ["train", "--resume"]), ("nonsense", ["compare"])],
)
def test_devices_that_are_not_there_are_one_line(platform, command, tmp_path):
    shown = run(*command, "--out", tmp_path / "run", JAX_PLATFORMS=platform)
    assert shown.returncode == 2
    assert f"JAX finds no device for JAX_PLATFORMS={platform}; JAX_PLATFORMS=cpu" in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there_are_one_error_in_python(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").touch()
    code = """
import traceback
from margin_jax import *
for call in ("fit(TrainConfig())", "compare({'a': TrainConfig()}, [0])", "load_run('old')"):
    try: eval(call)
    except ValueError: traceback.print_exc()
"""
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        cwd=tmp_path,
        timeout=300,
    )
    assert shown.stderr.count("\nValueError: JAX finds no device for JAX_PLATFORMS=cuda") == 3
    assert "xla_bridge" not in shown.stderr
    assert shown.stderr.count("Traceback") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_signs_that_can_not_be_shown_fail_nothing(tmp_path):
    shown = run("schedules", PYTHONIOENCODING="cp1252")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\u" in shown.stdout
    shown = run("evaluate", tmp_path / "图片", PYTHONIOENCODING="ascii")
    assert shown.returncode == 2
    assert r"no finished run in" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_reader_that_has_gone_is_no_failure(capsys, monkeypatch):
    for arguments, status in ((["schedules"], 0), (["--help"], 0), (["trian"], 2)):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as pipe, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", pipe)
            with pytest.raises(SystemExit) as stopped:
                cli.main(arguments)
        assert stopped.value.code == status
        assert capsys.readouterr().err.count("\n") == (status == 2)


def test_a_reader_of_the_progress_that_has_gone_stops_no_training(tiny_fit, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", pipe)
        patched.setattr(cli, "app", lambda *_, **__: tiny_fit(tmp_path, progress=True).path)
        with pytest.raises(SystemExit) as stopped:
            cli.main([])
    assert stopped.value.code == 0
    assert (tmp_path / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "out", "said"),
    [
        ("schedules", "> /dev/full", "standard output cannot be written: No space left on device"),
        ("schedules", ">&-", "standard output cannot be written: Bad file descriptor"),
        ("trian", ">&- 2>&-", ""),
    ],
)
def test_a_list_that_can_not_be_shown_is_a_failure(arguments, out, said):
    command = f"{sys.executable} -m margin_jax {arguments} {out}"
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == (f"margin-jax: {said}\n" if said else "")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = "from margin_jax.cli.streams import hold_streams; hold_streams(); "
    code += f"import os; f = open({str(tmp_path / 'file')!r}, 'w'); os._exit(f.fileno())"
    command = f"{sys.executable} -c {shlex.quote(code)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=300).returncode > 2


def test_an_unwritable_run_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    small = ["train", "--max-identities", "60", "--identities-per-batch", "8"]
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*small, "--out", str(out)])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_home_folder_is_found_in_every_path(monkeypatch):
    """And all but the run folder are absolute, so that a run can be resumed from anywhere."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir("/usr")
    names = ("data_dir", "manual_dir", "weights", "split", "out")
    given = {"dataset": "tfds:omniglot", "encoder": "efficientnet_b0"}
    for before, absolute, run in (("~/", "/home/me/", "/home/me/"), ("", "/usr/", "")):
        config = TrainConfig(**given, **{name: f"{before}{name}.json" for name in names})
        expected = {name: f"{run if name == 'out' else absolute}{name}.json" for name in names}
        assert {name: getattr(config, name) for name in names} == expected


def test_numbers_become_python_s_own():
    config = TrainConfig(seed=np.int64(3), margin=np.float32(0.5), epochs=np.array(4), width=1)
    values = (config.seed, config.margin, config.epochs, config.width)
    assert [type(value) for value in values] == [int, float, int, float]
    assert TrainConfig(memory_limit=float("inf")).memory_limit == float("inf")
    assert json.loads(config.to_json())["seed"] == 3
    for wrong, message in (
        ({"epochs": 2.5}, "epochs must be a whole number; got 2.5"),
        ({"epochs": "3"}, "epochs must be a whole number; got '3'"),
        ({"epochs": None}, "epochs must be a whole number; got None"),
        ({"margin": "0.2"}, "margin must be a number; got '0.2'"),
        ({"seed": True}, "seed must be a whole number; got True"),
        ({"margin": float("nan")}, "margin must be at least 0; got nan"),
        ({"margin": 10**400}, "margin must be a number; got 1000"),
        ({"margin": b"0.2"}, "margin must be a number; got b'0.2'"),
        ({"image_size": 4}, "image_size must be at least 8; got 4"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            TrainConfig(**wrong)


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert not left.value.code
    assert capsys.readouterr().out == f"margin-jax {__version__}\n"


def test_help_shows_every_option_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (field.name for field in dataclasses.fields(TrainConfig)):
        assert f"--{name.replace('_', '-')}" in shown
    for text in (
        "[default: 0.2]",
        "[default: dams]",
        "constant, linear, exponential, cosine, litm, replay, dams",
    ):
        assert text in shown


@pytest.mark.parametrize(
    "command", ["", "train", "features", "search", "schedules", "schedules plot", "datasets"]
)
def test_help_shows_no_type_behind_a_switch(capsys, monkeypatch, command):
    """It takes no value, so `--resume <bool>` would be typed wrong."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert "bool" not in shown


def test_a_network_that_gains_nothing_is_told(tiny_fit, tmp_path):
    run = tiny_fit(tmp_path / "run", epochs=1)
    test = run.report["test"]
    for auc, said in ((1.0, True), (0.0, False)):
        report = {**run.report, "test": {**test, "raw": {**test["raw"], "auc": auc}}}
        shown = summary(dataclasses.replace(run, report=report))
        assert ("note: the network is no better than the raw values" in shown) == said


def test_a_switch_goes_over_the_file(tmp_path, capsys):
    """`--no-pretrained` takes back what the file says, and so the run comes to its next fault."""
    file = tmp_path / "options.toml"
    file.write_text('pretrained = true\ndataset = "folder"\ndata_dir = "nowhere"\n')
    for more, told in (([], "with pretrained weights must be"), (["--no-pretrained"], "nowhere")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", "--config", str(file), *more])
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err


def test_the_tpu_script_is_the_command_with_other_defaults():
    """An option given replaces the default, here by one that no run can have."""
    shown = subprocess.run(
        [sys.executable, str(TPU_SCRIPT), "--dtype", "float16"], capture_output=True, text=True
    )
    assert shown.returncode == 2
    assert shown.stderr.count("\n") == 1
    assert "got 'float16'" in shown.stderr


def test_interrupted_it_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--out", out, "--max-identities", 60, "--identities-per-batch", 8]
    arguments += ["--encoder", "mlp", "--image-size", 12]
    process = subprocess.Popen(
        [sys.executable, "-m", "margin_jax", *map(str, arguments), "--epochs", "1000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    history = out / "history.jsonl"
    deadline = time.monotonic() + 3600
    try:
        while not (history.is_file() and history.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=3600)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert f"margin-jax train --out {out} --resume" in shown
