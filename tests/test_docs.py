"""The examples in the docstrings run, and the API reference is built, so that both stay true."""

import doctest
import importlib
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import margin_jax as mj

ROOT = Path(__file__).parent.parent
PACKAGE = Path(mj.__file__).parent
WITH_EXAMPLES = sorted(
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_examples_run(file):
    path = PACKAGE.parent / file
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.failures == 0
    assert runner.tries == path.read_text(encoding="utf-8").count(">>>")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of the built reference. No warning: a second entry for a name would be one."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    out = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=3600)
    assert shown.returncode == 0, shown.stderr
    return out


def test_the_reference_has_every_public_name_once(reference):
    _, compressed = (reference / "objects.inv").read_bytes().split(b"zlib.\n")
    entries = [line.split()[:2] for line in zlib.decompress(compressed).decode().splitlines()]
    names = [name.removeprefix("margin_jax.") for name, kind in entries if kind.startswith("py:")]
    assert sorted(name for name in names if "." not in name) == sorted(mj.__all__)


def test_the_reference_has_the_fields_of_a_configuration(reference):
    page = (reference / "reference.html").read_text(encoding="utf-8")
    assert "<strong>learning_rate</strong>" in page
    assert "Default: <code" in page
