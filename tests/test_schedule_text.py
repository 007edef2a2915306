"""Schedules as text, how they answer, and the commands that show it."""

import json

import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.schedules import ALONE, SCHEDULES, make_schedule
from margin_jax.schedules.response import STIMULI, World, recorded, respond, stimulus
from margin_jax.spec import leaves_open, split_specs

DEFAULTS = {"margin": 0.3, "margin_end": 0.8, "epochs": 5, "threshold": 0.9, "increase": 0.1}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("constant", mj.constant(0.3)),
        ("constant:0.05", mj.constant(0.05)),
        ("linear", mj.linear(0.3, 0.8, 5)),
        ("linear:0.1,margin_end=0.4", mj.linear(0.1, 0.4, 5)),
        ("litm:stages=5", mj.litm(0.3, 0.8, 5, 5)),
        ("replay:0.1/0.4/0.2", mj.replay((0.1, 0.4, 0.2))),
        ("replay:margins=0.1", mj.constant(0.1)),
        ("dams", mj.dams(0.3, 0.9, 0.1)),
        ("dams:", mj.dams(0.3, 0.9, 0.1)),  # nothing said is nothing changed
        ("dams:threshold=0.5, increase=0.2,cap=0.6", mj.dams(0.3, 0.5, 0.2, cap=0.6)),
        ("target_easy_fraction:target=0.8", mj.target_easy_fraction(0.3, 0.8)),
    ],
)
def test_what_a_text_means(text, same):
    world = stimulus("ramp", 12)
    ours = respond(make_schedule(text, DEFAULTS), world)
    np.testing.assert_array_equal(ours.margin, respond(same, world).margin)


def test_every_name_works_with_the_defaults_alone():
    for name in ALONE:
        assert make_schedule(name, DEFAULTS).init().margin == np.float32(0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dasm", "schedule must be one of .* Did you mean 'dams'"),
        ("dams:high", "got 'dams:high', where margin is not a number"),
        ("dams:treshold=0.9", "a parameter of dams must be one of .* Did you mean 'threshold'"),
        ("litm:stages=2.5", "where stages is not a whole number"),
        ("dams:threshold=2", "threshold must be between 0 and 1; got 2.0"),
        ("constant:margin_end=1", "a parameter of constant must be one of margin; got"),
        ("dams:0.1,0.2", "a parameter of dams must be one of"),
        ("dams:0.1,margin=0.9", "takes each parameter once; got .* margin twice"),
        ("replay", "replay needs its margins: replay:MARGIN/MARGIN/...; got none"),
        ("replay:0.1/x", "where margins is not a list of numbers such as 0.1/0.2"),
        ("replay:0.1/-1", r"margins must be finite and at least 0; got -1\.0"),
        ("linear:epochs=10000000000000", "between 1 and 1,000,000"),
    ],
)
def test_texts_that_mean_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(text, DEFAULTS)


def test_lists_of_texts():
    assert split_specs("constant:0.05,dams:margin=0.1,threshold=0.9, linear") == [
        "constant:0.05",
        "dams:margin=0.1,threshold=0.9",
        "linear",
    ]
    assert split_specs("dams") == ["dams"]
    assert split_specs("dams:0.1,cap=1,dams:0.2,cap=1") == ["dams:0.1,cap=1", "dams:0.2,cap=1"]


def test_which_are_laid_out_over_the_epochs():
    laid_out = {name for name in SCHEDULES if leaves_open(name, SCHEDULES, "epochs")}
    assert laid_out == {"linear", "exponential", "cosine", "litm"}
    assert not leaves_open("linear:epochs=7", SCHEDULES, "epochs")


# Answers


@pytest.mark.parametrize("name", STIMULI)
def test_a_stimulus_is_what_a_constant_margin_of_0_2_sees(name):
    easy = respond(mj.constant(0.2), stimulus(name, 40)).easy_fraction
    words = STIMULI[name][0]
    assert f"{easy[0]:.0%}".replace("%", " %") in words
    assert f"{100 * easy[-1]:g} %" in words or f"{easy[-1]:.0%}".replace("%", " %") in words


def test_an_answer_by_hand():
    world = World(np.array([0.5, 0.5, 0.1, np.nan, 0.9]), np.full(5, 0.2))
    answer = respond(mj.dams(0.2, 0.9, 0.1), world)
    np.testing.assert_allclose(answer.margin, [0.2, 0.3, 0.3, 0.3, 0.3], rtol=1e-6)
    expected = [0.9331928, 0.8413447, 0.1586553, np.nan, 0.9986501]
    np.testing.assert_allclose(answer.easy_fraction, expected, rtol=1e-5)


def test_a_recorded_world():
    world = recorded(
        [
            {"mean_effective": 0.5, "std_effective": 0.2},
            {"mean_effective": None, "std_effective": None},
        ]
    )
    np.testing.assert_array_equal(world.mean, [0.5, np.nan])
    assert respond(mj.automargin(), world).margin[1] == pytest.approx(0.25, rel=1e-3)


# Commands


def test_schedules_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["schedules"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    for name in SCHEDULES:
        assert f"\n{name}: " in f"\n{shown}"
    assert "threshold=0.95, increase=0.05, cap=inf" in shown


def test_schedules_are_plotted(capsys, tmp_path):
    out = tmp_path / "all.png"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["schedules", "plot", "--stimulus", "saturation", "--out", str(out)])
    assert not stopped.value.code
    assert len(capsys.readouterr().out.splitlines()) == len(ALONE) + 1
    assert np.asarray(Image.open(out).convert("L")).std() > 10


def test_they_answer_to_a_run(capsys, tmp_path):
    records = [{"epoch": e, "mean_effective": 0.1 * e, "std_effective": 0.1} for e in range(1, 9)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "history.jsonl").write_text(text)
    command = ["schedules", "plot", "automargin", "dams:0.1,threshold=0.5"]
    for path in (tmp_path, tmp_path / "history.jsonl"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command, "--history", str(path), "--out", str(tmp_path / "a.png")])
        assert not stopped.value.code
        shown = capsys.readouterr().out
        assert "automargin             margin 0.200 -> 0.350" in shown
        assert "dams:0.1,threshold=0.5" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dasm"], "Did you mean 'dams'?"),
        (["--stimulus", "stop"], "Did you mean 'step'?"),
        (["--epochs", "1"], "epochs must be between 2 and 1,000,000; got 1"),
        (["--epochs", "10000000000000"], "epochs must be between 2 and 1,000,000; got 1000"),
        (
            ["--history", "old", "--stimulus", "step"],
            "--stimulus and --history cannot be used together",
        ),
        (["--history", "old"], "no epoch with mean_effective and std_effective"),
        (["--history", "nowhere"], "no epochs in nowhere/history.jsonl"),
        (["--margin", "0", "exponential"], "exponential needs margins above 0"),
    ],
)
def test_what_can_not_be_plotted_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "history.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(SystemExit) as stopped:
        cli.main(["schedules", "plot", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_even_two_epochs_and_small_margins_can_be_plotted(capsys, tmp_path):
    command = ["schedules", "plot", "--epochs", "2", "--margin", "0.02"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--out", str(tmp_path / "a.png")])
    assert not stopped.value.code
    assert len(capsys.readouterr().out.splitlines()) == len(ALONE) + 1
