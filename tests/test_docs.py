"""The examples in the docstrings run, and the site of guide and reference is built."""

import doctest
import importlib
import re
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
def site(tmp_path_factory):
    """The folder of the site, built without a warning, as a link that leads nowhere would be."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=3600)
    assert shown.returncode == 0, shown.stderr
    return out


def test_the_reference_has_every_public_name_once(site):
    _, compressed = (site / "objects.inv").read_bytes().split(b"zlib.\n")
    entries = [line.split()[:2] for line in zlib.decompress(compressed).decode().splitlines()]
    names = [name.removeprefix("margin_jax.") for name, kind in entries if kind.startswith("py:")]
    assert sorted(name for name in names if "." not in name) == sorted(mj.__all__)


def test_the_reference_has_the_fields_of_a_configuration(site):
    page = (site / "reference.html").read_text(encoding="utf-8")
    assert "<strong>learning_rate</strong>" in page
    assert "Default: <code" in page


def test_the_site_has_the_guide_with_its_links_and_pictures(site):
    pages = {page.stem for page in (ROOT / "docs" / "guide").iterdir()}
    assert {page.stem for page in (site / "guide").glob("*.html")} == pages
    losses, schedules = (
        (site / "guide" / f"{name}.html").read_text(encoding="utf-8")
        for name in ("losses", "schedules")
    )
    source = "https://github.com/margin-jax/margin-jax"
    assert f'href="{source}/blob/main/experiments/loops/linen.py"' in losses
    assert 'href="../reference.html' in losses
    assert 'src="../_images/schedules_step.png"' in schedules
    for page in (losses, schedules):
        assert not [link for link in page.split('href="')[1:] if "../../" in link.split('"')[0]]


PAGES = ["README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "experiments/results"]
# What people trip over, and what they would say instead; spelling is for `typos`.
PLAINER = {
    r"can not": "cannot",
    r"shall": "must, should or will",
    r"in order to": "to",
    r"utili[sz]e": "use",
    r"whilst|thereof|heretofore": "while, of it, until now",
    r"what came of": "the results of",
    r"exclude each other": "cannot be used together",
    r"goes? on where it (?:was|stopped)": "continues",
    r"of no effect": "has no effect",
    r"(?:is )?a constant to differentiation": "no gradient flows through it",
    r"brought to length": "normalised to length",
    r"out of (?:those|its) ranges?": "outside",
    r"need not be said": "can be left out",
}


def prose():
    """Name and text: pages without their code, and modules, whose words are read by someone too."""
    for page in PAGES:
        for path in sorted((ROOT / page).rglob("*.md")) or [ROOT / page]:
            text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            yield path.relative_to(ROOT).as_posix(), text
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE.parent).as_posix(), path.read_text(encoding="utf-8")


def test_words_are_plain():
    found = [
        f"{name}: {word[0]!r}; rather {rather}"
        for name, text in prose()
        for pattern, rather in PLAINER.items()
        for word in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]
    assert found == []


def test_sentences_of_the_guide_are_short():
    """At most 45 words, which is long already."""
    long = []
    for name, text in prose():
        if name.startswith(("README", "AGENTS", "CONTRIBUTING", "docs")):
            lines = re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE)
            words = re.sub(r"\]\([^)]*\)", "]", lines)
            for sentence in re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n(?:- |\d+\. )", words):
                if len(sentence.split()) > 45:
                    long.append((name, " ".join(sentence.split())))
    assert long == []
