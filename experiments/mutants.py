"""Do the tests notice? Small faults are made in the package, one at a time, and tests must fail.

    python experiments/mutants.py --only losses     # one module, in minutes
    python experiments/mutants.py                   # all, in an hour or two; goes on where it was

``mutants.toml`` lists the faults: the module, the exact text, its replacement, what that would
mean, and the tests that must fail. Each fault is made in a copy of the tree. The results are lines
of JSON, written one by one, and a table, ``results/mutants.md``. A mutant is *killed* if a test
fails, and *survives* if all pass. If its entry `survives` gives a reason why no test can fail, it
is not a fault and is not counted.
"""

import argparse
import ast
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".toml")
RESULTS = Path(__file__).parent / "results"
# What tests load, and do not change: their processes have it at once.
LIBRARIES = ("chex", "flax.linen", "matplotlib.figure", "optax", "orbax.checkpoint", "scipy.stats")
# Of the tree, what tests need.
NEEDED = ("margin_jax", "tests", "experiments", "docs", "colab", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        module: the name of its file without the ending, with its folder if several are alike.
        why: what it would mean.
        old, new: the text, there exactly once, and what stands there instead.
        tests: files of tests, or ``file::test``, of which one must fail.
        survives: why none can, if none can.
    """

    module: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def digest(self) -> str:
        """What its result is known by; another text, or other tests, need another trial."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def applied(self, root: Path) -> tuple[Path, str]:
        """The file, wherever it lies, and what it says with the fault.

        Raises:
            LookupError: unless the text is found exactly once.
            SyntaxError: if what it becomes is no Python.
        """
        found = [
            (path, text, text.count(self.old))
            for path in sorted((root / "margin_jax").rglob(f"{Path(self.module).name}.py"))
            if path.with_suffix("").as_posix().endswith(f"/{self.module}")
            for text in [path.read_text(encoding="utf-8")]
        ]
        times = sum(count for *_, count in found)
        if times != 1:
            raise LookupError(f"found {times} times in {self.module}.py: {self.old!r}")
        ((path, text),) = ((path, text) for path, text, count in found if count)
        changed = text.replace(self.old, self.new)
        ast.parse(changed)
        return path, changed


def read_table(path: Path = TABLE) -> list[Mutant]:
    """All mutants of a table."""
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**values, "tests": tuple(values["tests"])}) for values in listed]


def find_test(root: Path, name: str) -> str:
    """A file of tests, or a test of one, as pytest takes it, wherever it lies.

    Raises:
        LookupError: unless there is exactly one.
    """
    file, colons, test = name.partition("::")
    found = sorted((root / "tests").rglob(f"{file}.py"))
    if len(found) != 1 or (test and f"def {test}(" not in found[0].read_text(encoding="utf-8")):
        raise LookupError(f"{name} is no test, or several")
    return f"{found[0].relative_to(root)}{colons}{test}"


def copied(room: Path, root: Path = ROOT) -> Path:
    """What tests need of a tree, in a folder of its own."""
    room.mkdir()
    for name in NEEDED:
        if (root / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "cells", "build")
            shutil.copytree(root / name, room / name, ignore=ignored)
        elif (root / name).exists():
            shutil.copy(root / name, room / name)
    return room


def first_failure(tree: Path, tests: tuple[str, ...], cache: Path) -> str:
    """The first test that fails in a tree; "" if all pass.

    In a process of its own, which has all libraries from this one, but nothing of the package, and
    what other ones have compiled from pytest's cache. Both are most of the time of a small test.

    Raises:
        RuntimeError: if the tests cannot even be collected.
    """
    files = [find_test(tree, name) for name in tests]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            os.chdir(tree)
            os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.path.insert(0, str(tree))
            sys.dont_write_bytecode = True
            seen = _Seen()
            options = ["-x", "-q", "-p", "no:xdist", "-o", "addopts="]
            options += ["-o", f"cache_dir={cache}"]
            status = pytest.main([*options, *files], plugins=[seen])
            told.write(seen.failed)
            told.flush()
            sys.stdout.flush()
            os._exit(int(status))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        said.seek(0)
        failed = told.read()
        if status not in (0, 1) or bool(failed) != bool(status):
            raise RuntimeError(f"{tests}: {said.read()[-3000:]}")
    return failed.removeprefix("tests/").partition("[")[0]


class _Seen:
    """Notes the first test that fails."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def tried(mutant: Mutant, tree: Path, cache: Path) -> dict[str, Any]:
    """The result of a mutant, made in a tree and taken back."""
    path, changed = mutant.applied(tree)
    before = path.read_text(encoding="utf-8")
    path.write_text(changed, encoding="utf-8")
    try:
        killed_by = first_failure(tree, mutant.tests, cache)
    finally:
        path.write_text(before, encoding="utf-8")
    return {"mutant": mutant.digest, "module": mutant.module, "why": mutant.why, "by": killed_by}


def as_markdown(mutants: list[Mutant], results: dict[str, str]) -> str:
    """The table of all that were tried."""
    modules = defaultdict(list)
    for mutant in mutants:
        if mutant.digest in results:
            modules[mutant.module].append(mutant)
    real = [m for listed in modules.values() for m in listed if not m.survives]
    killed = [m for m in real if results[m.digest]]
    lines = [
        "# Do the tests notice?",
        "",
        "Faults that were made in the package, one at a time, and the first test that failed; by",
        "`python experiments/mutants.py`. Those that are no fault, as no test could fail, are",
        "named with the reason and not counted.",
        "",
        f"**{len(killed)} of {len(real)} are noticed ({len(killed) / max(len(real), 1):.1%}).**",
        "",
        "| module | noticed | of |",
        "|---|---:|---:|",
    ]
    for module, listed in sorted(modules.items()):
        counted = [m for m in listed if not m.survives]
        noticed = sum(bool(results[m.digest]) for m in counted)
        lines.append(f"| {module} | {noticed} | {len(counted)} |")
    lines += ["", "| module | the fault: that | noticed by |", "|---|---|---|"]
    for module, listed in sorted(modules.items()):
        for m in listed:
            by = f"`{results[m.digest]}`" if results[m.digest] else f"**nothing** {m.survives}"
            lines.append(f"| {module} | {m.why} | {by.strip()} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="*", help="modules by name, in that order; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.jsonl")
    options = parser.parse_args()
    mutants = read_table()
    results = {}
    if options.out.exists():
        lines = map(json.loads, options.out.read_text(encoding="utf-8").splitlines())
        results = {line["mutant"]: line["by"] for line in lines}
    left = [m for m in mutants if m.digest not in results]
    if options.only is not None:
        left = [m for module in options.only for m in left if m.module == module]
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as room:
        tree, cache = copied(Path(room, "tree")), Path(room, "cache")
        for mutant in mutants:
            mutant.applied(tree)  # loud before, not after, an hour
        for done, mutant in enumerate(left, 1):
            result = tried(mutant, tree, cache)
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            results[mutant.digest] = result["by"]
            by = result["by"] or "NOTHING"
            print(f"{done}/{len(left)} {mutant.module}: {mutant.why}: {by}", flush=True)
        noticed = tuple(sorted({by.replace(".py", "") for by in results.values() if by}))
        if left and (failed := first_failure(tree, noticed, cache)):
            raise SystemExit(f"{failed} fails without any fault")
    options.out.with_suffix(".md").write_text(as_markdown(mutants, results), encoding="utf-8")


if __name__ == "__main__":
    main()
