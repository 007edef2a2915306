"""What is handed out: the wheel holds the package and nothing else, and says what it is."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import margin_jax as mj
from margin_jax import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "margin_jax"
INFO = f"margin_jax-{mj.__version__}.dist-info"


def build(kind, out):
    """Builds with the installed backend: no network, nothing left behind in the checkout."""
    pytest.importorskip("hatchling")
    code = f"import sys; from hatchling.build import build_{kind} as b; print(b(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return out / shown.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as file:
        yield {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return message_from_bytes(wheel[f"{INFO}/METADATA"])


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert {name for name in package if not name.endswith(".py")} == {
        "margin_jax/data/glyphs.txt",
        "margin_jax/py.typed",
    }
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert set(wheel) == {*package, *(f"{INFO}/{name}" for name in about)}
    assert {name: wheel[name] for name in package} == package
    assert wheel[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_says_what_it_is(metadata):
    assert metadata["Name"] == "margin-jax"
    assert metadata["Version"] == mj.__version__
    assert metadata["Author"] == "The margin-jax authors"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"] == mj.__doc__.splitlines()[0].replace(".", " (DAMS).")
    assert metadata["Keywords"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(metadata.get_all("Classifier")) <= known


def test_its_readme_is_the_repository_s_with_links_that_lead_there(metadata):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = metadata.get_payload(decode=True).decode()
    paths = re.findall(r"\]\((?!https?:)([^)]+)\)", readme)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert re.findall(r"\]\((?!https?:)([^)]+)\)", shown) == []

    (repository,) = [
        text.partition(", ")[2]
        for text in metadata.get_all("Project-URL")
        if text.startswith("Source, ")
    ]
    raw = repository.replace("//github.com/", "//raw.githubusercontent.com/")
    pictures = re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)", readme)
    assert pictures
    assert [picture for picture in pictures if f"]({raw}/main/{picture})" not in shown] == []
    back = shown.replace(f"]({raw}/main/", "](")
    for path in paths:
        back = back.replace(f"]({repository}/blob/main/{path})", f"]({path})")
    assert back.strip() == readme.strip()


def test_extras_that_messages_and_the_readme_name_exist(metadata):
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {
        *(
            "prepare",
            "pretrained",
            "heic",
            "onnx",
            "tables",
            "tensorboard",
            "docs",
            "test",
            "lint",
            "peers",
        )
    }
    texts = [
        path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *PACKAGE.rglob("*.py")]
    ]
    named = {extra for text in texts for extra in re.findall(r"margin-jax\[(\w+)\]", text)}
    assert named >= {"prepare", "pretrained"}
    assert named <= extras


def test_the_command_is_the_one_of_the_package(wheel):
    assert wheel[f"{INFO}/entry_points.txt"].decode().split("\n", 1)[1].strip() == (
        f"margin-jax = {cli.__name__}:{cli.main.__name__}"
    )


def test_what_the_package_imports_is_declared(metadata):
    of_users = [
        text
        for text in metadata.get_all("Requires-Dist")
        if not re.search(r"extra == '(docs|test|lint|peers)'", text)
    ]
    declared = {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in of_users}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"margin_jax"}
    owners = importlib.metadata.packages_distributions()
    undeclared = {
        module
        for module in modules
        if not declared
        & {owner.lower().replace("_", "-") for owner in owners.get(module, [module])}
    }
    assert undeclared == set()


def test_the_sdist_holds_what_builds_tests_and_explains_it(tmp_path):
    path = build("sdist", tmp_path)
    with tarfile.open(path) as file:
        names = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    assert {name.split("/")[0] for name in names} - {"colab"} == {
        *("margin_jax", "docs", "experiments", "tests", ".ci", ".gitignore", "pyproject.toml"),
        *("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "AGENTS.md"),
        *("LICENSE", "PKG-INFO"),
    }
    assert not [name for name in names if "__pycache__" in name]
    assert path.stat().st_size < 10 * 2**20  # nearly all of it is results: cells and pictures


def test_one_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [mj.__version__]
