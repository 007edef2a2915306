"""The short form of experiments/reliability.py: processes killed at random moments, and resumed."""

import json
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parent.parent / "experiments" / "reliability.py"


def test_nothing_is_lost_by_kills(tmp_path):
    out = tmp_path / "result.json"
    options = ["--kills", "3", "--terms", "1", "--jobs", "0", "--races", "1", "--no-disks"]
    options += ["--out", str(out)]
    shown = subprocess.run(
        [sys.executable, str(CAMPAIGN), *options], capture_output=True, text=True, timeout=3600
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    result = json.loads(out.read_text())
    assert result["lost"] == []
    assert result["SIGKILL"]["signals"] == 3
    assert result["SIGKILL"]["lives"] >= 1
    assert result["SIGTERM"]["signals"] == 1
    assert result["races"]["pairs"] == 1
