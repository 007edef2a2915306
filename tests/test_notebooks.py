"""The notebooks run from top to bottom, show what they are about, and use the public face alone."""

import ast
import base64
import io
import os
import re
import sys
import tomllib
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

import margin_jax as mj

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where the repository is published: every badge leads there.
REPOSITORY = PROJECT["urls"]["Source"].removeprefix("https://github.com/")
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/colab/{{}})"
)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    """The code cells as Python, their magics turned into calls."""
    transform = TransformerManager().transform_cell
    return [transform(cell.source) for cell in read(path).cells if cell.cell_type == "code"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook in a process of its own, in a folder that holds nothing else."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    folder = tmp_path / "here"
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "MARGIN_JAX_SMALL": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(path):
        notebook = read(path)
        client = nbclient.NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env=environment)
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return run


@every_notebook
def test_it_runs_and_leaves_pictures(path, run):
    cells = run(path)  # raises what a cell raises
    outputs = [output for cell in cells for output in cell.outputs]
    texts = [output.text for output in outputs if output.output_type == "stream"]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert [t for t in texts if re.search(r"Warning|Traceback|not found|margin-jax: ", t)] == []

    bars = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    # Of a run two: its epochs, and its report.
    assert len(bars) == 2 * str(read(path)).count("progress=True")

    pictures = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 3
    assert len(set(pictures)) == len(pictures), "drawn twice"
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert min(image.size) > 200
            shades = np.asarray(image.convert("L"))
        assert len(np.unique(shades)) > 20
        assert np.mean(shades < 250) > 0.005, "blank"

    installing = next(cell for cell in cells if "%pip" in cell.source)
    assert installing.outputs == [], "it must do nothing where the package is installed"


@every_notebook
def test_it_installs_this_version(path):
    (pinned,) = re.findall(r"%pip install .*margin-jax(?:\[[\w,{}]+\])?==(\S+)", str(read(path)))
    assert pinned == mj.__version__
    (first,) = [cell.source for cell in read(path).cells if cell.cell_type == "code"][:1]
    assert "%pip" in first


@every_notebook
def test_it_uses_the_public_face_alone(path):
    nodes = [node for source in code(path) for node in ast.walk(ast.parse(source))]
    imported = [a for n in nodes if isinstance(n, ast.Import) for a in n.names]
    ours = [(a.name, a.asname) for a in imported if a.name.split(".")[0] == "margin_jax"]
    assert ours == [("margin_jax", "mj")]
    others = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    assert [name for name in others if name.split(".")[0] == "margin_jax"] == []
    text = "\n".join(cell.source for cell in read(path).cells)
    used = set(re.findall(r"\bmj\.(\w+)", text))
    assert used
    assert used - set(mj.__all__) == set()


@every_notebook
def test_it_is_kept_without_what_it_printed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in kept if cell.outputs or cell.execution_count or cell.metadata] == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "accelerator"}


@every_notebook
def test_badge_and_links_lead_somewhere(path):
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert texts[0].splitlines()[0] == BADGE.format(path.name)
    assert re.search(r"^# ", texts[0], re.MULTILINE)
    links = re.findall(r"\]\((?!http)([^)]+)\)", "\n".join(texts))
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_there_are_all_of_them():
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "effective_margin",
        "loss_in_your_code",
        "quickstart",
        "real_data",
        "use_a_run",
    ]


@every_notebook
def test_it_is_short_and_says_first_what_comes_of_it(path):
    cells = read(path).cells
    assert len(cells) <= 12
    first = " ".join(cells[0].source.split())
    assert "At the end you have" in first
    assert re.search(r"\bminutes? on a CPU", first)
