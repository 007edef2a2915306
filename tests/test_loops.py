"""The loops of one's own: short, complete, without a warning, and the margin moves in them."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

LOOPS = Path(__file__).parent.parent / "experiments" / "loops"


def epochs(name):
    """(margin, easy share in %) of every epoch that a loop prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_path(str(LOOPS / f"{name}.py"), run_name="__main__")
    return re.findall(r"^\d+ margin (\d\.\d\d) easy (\d+\.\d)%$", shown.getvalue(), re.MULTILINE)


@pytest.fixture(scope="module")
def linen():
    return epochs("linen")


def test_linen(linen):
    margins = [float(margin) for margin, _ in linen]
    assert len(margins) == 10
    assert margins == sorted(margins)
    assert margins[-1] > margins[0]


def test_a_schedule_inside_scan_does_the_same(linen):
    """One program for all epochs, and the same figures as those counted on the host."""
    assert epochs("scan") == linen


def test_nnx():
    told = epochs("nnx")
    assert len(told) == 10
    assert len({margin for margin, _ in told}) > 3
    assert float(told[-1][1]) > 85


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_they_are_short_and_use_the_public_face_alone(name):
    text = (LOOPS / f"{name}.py").read_text()
    assert text.count("\n") < 40
    assert re.findall(r"(?:import|from) margin_jax.*", text) == ["import margin_jax as mj"]
