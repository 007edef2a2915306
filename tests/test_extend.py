"""The page on how to extend the package is followed to the letter, in a copy of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guide" / "extend.md").read_text(encoding="utf-8")
# The next one, the commands after the last one, or the end.
STEP = re.compile(
    r"^\d\. (New file|In) `(.+?)`(.+?)(?=^\d\. |^```bash|\Z)", re.MULTILINE | re.DOTALL
)


def changed(text, diff):
    """With the lines of a diff added, each group of its lines being in the text once."""
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[0] == " ")
    assert text.count(old) == 1, f"not once there:\n{old}"
    return text.replace(old, "\n".join(line[1:] for line in lines))


def follow(section, root):
    """The tests that the page then runs."""
    for kind, name, rest in STEP.findall(section):
        path, code = root / name, re.findall(r"```(python|diff)\n(.*?)```", rest, re.DOTALL)
        assert code
        for language, block in code:
            assert language == ("python" if kind == "New file" else "diff")
            if language == "python":
                assert not path.exists()
                path.write_text(block, encoding="utf-8")
            else:
                path.write_text(changed(path.read_text("utf-8"), block), encoding="utf-8")
    (tests,) = re.findall(r"^python -m pytest (.+)$", section, re.MULTILINE)
    return tests.split()


def test_what_the_page_says_works(tmp_path):
    """All of it in one copy, so that the three go together."""
    for name in ("margin_jax", "tests", "docs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = []
    for kind in ("A loss", "A schedule", "An encoder"):
        (section,) = re.findall(rf"^## {kind}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
        tests += follow(section, tmp_path)
    # Those that know the new names; all of them take minutes.
    new = "contrastive and not fisher or geometric or pooled or reference"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-k", new, *dict.fromkeys(tests)]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=3600,
    )
    assert shown.returncode == 0, shown.stdout
