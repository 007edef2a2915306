"""Why a margin schedule wins or loses: what becomes of the gradient, and what depends on it.

    python experiments/gradient.py --data DATA

The lead: over all triplets, the mean loss has a gradient that fades as they become easy; over the
active ones it does not. A schedule that keeps triplets active would then help the first, and have
nothing to mend in the second. Adam divides a gradient by the root of the mean square of the last
thousand or so, which here is the whole run: a gradient that fades to a tenth moves the weights a
tenth as far. RMSprop looks back about ten steps and would undo that.

So, on Omniglot as in `compare.py`: three schedules (a small and the usual constant margin, DAMS as
published) and both reductions, and then one thing changed at a time; and margins from 0.002 on. The
seeds are those of the tuning, 100 and 101, none of which `compare.py` reports. Started again, it
goes on where it was.

*What came of it* (two seeds: directions, no intervals). Half of the lead held.

- As in the grid, over all triplets the gradient of a constant margin falls to a fiftieth; over the
  active ones it ends at a third to twice its length; DAMS holds it within a factor of two. On LFW,
  where four in five triplets at most become easy, it hardly fades
  (`experiments/results/schedules_lfw.png`).
- With a short memory the two reductions come closer: at μ = 0.02 the mean over active triplets
  leads by .013 with Adam and by .004 with RMSprop, at 0.2 by .009 and by .004. So more than half of
  what the mean over all triplets loses is that Adam's steps shrink with its gradient.
  (RMSprop's rate of 3e-4 is a guess, tuned for none of them.)
- But over all triplets DAMS does not lose its gain over a constant 0.2 with RMSprop, as the lead
  would have it: it has more. It is 0.02 that it does not beat there. Over the active triplets DAMS
  is below 0.02 under every change, in the mean of the seeds.
- Over the active triplets all margins from 0.002 to 0.05 are alike (.9725 to .9756), and larger
  ones worse; over all triplets the smallest are worst, for their gradient fades first.
- A small embedding widens the gap between the reductions, at 0.02 to .029. With a constant learning
  rate, and with K = 2, the order of the best and the worst is the same.

It took about forty minutes on two cores (AMD EPYC, jax 0.10.2) beside other work. No new rule
follows: what helped most, a small constant margin over the active triplets, is none.

Writes cells into `experiments/results/gradient`, and from them
`experiments/results/gradient.md` with its picture (`--report`: only that, in seconds).
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from compare import (
    CELLS,
    PUBLISHED,
    REDUCTIONS,
    TUNING_SEEDS,
    cell_path,
    open_dataset,
    pin,
    share_out,
    train_cell,
)
from matplotlib.figure import Figure

from margin_jax.plots import PALETTE

RESULTS = CELLS.parent
CHANGED = RESULTS / "gradient"
SEEDS = TUNING_SEEDS
SCHEDULES = ("constant:0.02", "constant:0.2", PUBLISHED)
VARIATIONS: dict[str, dict] = {
    "as in the grid": {},
    "rmsprop, short memory": {"optimizer": "rmsprop", "learning_rate": 3e-4},
    "embeddings of 16 numbers": {"embedding_size": 16},
    "K = 2, P = 32": {"images_per_identity": 2, "identities_per_batch": 32},
    "constant learning rate 0.001": {"learning_rate": 1e-3, "learning_rate_schedule": "constant"},
}
SWEEP = (
    *(f"constant:{margin}" for margin in (0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 0.5)),
    "exponential:margin=0.2,margin_end=0.01",
)
SHORT = {PUBLISHED: "dams as published"}


def plan(reduction: str) -> Iterator[tuple[str, str, int]]:
    """Every cell of a reduction: variation, schedule, seed."""
    yield from itertools.product(["as in the grid"], SWEEP, SEEDS)
    yield from itertools.product(VARIATIONS, SCHEDULES, SEEDS)


def place(folder: Path, variation: str, reduction: str, schedule: str, seed: int) -> Path:
    """Where a cell is: those that the grid has trained for its tuning are there."""
    of_grid = cell_path(CELLS, "omniglot", reduction, schedule, seed)
    if not VARIATIONS[variation] and of_grid.exists():
        return of_grid
    return cell_path(folder, re.sub(r"\W+", "-", variation), reduction, schedule, seed)


def train(reduction: str, arguments: argparse.Namespace, core: int | None) -> None:
    """All cells of a reduction, in one process."""
    pin(core)
    options, data = open_dataset("omniglot", arguments.data)
    for variation, schedule, seed in plan(reduction):
        changed = {"reduction": reduction, "schedule": schedule, "seed": seed}
        cell = train_cell(
            place(CHANGED, variation, reduction, schedule, seed),
            {**options, **changed, **VARIATIONS[variation]},
            data,
            arguments.scratch,
            {"dataset": "omniglot", "variation": variation},
        )
        auc = cell["test"]["all_pairs"]["auc"]
        print(f"{variation} {reduction} {schedule} seed {seed}: test {auc:.4f}", flush=True)


def read(folder: Path) -> dict[tuple[str, str, str], list[dict]]:
    """By variation, reduction and schedule: the cells of those seeds that are there."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for reduction in REDUCTIONS:
        for variation, schedule, seed in dict.fromkeys(plan(reduction)):
            path = place(folder, variation, reduction, schedule, seed)
            if path.exists():
                cell = json.loads(path.read_text(encoding="utf-8"))
                found.setdefault((variation, reduction, schedule), []).append(cell)
    return found


def aucs(cells: list[dict]) -> np.ndarray:
    return np.array([cell["test"]["all_pairs"]["auc"] for cell in cells])


def variations_table(found: dict) -> str:
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


def sweep_table(found: dict) -> str:
    """Test AUC of margins from nearly 0 on."""
    lines = [
        f"| schedule | {' | '.join(f'{r}: AUC by seed, mean' for r in REDUCTIONS)} |",
        "|---|---|---|",
    ]
    for schedule in SWEEP:
        row = [schedule]
        for reduction in REDUCTIONS:
            values = aucs(found.get(("as in the grid", reduction, schedule), []))
            shown = ", ".join(f"{value:.4f}" for value in values)
            row.append(f"{shown}: **{values.mean():.4f}**" if len(values) else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def plot(found: dict) -> Figure:
    """Gradient by epoch; test AUC against a constant margin."""
    figure = Figure(figsize=(10, 4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for style, reduction in zip(("-", "--"), REDUCTIONS, strict=True):
        for colour, schedule in zip(PALETTE, SCHEDULES, strict=False):
            cells = found.get(("as in the grid", reduction, schedule), [])
            if cells:
                norm = np.mean([cell["epochs"]["gradient_norm"] for cell in cells], axis=0)
                label = f"{SHORT.get(schedule, schedule)}, {reduction}"
                left.plot(1 + np.arange(len(norm)), norm, style, color=colour, label=label)
    left.set_yscale("log")
    left.set_ylim(bottom=1e-5)  # room for the legend
    left.set_xlabel("epoch")
    left.set_ylabel("length of the gradient")
    left.set_title("Over all triplets the gradient fades", fontsize="medium")
    left.legend(fontsize="x-small")
    for colour, reduction in zip(PALETTE, REDUCTIONS, strict=False):
        margins, means, low, high = [], [], [], []
        for schedule in SWEEP:
            values = aucs(found.get(("as in the grid", reduction, schedule), []))
            name, _, margin = schedule.partition(":")
            if len(values) and name == "constant":
                margins.append(float(margin))
                means.append(values.mean())
                low.append(values.min())
                high.append(values.max())
        right.plot(margins, means, "o-", color=colour, label=reduction)
        right.fill_between(margins, low, high, color=colour, alpha=0.15, lw=0)
    right.set_xscale("log")
    right.set_xlabel("constant margin μ")
    right.set_ylabel("test AUC, mean and range of the seeds")
    right.set_title("What a constant margin is worth", fontsize="medium")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the images")
    parser.add_argument("--scratch", type=Path, default=Path("runs/gradient"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="on a GPU: 1")
    parser.add_argument("--report", action="store_true", help="only from the cells that are there")
    arguments = parser.parse_args(argv)
    arguments.data, arguments.scratch = arguments.data.absolute(), arguments.scratch.absolute()
    well = True
    if not arguments.report:
        jobs = [(reduction, arguments) for reduction in REDUCTIONS]
        well = share_out(train, jobs, arguments.processes)
    found = read(CHANGED)
    title, _, text = __doc__.partition("\n\n")
    parts = [f"# {title}", text.strip(), "![Gradient and margin](gradient.png)"]
    parts += ["## One thing changed", variations_table(found)]
    parts += ["## Constant margins from nearly 0 on", sweep_table(found)]
    (RESULTS / "gradient.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot(found).savefig(RESULTS / "gradient.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
