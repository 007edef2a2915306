"""The faults of `experiments/mutants.py`: each can still be made, and what is noticed is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return __import__("mutants")


def test_every_fault_of_the_table_can_be_made(mutants):
    """Its text is there, once, as are its tests; else the table has to follow the code."""
    table = mutants.read_table()
    assert len({(mutant.module, mutant.new, mutant.old) for mutant in table}) == len(table)
    missing = []
    for mutant in table:
        try:
            mutant.applied(ROOT)
            assert mutant.tests
            for test in mutant.tests:
                mutants.find_test(ROOT, test)
        except (LookupError, SyntaxError) as error:
            missing.append(f"{mutant.why}: {error}")
    assert missing == []


@pytest.fixture
def tree(tmp_path):
    """A package of two functions, of which one is tested."""
    for folder in ("margin_jax/inner", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("margin_jax", "margin_jax/inner"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "margin_jax/inner/sums.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
    )
    (tmp_path / "tests/test_sums.py").write_text(
        "from margin_jax.inner.sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    )
    return tmp_path


TRY = """
import sys
from pathlib import Path
import mutants

*module, old, new = sys.argv[2:]
mutant = mutants.Mutant(module[0], "", old, new, ("test_sums",))
print("noticed by", mutants.tried(mutant, Path(sys.argv[1]), Path(sys.argv[1], "cache"))["by"])
"""


def test_a_fault_is_noticed_or_not(mutants, tree):
    source = tree / "margin_jax/inner/sums.py"
    before = source.read_text()
    for fault, told in (
        (("sums", "a + b", "a + b + 1"), "noticed by test_sums.py::test_add\n"),
        (("inner/sums", "a - b", "b - a"), "noticed by \n"),
        (("sums", "def add", "def other"), "ImportError while importing test module"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", TRY, str(tree), *fault],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "experiments")},
        )
        if ended.returncode:
            assert told in ended.stderr
        else:
            assert ended.stdout == told
        assert source.read_text() == before


def test_a_fault_that_can_not_be_made_is_loud(mutants, tree):
    for module, old, new, error, message in (
        ("sums", "a * b", "a", LookupError, r"found 0 times in sums\.py: 'a \* b'"),
        ("sums", "return a", "return b", LookupError, r"found 2 times in sums\.py"),
        ("outer/sums", "a + b", "a", LookupError, r"found 0 times in outer/sums\.py"),
        ("sums", "a + b", "a +", SyntaxError, "invalid syntax"),
    ):
        with pytest.raises(error, match=message):
            mutants.Mutant(module, "", old, new, ("test_sums",)).applied(tree)
    for test in ("test_none", "test_sums::test_sub"):
        with pytest.raises(LookupError, match="is no test"):
            mutants.find_test(tree, test)


def test_what_can_not_be_noticed_does_not_count(mutants):
    made = [
        mutants.Mutant("sums", "sums are off", "a + b", "a", ("test_sums",)),
        mutants.Mutant("sums", "differences turn", "a - b", "b - a", ("test_sums",)),
        mutants.Mutant("sums", "nothing changes", "a - b", "a-b", ("test_sums",), "it is the same"),
        mutants.Mutant("sums", "not tried", "a - b", "a", ("test_sums",)),
    ]
    by = ("test_sums.py::test_add", "", "")
    shown = mutants.as_markdown(made, {m.digest: test for m, test in zip(made, by, strict=False)})
    assert "**1 of 2 are noticed (50.0%).**" in shown
    assert "| sums | 1 | 2 |" in shown
    assert "| sums | sums are off | `test_sums.py::test_add` |" in shown
    assert "| sums | differences turn | **nothing** |" in shown
    assert "| sums | nothing changes | **nothing** it is the same |" in shown
    assert "not tried" not in shown
