"""The plan of the house: imports go one way, and importing the package is light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import margin_jax as mj

PACKAGE = Path(mj.__file__).parent

# A room imports only rooms above it: `training` knows no configuration, `runs` knows everything.
ROOMS = [
    "choices",
    "spec",
    "files",
    "lock",
    "stats",
    "schedules",
    "devices",
    "losses",
    "data",
    "models",
    "training",
    "evaluation",
    "config",
    "plots",
    "runs",
    "cli",
    "__main__",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__" or parts == ("__init__",))
        found[name] = path
    del found["__init__"]  # the public face may import anything
    return found


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file it does."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    known = modules()
    names = {name.removeprefix("margin_jax.") for name in found if name.startswith("margin_jax.")}
    return {name for name in names if name in known}


def room(name: str) -> str:
    return name.split(".")[0]


def test_every_module_has_its_place():
    assert {room(name) for name in modules()} == set(ROOMS)


def test_imports_go_one_way():
    """From room to room as ROOMS has it, and in a room without a circle."""
    arrows = {name: imports(path) - {name} for name, path in modules().items()}
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows.items()
        for other in others
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert wrong == []
    list(graphlib.TopologicalSorter(arrows).static_order())  # an error, if there is a circle


def test_a_long_module_says_why():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        reason = "longer than 300 lines" in " ".join(ast.get_docstring(ast.parse(text)).split())
        assert (text.count("\n") > 300) == reason, f"{name} has {text.count(chr(10))} lines"


def test_only_models_import_linen():
    users = {name for name, path in modules().items() if "flax" in imported(path)}
    assert {name for name in users if name.split(".")[0] != "models"} == set()


def test_importing_the_package_is_light():
    heavy = (
        "chex",
        "flax",
        "optax",
        "orbax",
        "sklearn",
        "matplotlib",
        "tensorflow",
        "PIL",
        "tqdm",
    )
    code = f"import sys, margin_jax; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


BARE = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
from PIL import Image

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grain", "tensorflow_datasets", "array_record"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import margin_jax as mj

root = Path(sys.argv[1])
for row, image in enumerate(np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)):
    (root / "pictures" / f"{row // 4:02}").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "pictures" / f"{row // 4:02}" / f"{row}.png")
small = {"epochs": 1, "identities_per_batch": 2, "image_size": 8, "encoder": "mlp"}
folder = {"dataset": "folder", "data_dir": str(root / "pictures"), "out": str(root / "run")}
run = mj.fit(mj.TrainConfig(**small, **folder))
print(len(run.history))
"""


def test_a_folder_trains_without_the_libraries_of_datasets(tmp_path):
    """What experiments/accelerator.py needs of a machine that has little more than JAX."""
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert (ended.stdout, ended.returncode) == ("1\n", 0), ended.stderr


def test_all_public_names_exist_and_are_documented():
    for name in mj.__all__:
        assert getattr(mj, name).__doc__, name
    assert set(mj._LAZY) < set(mj.__all__)
    # Importing a module puts its name on the package, over any function of that name.
    assert not set(mj.__all__) & {name.split(".")[0] for name in modules()}
