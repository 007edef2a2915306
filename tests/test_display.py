"""What terminals, logs and notebooks show: progress, tables and figures."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax.cli.train import summary
from margin_jax.evaluation import tables
from margin_jax.runs.progress import ProgressBar
from margin_jax.training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def run(tiny_fit, tmp_path_factory):
    return tiny_fit(tmp_path_factory.mktemp("display") / "run")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, enabled=True):
    """What three epochs of a hundred steps put on stderr."""
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("a run", 5, 2, enabled) as bar:
        for epoch in range(3):
            bar.start(0.2, 100)
            for step in range(100):
                bar.step(step + 1, 0.2 * step / 99, 0.5)
            bar.validated(0.9 + epoch / 100)
    return stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    text = shown(Terminal(), monkeypatch)
    assert "\r" in text
    assert "| 5.0/5 epochs [" in text
    assert "margin=0.20" in text


def test_a_file_gets_a_line_an_epoch(monkeypatch, capsys):
    assert shown(io.StringIO(), monkeypatch).splitlines() == [
        f"a run: {epoch}/5 epochs, margin=0.20, loss=0.100, easy=50.0%, val AUC=0.9{epoch - 3}00"
        for epoch in (3, 4, 5)
    ]
    assert capsys.readouterr().out == ""


def test_the_report_is_counted_too(tiny_fit, tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    run = tiny_fit(tmp_path / "run", epochs=1, progress=True)
    *_, last = stream.getvalue().splitlines()
    parts = run.data["identities"]
    count = 6 * (len(parts["validation"]) + len(parts["test"]))
    assert last == f"{tmp_path / 'run'}, the report: {count:,}/{count:,} examples"


def test_the_line_of_an_epoch_has_the_loss_of_its_record(tiny_fit, tmp_path, monkeypatch):
    """Of all its steps, also of those before a kill."""

    class Killed(BaseException):
        pass

    save = Checkpoint.save

    def save_and_die(checkpoint, step, arrays, record):
        save(checkpoint, step, arrays, record)
        if record["part"]["steps"]:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            tiny_fit(tmp_path, checkpoint_steps=4)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    history = tiny_fit(tmp_path, checkpoint_steps=4, resume=True, progress=True).history
    losses = [float(text) for text in re.findall(r"loss=([\d.]+)", stream.getvalue())]
    assert losses == [round(record["loss"], 3) for record in history]
    assert len(losses) == 3


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_nothing_unless_it_is_asked_for(stream, monkeypatch):
    assert shown(stream(), monkeypatch, enabled=False) == ""


def test_a_run_shows_the_figures_of_the_command_line(run):
    said, table = summary(run), run._repr_markdown_()
    numbers = re.findall(
        r"[\d.]+%|0\.\d{4}|[\d,]{3,}", said.split(tables.HEADER)[1].split("\n\n")[0]
    )
    assert len(numbers) >= 15
    assert [number for number in numbers if number not in table] == []
    assert tables.training_line(run.report, run.history) in table
    assert "| &emsp;paper's pair count | " in table
    assert len(repr(run)) < 2000, "arrays and records in it"


def test_a_comparison_shows_its_table(run):
    of_run = {"dams": {0: run.report}}, {"dams": {0: run.history}}
    compared = mj.Comparison(("dams",), (0,), *of_run, baseline="dams")
    assert compared._repr_markdown_() == f"{compared.table()}\n\n{compared.verdict()}"
    assert "| dams | 0.20 → " in compared.table()
    assert "history" not in repr(compared)


def test_reports_show_their_figures():
    distances, same = np.array([0.1, 0.4, 0.35, 0.8]), np.array([True, True, False, False])
    verified = mj.verification_report(distances, same, threshold=0.4)
    header, _, row, _, errors, _, *notes = verified._repr_markdown_().splitlines()
    assert errors == "FMR .5000, FNMR .0000 at threshold 0.4000"
    assert header == "| | AUC | EER | accuracy | TPR@FPR 0.01 | pairs |"
    assert row == "| verification | 0.7500 | 50.00% | 75.00% | 50.00% | 4 |"
    assert [n for n in notes if n] == [f"note: {warning}" for warning in verified.warnings]
    found = mj.retrieval_report(np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1]), ks=(1, 2))
    assert found._repr_markdown_().splitlines() == [
        "| Recall@1 | Recall@2 | MAP@R | R-precision | queries | images |",
        "| ---:|---:|---:|---:|---:|---: |",
        "| 100.00% | 100.00% | 100.00% | 100.00% | 2 | 3 |",
    ]


def test_figures_show_themselves_and_pyplot_knows_none(run):
    faces, same = np.zeros((12, 6, 6, 1), np.uint8), np.arange(12) % 2 == 0
    faces[:, 2:4, 2:4] = np.arange(12)[:, None, None, None]
    distances = np.linspace(0.1, 1, 12)
    figures = [
        mj.plot_margin(run.history, 0.95),
        mj.plot_loss(run.history, run.report["best_epoch"]),
        mj.plot_effective_margin(run.history),
        mj.plot_distances(distances, same, 0.5),
        mj.plot_roc({"a": mj.verification_report(distances, same, threshold=0.5)}),
        mj.plot_det({"a": mj.verification_report(distances, same, threshold=0.5)}),
        mj.plot_comparison({"dams": {0: run.history}}),
        mj.plot_contact_sheet(mj.Dataset.from_arrays(faces, np.arange(12) // 3)),
    ]
    for figure in figures:
        with Image.open(io.BytesIO(figure._repr_png_())) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(picture.convert("L"))) > 10
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_roc_shows_all_that_it_is_given():
    distances, same = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])
    report = mj.verification_report(distances, same, threshold=0.25)
    (axes,) = mj.plot_roc({f"schedule {i}": report for i in range(9)}).axes
    curves = [line for line in axes.lines if line.get_label() != "chance"]
    assert len({(line.get_linestyle(), line.get_color()) for line in curves}) == 9


def test_a_notebook_without_widgets_is_given_no_advice():
    code = (
        "import sys, types\n"
        "sys.modules['ipykernel.zmqshell'] = types.ModuleType('ipykernel.zmqshell')\n"
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=object)\n"
        "sys.modules['ipywidgets'] = None\n"
        "from margin_jax.runs.progress import ProgressBar\n"
        "with ProgressBar('a run', 1, 0, True) as bar:\n"
        "    bar.start(0.2, 1)\n"
        "    bar.validated(0.9)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "QT_API"},  # no console
    )
    assert (told.stderr, told.returncode) == ("", 0)
    assert told.stdout == "a run: 1/1 epochs, margin=0.20, val AUC=0.9000\n"
