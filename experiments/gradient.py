"""Why a margin schedule wins or loses: how the gradient changes, and what depends on it.

    python experiments/gradient.py --data DATA

The hypothesis: the gradient of the mean over all triplets fades as triplets become easy; that of
the mean over the active ones does not. A schedule that keeps triplets active would then help in the
first case, and not in the second. Adam divides the gradient by the root mean square of about the
last thousand steps, which here is the whole run: a gradient that fades to a tenth moves the weights
a tenth as far. RMSprop looks back about ten steps and would compensate for the fading.

The runs are like those of `compare.py`: three schedules (a small and the usual constant margin,
DAMS as published) with both reductions, also with one thing changed at a time; constant margins
from 0.002 to 1; and DAMS with a threshold of 80 % from three starting margins. The seeds are the
tuning seeds, 100 and 101, which `compare.py` does not report. An interrupted study continues when
it is started again.

All cells take two hours of one core on Omniglot and five on LFW, of which one is for the wide
network (AMD EPYCs of two kinds, jax 0.10.2), half of that on two.

Writes cells into `experiments/results/gradient`, and from them and those of the grid the plots and
tables of `experiments/results/gradient.md` (with `--report` only these, in seconds; `--out` chooses
another folder). The findings above them are written by hand and are kept.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cell_files
import numpy as np
from compare import open_dataset, share_out, train_cell
from grid import FALLING, NAMES, PUBLISHED, REDUCTIONS, TUNING_SEEDS
from matplotlib.figure import Figure
from shapes import KINDS, headline
from study import Some, first_words, parse, write_page

from margin_jax.plots.figure import EpochLocator
from margin_jax.plots.style import PALETTE, show_hidden, tidy

NAMED = {name: NAMES[name] for name in ("omniglot", "lfw")}
SEEDS = TUNING_SEEDS
SCHEDULES = ("constant:0.02", "constant:0.2", PUBLISHED)
VARIATIONS: dict[str, dict] = {
    "as in the grid": {},
    "rmsprop, short memory": {"optimizer": "rmsprop", "learning_rate": 3e-4},
    "embeddings of 16 numbers": {"embedding_size": 16},
    "K = 2, P = 32": {"images_per_identity": 2, "identities_per_batch": 32},
    "constant learning rate 0.001": {"learning_rate": 1e-3, "learning_rate_schedule": "constant"},
    "twice as long": {"epochs": 80},
    "the network at its full width": {"width": 1.0},  # twice Omniglot's, four times LFW's
}
SWEEP = (
    *(f"constant:{margin}" for margin in (0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 0.5, 1)),
    FALLING,
    *(f"dams:margin={margin},threshold=0.8,increase=0.05" for margin in (0.05, 0.2, 0.5)),
)
SHORT = {PUBLISHED: "dams as published"}


def plan() -> Iterator[tuple[str, str, int]]:
    """Every cell of a data set and a reduction: variation, schedule, seed."""
    yield from itertools.product(VARIATIONS, SCHEDULES, SEEDS)
    yield from itertools.product(["as in the grid"], SWEEP, SEEDS)


def train(name: str, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction."""
    options, data = open_dataset(name, arguments.data)
    of_grid = cell_files.path_of(arguments.out / "cells", name, reduction)
    own = cell_files.path_of(arguments.out / "gradient", name, reduction)
    tuned = cell_files.read(of_grid)  # those that the grid has trained for its tuning are there
    for variation, schedule, seed in dict.fromkeys(plan()):
        changed = {"reduction": reduction, "schedule": schedule, "seed": seed}
        there = not VARIATIONS[variation] and cell_files.key(schedule, seed) in tuned
        train_cell(
            of_grid if there else own,
            {**options, **changed, **VARIATIONS[variation]},
            data,
            arguments.scratch,
            {"dataset": name} if there else {"dataset": name, "variation": variation},
        )


# By variation, reduction and schedule.
Found = dict[tuple[str, str, str], list[dict]]


def read(folder: Path, name: str) -> Found:
    """The cells of a data set, of those seeds that are there."""
    found: Found = {}
    for reduction in REDUCTIONS:
        of_grid = cell_files.read(cell_files.path_of(folder / "cells", name, reduction))
        own = cell_files.read(cell_files.path_of(folder / "gradient", name, reduction))
        for variation, schedule, seed in dict.fromkeys(plan()):
            cell = own.get(cell_files.key(schedule, seed, variation))
            if not VARIATIONS[variation]:
                cell = of_grid.get(cell_files.key(schedule, seed), cell)
            if cell is not None:
                found.setdefault((variation, reduction, schedule), []).append(cell)
    return found


def aucs(cells: list[dict]) -> np.ndarray:
    """Of the pairs that the data set is judged by."""
    return np.array([cell["test"][headline(cell["dataset"])]["auc"] for cell in cells])


def variations_table(found: Found) -> str:
    """Test AUC of every schedule under every change, and how far the gradient fell."""
    lines = [
        "| changed | reduction | schedule | AUC, mean of the seeds | minus constant 0.2, by seed "
        "| gradient, last epoch / second | easy at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for variation, reduction, schedule in itertools.product(VARIATIONS, REDUCTIONS, SCHEDULES):
        cells = found.get((variation, reduction, schedule), [])
        base = {c["seed"]: c for c in found.get((variation, reduction, "constant:0.2"), [])}
        if not cells:
            continue
        gaps = [
            f"{aucs([cell])[0] - aucs([base[cell['seed']]])[0]:+.4f}"
            for cell in cells
            if cell["seed"] in base and schedule != "constant:0.2"
        ]
        norms = [cell["epochs"]["gradient_norm"] for cell in cells]
        fall = np.mean([norm[-1] / norm[1] for norm in norms])
        easy = np.mean([cell["epochs"]["easy_fraction"][-1] for cell in cells])
        lines.append(
            f"| {variation} | {reduction} | {SHORT.get(schedule, schedule)} | "
            f"{aucs(cells).mean():.4f} | {', '.join(gaps) or '–'} | {fall:.3f} | {easy:.2%} |"
        )
    return "\n".join(lines)


def sweep_table(found: Found) -> str:
    """Test AUC of margins from nearly 0 on, and of DAMS from several starts."""
    lines = [
        f"| schedule | {' | '.join(f'{r}: AUC by seed, mean' for r in REDUCTIONS)} |",
        "|---|---|---|",
    ]
    for schedule in SWEEP:
        row = []
        for reduction in REDUCTIONS:
            values = aucs(found.get(("as in the grid", reduction, schedule), []))
            shown = ", ".join(f"{value:.4f}" for value in values)
            row.append(f"{shown}: **{values.mean():.4f}**" if len(values) else "")
        if any(row):
            lines.append(f"| {' | '.join([schedule, *row])} |")
    return "\n".join(lines)


def plot(by_name: dict[str, Found]) -> Figure:
    """A row a data set: gradient by epoch; test AUC against a constant margin."""
    figure = Figure(figsize=(10, 0.6 + 3.4 * len(by_name)), dpi=130, layout="constrained")
    grid = figure.subplots(len(by_name), 2, squeeze=False, sharex="col")
    for (left, right), (name, found) in zip(grid, by_name.items(), strict=True):
        left.set_yscale("log")
        left.margins(x=0)
        for style, reduction in zip(("-", "--"), REDUCTIONS, strict=True):
            for colour, schedule in zip(PALETTE, SCHEDULES, strict=False):
                cells = found.get(("as in the grid", reduction, schedule), [])
                if cells:
                    norm = np.mean([cell["epochs"]["gradient_norm"] for cell in cells], axis=0)
                    label = f"{SHORT.get(schedule, schedule)}, {reduction}"
                    left.plot(1 + np.arange(len(norm)), norm, style, color=colour, label=label)
        for colour, reduction in zip(PALETTE, REDUCTIONS, strict=False):
            for style, kind in (("o-", "constant"), ("s--", "dams")):
                margins, values = [], []
                for schedule in SWEEP:
                    own = aucs(found.get(("as in the grid", reduction, schedule), []))
                    if len(own) and schedule.startswith(kind):
                        margins.append(float(re.findall(r"[\d.]+", schedule)[0]))
                        values.append((own.mean(), own.min(), own.max()))
                means, low, high = np.reshape(values, (-1, 3)).T
                label = reduction if kind == "constant" else f"{reduction}, DAMS from there"
                right.plot(margins, means, style, color=colour, label=label)
                if kind == "constant":
                    right.fill_between(margins, low, high, color=colour, alpha=0.15, lw=0)
        if left is not grid[0, 0]:
            left.sharey(grid[0, 0])
        left.set_ylabel(f"{NAMED[name]}\nlength of the gradient")
        right.set_ylabel("test AUC, mean and range")
        tidy(left)
        tidy(right)
    grid[0, 1].set_xscale("log")
    grid[0, 0].set_title("What becomes of the gradient", fontsize="medium")
    grid[0, 1].set_title("A constant margin, and DAMS (80 %) that begins at it", fontsize="medium")
    grid[-1, 0].set_xlabel("epoch")
    grid[-1, 1].set_xlabel("margin μ, or its start")
    for axes in grid[:, 0]:
        axes.xaxis.set_major_locator(EpochLocator())
        show_hidden(axes)
    for axes, side, columns in ((grid[0, 0], "left", 2), (grid[0, 1], "right", 1)):
        handles, names = axes.get_legend_handles_labels()
        place = {"loc": f"outside lower {side}", "ncols": columns}
        figure.legend(handles, names, **place, frameon=False, fontsize="small")
    return figure


def markdown(by_name: dict[str, Found], before: str) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    words = first_words(before, __doc__)
    parts = [words, "![Gradient and margin](gradient.png)"]
    for name, found in by_name.items():
        parts += [f"## {NAMED[name]}: as in the grid, and changed"]
        parts += [f"AUC of {KINDS[headline(name)]}.", variations_table(found)]
        parts += [f"## {NAMED[name]}: constant margins, and starts of DAMS", sweep_table(found)]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv, __doc__, "gradient", datasets=Some(NAMED))
    well = True
    if not arguments.report:
        jobs = [(*shape, arguments) for shape in itertools.product(arguments.datasets, REDUCTIONS)]
        well = share_out(train, jobs, arguments.processes)
    by_name = {name: read(arguments.out, name) for name in NAMED}
    write_page(arguments.out / "gradient.md", lambda before: markdown(by_name, before))
    plot(by_name).savefig(arguments.out / "gradient.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
