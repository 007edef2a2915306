"""What the studies have in common: their options, and pages that begin with words of a person."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from compare import check_folders

RESULTS = Path(__file__).parent / "results"


class Some(NamedTuple):
    """An option that takes some of these, all by default, in a text with this sign between them."""

    known: Iterable[str]
    between: str = ","


def parse(argv: list[str] | None, doc: str, name: str, **lists: Some) -> argparse.Namespace:
    """The options of a study.

    Args:
        argv: the command line; None: the program's own.
        doc: of the study; its first line is shown.
        name: of the folder for its runs.
        lists: further options.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the images")
    for option, (known, between) in lists.items():
        every = between.join(known)
        parser.add_argument(f"--{option}", default=every, help=f"of {every}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the cells go")
    parser.add_argument("--scratch", type=Path, default=Path("runs", name), help="for run folders")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="on a GPU: 1")
    parser.add_argument("--report", action="store_true", help="only from the cells that are there")
    arguments = parser.parse_args(argv)
    for option, (known, between) in lists.items():
        values = getattr(arguments, option).split(between)
        for value in set(values) - set(known):
            parser.error(f"--{option} must be some of {f'{between} '.join(known)}; got {value}")
        setattr(arguments, option, values)
    if not arguments.report:
        check_folders(parser, arguments)
    return arguments


def first_words(before: str, doc: str, until: str = "\n\n![") -> str:
    """Those of the page as it was, or at first what the study says of itself."""
    return before.partition(until)[0] or f"# {doc.strip()}"


def write_page(path: Path, markdown: Callable[[str], str]) -> None:
    """Writes a page anew, made from what it was."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(markdown(before), encoding="utf-8")
