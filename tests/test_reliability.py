"""The short form of experiments/reliability.py: a process killed at some moment, and resumed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent.parent / "experiments" / "reliability.py"


def test_nothing_is_lost_by_kills(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("reliability", CAMPAIGN)
    spec.loader.exec_module(reliability := importlib.util.module_from_spec(spec))
    small = ("--encoder", "mlp", "--image-size", "12", "--epochs", "4")
    monkeypatch.setattr(reliability, "OPTIONS", (*reliability.OPTIONS, *small))
    out = tmp_path / "result.json"
    options = ["--kills", "1", "--terms", "0", "--jobs", "0", "--races", "0", "--no-disks"]
    monkeypatch.setattr(sys, "argv", [str(CAMPAIGN), *options, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        reliability.main()
    assert not ended.value.code, capsys.readouterr()
    result = json.loads(out.read_text())
    assert result["lost"] == []
    assert result["SIGKILL"]["signals"] == 1
    assert result["SIGKILL"]["lives"] >= 1
