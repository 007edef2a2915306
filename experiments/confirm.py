"""The regret of the same settings on data that had no part in choosing them.

    python experiments/confirm.py --data FOLDER [FOLDER ...] [--out RESULTS]

FOLDER has a folder of pictures for each identity, or is a file of vectors as `--dataset vectors`
takes it. The settings are those of `regret.py`, chosen on its five sets. Pictures are trained on
with the small network of the grid, at 48 pixels; vectors with the published head.

*Our rule*, one more setting, was written down when only constants were known of fresh data: a
margin that rises from 0.02 to 0.2 (`litm`) for pictures, on which a network is trained, and a
constant 0.02 for vectors, on which only a head is.

The constant that is tuned to a set is the one with the best mean validation AUC over the seeds 100
and 101, of as many as any schedule has settings. It, the untuned constants and the settings are
trained on the seeds 0 to 9. They are judged by even pairs, as validation is: no identity has more
than ten times the average.

RESULTS (by default `runs`) gets the cells, a line each, in `confirm`, and `confirm.md` with its
picture, of all sets that have cells there. Started again, it continues where it was. `--report`
only writes the page; its first words, the findings, stay as they are.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import cell_files
from compare import share_out, train_cell
from grid import CANDIDATES, FEATURES, OPTIMISER, REDUCTIONS, TUNING_SEEDS
from regret import SEEDS, Regret, markdown, plot, settings_of, tuned_constant
from study import write_page

import margin_jax as mj

# As LFW's, in batches that the training identities allow.
PICTURES = {"dataset": "folder", "image_size": 48, "width": 0.25, "epochs": 40}


def open_data(path: Path) -> tuple[dict[str, Any], Any]:
    """What all cells of a data set have in common, and its examples.

    Goes to where it is, so that the commands in the cells hold no path of this machine.
    """
    os.chdir(path.parent)
    own = PICTURES if path.is_dir() else FEATURES
    options = {**OPTIMISER, **own, "data_dir": path.name}
    config = mj.TrainConfig(**options)
    return options, mj.load_dataset(config.dataset, config.data_dir, config.image_size, strict=True)


def train(path: Path, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction."""
    options, data = open_data(path)
    options["reduction"] = reduction
    cells = cell_files.path_of(arguments.out / "confirm", path.stem, reduction)

    def cell(schedule: str, seed: int) -> None:
        changed = {**options, "schedule": schedule, "seed": seed}
        train_cell(cells, changed, data, arguments.scratch, {"dataset": path.stem})

    for schedule, seed in itertools.product(CANDIDATES["constant"], TUNING_SEEDS):
        cell(schedule, seed)
    best = tuned_constant(cell_files.read(cells))
    settings = settings_of(options["dataset"], reduction, best)
    for seed in SEEDS[: arguments.seeds]:
        for schedule in settings:
            cell(schedule, seed)


def read(out: Path) -> list[Regret]:
    """Of each reduction, over the sets that have cells of both kinds of seed."""
    found = []
    for reduction in REDUCTIONS:
        by_set, best = {}, {}
        for path in sorted((out / "confirm").glob(f"*_{reduction}.jsonl")):
            name, cells = path.stem.removesuffix(f"_{reduction}"), cell_files.read(path)
            if reported := [own for own in cells.values() if own["seed"] not in TUNING_SEEDS]:
                by_set[name], best[name] = reported, tuned_constant(cells)
        if by_set:
            found.append(Regret(reduction, by_set, best, pairs=lambda name: "pairs"))
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders or files")
    parser.add_argument("--reductions", default=",".join(REDUCTIONS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many are reported")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/confirm-runs"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="on a GPU: 1")
    parser.add_argument("--report", action="store_true", help="only from the cells that are there")
    arguments = parser.parse_args(argv)
    arguments.reductions = arguments.reductions.split(",")
    for value in set(arguments.reductions) - set(REDUCTIONS):
        parser.error(f"--reductions must be some of {', '.join(REDUCTIONS)}; got {value}")
    if not (arguments.data or arguments.report):
        parser.error("--data must be folders of pictures or files of vectors; got none")
    for path in arguments.data:
        if not path.exists():
            parser.error(f"--data must be folders of pictures or files of vectors; no {path}")
    names = [path.stem for path in arguments.data]
    if len(set(names)) < len(names):
        parser.error(f"--data must have different names; got {', '.join(names)}")
    if not 2 <= arguments.seeds <= len(SEEDS):
        parser.error(f"--seeds must be 2 to {len(SEEDS)}; got {arguments.seeds}")
    arguments.data = [path.absolute() for path in arguments.data]
    arguments.out, arguments.scratch = arguments.out.absolute(), arguments.scratch.absolute()
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    well = True
    if not arguments.report:
        jobs = [
            (path, reduction, arguments)
            for path in arguments.data
            for reduction in arguments.reductions
        ]
        well = share_out(train, jobs, arguments.processes)
    if every := read(arguments.out):
        page = arguments.out / "confirm.md"
        write_page(page, lambda before: markdown(every, before, __doc__, "confirm.png"))
        plot(every).savefig(page.with_suffix(".png"))
        print(*(regret.table() for regret in every), f"in {page}", sep="\n\n")
    sys.exit(not well)


if __name__ == "__main__":
    main()
