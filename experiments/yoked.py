"""Is it the watching? Schedules that watch the triplets, and controls that move alike but do not.

    python experiments/yoked.py --data DATA

A *yoked control* is trained with the margins that the schedule chose in another run, epoch for
epoch (`--schedule replay:...`). If watching its own triplets helps a run, the schedule beats its
control; if only the course of the margin matters, they are equal.

Where schedules that watch gained over the tuned constant (`schedules.md`; GAINED), each is trained
on the seeds 0 to 9 with the setting that it was tuned to. The control of a seed has its split, its
initialisation and its batches, and the margins of the next seed (that of 9 those of 0), to the five
digits that a cell keeps. The tuned constant stands beside. Cells of `compare.py` that would come
out the same to the last digit are taken over.

Cells go to `experiments/results/yoked`; started again, it goes on where it was. `--report` writes
`experiments/results/yoked.md` from them, in seconds; its first words, the findings, stay as they
are.
"""

import argparse
import sys
from pathlib import Path

import cell_files
import numpy as np
from compare import CELLS, open_dataset, share_out, train_cell, tuned
from grid import CANDIDATES, NAMES
from regret import plus_minus, tuned_constant, with_interval
from shapes import REDUCTION, headline
from study import first_words, parse, write_page

GAINED = {
    ("omniglot", "mean"): ("dams", "target_easy_fraction", "automargin"),
    ("cub_features", "mean_active"): ("target_easy_fraction", "quantile_margin"),
}
SEEDS = range(10)
CONSTANT = "constant"


def chosen(kind: str, cells: dict[cell_files.Key, dict]) -> str:
    """The setting of a kind that validation chose in the grid."""
    return tuned([cell for cell in cells.values() if cell["schedule"] in CANDIDATES[kind]])


def control(cell: dict) -> str:
    """The schedule that repeats the margins of a cell."""
    return f"replay:{'/'.join(f'{margin:g}' for margin in cell['epochs']['margin'])}"


def train(name: str, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction."""
    grid = cell_files.read(cell_files.path_of(CELLS, name, reduction))
    options, data = open_dataset(name, arguments.data)
    options["reduction"] = reduction
    path = cell_files.path_of(arguments.out / "yoked", name, reduction)

    def cell(variation: str, schedule: str, seed: int) -> dict:
        changed = {**options, "schedule": schedule, "seed": seed}
        told = {"dataset": name, "variation": variation}
        return train_cell(path, changed, data, arguments.scratch, told, grid)

    for seed in SEEDS:
        cell(CONSTANT, tuned_constant(grid), seed)
    for kind in GAINED[name, reduction]:
        watching = [cell(kind, chosen(kind, grid), seed) for seed in SEEDS]
        for seed in SEEDS:
            cell(f"control of {kind}", control(watching[(seed + 1) % len(watching)]), seed)


class Found:
    """The cells of a data set and a reduction.

    Attributes:
        name, reduction: which.
        auc: by variation, the test AUC of each seed; of those that have all.
        settings: by variation, its schedule.
    """

    def __init__(self, name: str, reduction: str, cells: list[dict]) -> None:
        self.name, self.reduction = name, reduction
        by: dict[str, dict[int, dict]] = {}
        for cell in cells:
            by.setdefault(cell["variation"], {})[cell["seed"]] = cell
        whole = {label: own for label, own in by.items() if set(own) == set(SEEDS)}
        self.auc = {
            label: np.array([own[seed]["test"][headline(name)]["auc"] for seed in SEEDS])
            for label, own in whole.items()
        }
        self.settings = {label: own[0]["schedule"] for label, own in whole.items()}

    def table(self) -> str:
        """A row a schedule: its AUC, its control's, and the differences, paired by seed."""
        lines = [
            "| schedule | AUC | its control | schedule minus control | schedule minus constant | "
            "control minus constant |",
            "|---|---|---|---|---|---|",
        ]
        constant = self.auc[CONSTANT]
        for kind in GAINED[self.name, self.reduction]:
            if f"control of {kind}" not in self.auc:
                continue
            own, yoked = self.auc[kind], self.auc[f"control of {kind}"]
            row = [f"`{self.settings[kind]}`", f"{own.mean():.4f}", f"{yoked.mean():.4f}"]
            for pair in (own - yoked, own - constant, yoked - constant):
                row.append(plus_minus(*with_interval(pair)))
            lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


def read(out: Path) -> list[Found]:
    """Of what has a constant and a control on all seeds."""
    found = []
    for name, reduction in GAINED:
        cells = cell_files.read(cell_files.path_of(out / "yoked", name, reduction))
        own = Found(name, reduction, list(cells.values()))
        if CONSTANT in own.auc and any(label.startswith("control") for label in own.auc):
            found.append(own)
    return found


def markdown(every: list[Found], before: str) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    words = first_words(before, __doc__, "\n\n## ")
    parts = [words]
    for found in every:
        parts.append(f"## {NAMES[found.name]}, {REDUCTION[found.reduction]}")
        parts.append(
            f"Test AUC over {len(SEEDS)} seeds, ± half the width of the 95 % interval of paired "
            f"differences. The constant, `{found.settings[CONSTANT]}`: "
            f"{found.auc[CONSTANT].mean():.4f}."
        )
        parts.append(found.table())
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv, __doc__, "yoked")
    well = True
    if not arguments.report:
        jobs = [(*shape, arguments) for shape in GAINED]
        well = share_out(train, jobs, arguments.processes)
    if every := read(arguments.out):
        write_page(arguments.out / "yoked.md", lambda before: markdown(every, before))
    sys.exit(not well)


if __name__ == "__main__":
    main()
