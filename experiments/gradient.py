"""Why a margin schedule wins or loses: what becomes of the gradient, and what depends on it.

    python experiments/gradient.py --data DATA

The lead: over all triplets, the mean loss has a gradient that fades as they become easy; over the
active ones it does not. A schedule that keeps triplets active would then help the first, and have
nothing to mend in the second. Adam divides a gradient by the root of the mean square of the last
thousand or so, which here is the whole run: a gradient that fades to a tenth moves the weights a
tenth as far. RMSprop looks back about ten steps and would undo that.

So, as in `compare.py`: three schedules (a small and the usual constant margin, DAMS as published)
and both reductions, also with one thing changed at a time; constant margins from 0.002 to 1; and
DAMS with a threshold of 80 % from three starts. The seeds are those of the tuning, 100 and 101,
none of which `compare.py` reports. Started again, it goes on where it was.

*What came of it* (two seeds: directions, no intervals). Half of the lead held on Omniglot, and
little of it on LFW, which is judged by even pairs: of all same pairs of one of these two seeds, one
man has four fifths.

- On Omniglot, over all triplets the gradient of the constants 0.02 and 0.2 falls to a fiftieth;
  over the active ones it ends at .3 to 1.6 times its length (with twice the epochs mostly at
  nothing: no triplet is active); with DAMS at half and as it was, after a quarter at the least.
- With RMSprop's short memory, 0.02 over all triplets gains .011 and all but .004 of what it lacks
  to 0.02 over the active ones. At 0.2 the gap narrows because the mean over the active ones gets
  worse. (More than the memory is changed: momentum and a weight decay come with this rule, and its
  rate of 3e-4 is a guess, tuned for none of them.)
- But over all triplets DAMS does not lose its gain over a constant 0.2 with RMSprop, as the lead
  would have it: it has more. It is 0.02 that it does not beat there. Over the active triplets DAMS
  is below 0.02 under every change, in the mean of the seeds.
- Over the active triplets all margins from 0.002 to 0.05 are alike (.9725 to .9756), and larger
  ones worse; over all triplets the smallest are worst, for their gradient fades first.
- Under every change (RMSprop, embeddings of 16 numbers, K = 2, a constant learning rate, twice the
  epochs, a network twice as wide) 0.02 over the active triplets is the best of the six, and a
  constant over all triplets the worst. A small embedding widens the gap between the reductions, at
  0.02 to .029, the wide network halves it, to .007.
- On LFW over all triplets the gradient of 0.02 falls to a sixth and that of 0.2 to a third only;
  over the active ones both grow to three and a half times. At 0.02 the active ones are ahead under
  every change, by .001 to .021 in the mean of the seeds; at 0.2 it depends on the change, from .010
  ahead to .006 behind.
- There 0.2 is ahead of 0.02 under every change, in both reductions and with both seeds, by .020 to
  .056 and, with the network four times as wide, by .006 to .025; 0.2 or 0.5 is best, with less on
  either side: .72 at 0.002, .78 at 1, .80 to .81 at 0.2.
- With the narrower network DAMS as published hardly ever acts on LFW before validation is at its
  best, not even in eighty epochs, where 95 % of the triplets are easy from the 38th to 56th on and
  the best epoch is the 11th to 41st. What it does then does not help: at the last epoch its
  validation AUC is .006 to .009 below that of the constant 0.2, with both seeds and reductions.
- With the wide network, which does much better (.845 to .875), 95 % are easy from the 16th to 22nd
  epoch on, and it does act in time. It is behind the constant 0.2 all the same: by .003 and .019
  over the active triplets; over all of them by .010, and with the other seed .001 ahead. That
  although the gradient of the constants over all triplets now fades as on Omniglot, to a twentieth
  and a thirtieth, and DAMS keeps a third of its own.
- DAMS at 80 % against the constant that it starts from, on LFW: from 0.05 it gains .009 and .017
  (over all, active; three of four seeds), and so ends .006 below the best constant and .003 above
  it; from 0.2 .003 and .000; from 0.5 it acts too late. On Omniglot over all triplets it gains
  .003, .007 and .002, over active ones -.010, .000 and -.001.
- A margin that falls from 0.2 to 0.01 was picked here as a better rule, since it was the best or
  second best in all four columns beside eight constants, by the test AUC of all pairs (by even ones
  it is third in one). On the reported seeds (`schedules.md`) it is ahead of the tuned constant
  beyond its interval in one of eight comparisons, on Omniglot over all triplets, and behind in
  four, on LFW and on CUB, of which the latter had no part in this. So no better rule came of it.

All cells take two hours of one core on Omniglot and five on LFW, of which one is for the wide
network (AMD EPYCs of two kinds, jax 0.10.2), half of that on two.

Writes cells into `experiments/results/gradient`, and from them and the grid's
`experiments/results/gradient.md` with its picture (`--report`: only that, in seconds; `--out`:
elsewhere).
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
from compare import CELLS, cell_path, check_folders, open_dataset, share_out, train_cell
from grid import FALLING, NAMES, PUBLISHED, REDUCTIONS, TUNING_SEEDS
from matplotlib.figure import Figure
from shapes import KINDS, headline

from margin_jax.plots import PALETTE, tidy

RESULTS = CELLS.parent
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


def place(
    folder: Path, name: str, variation: str, reduction: str, schedule: str, seed: int
) -> Path:
    """Where a cell is: those that the grid has trained for its tuning are there."""
    of_grid = cell_path(folder / "cells", name, reduction, schedule, seed)
    if not VARIATIONS[variation] and of_grid.exists():
        return of_grid
    own = folder / "gradient" / name
    return cell_path(own, re.sub(r"\W+", "-", variation), reduction, schedule, seed)


def train(name: str, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction."""
    options, data = open_dataset(name, arguments.data)
    for variation, schedule, seed in dict.fromkeys(plan()):
        changed = {"reduction": reduction, "schedule": schedule, "seed": seed}
        cell = train_cell(
            place(arguments.out, name, variation, reduction, schedule, seed),
            {**options, **changed, **VARIATIONS[variation]},
            data,
            arguments.scratch,
            {"dataset": name, "variation": variation},
        )
        (auc,) = aucs([cell])
        print(f"{name} {variation} {reduction} {schedule} seed {seed}: test {auc:.4f}", flush=True)


# By variation, reduction and schedule.
Found = dict[tuple[str, str, str], list[dict]]


def read(folder: Path, name: str) -> Found:
    """The cells of a data set, of those seeds that are there."""
    found: Found = {}
    for reduction in REDUCTIONS:
        for variation, schedule, seed in dict.fromkeys(plan()):
            path = place(folder, name, variation, reduction, schedule, seed)
            if path.exists():
                cell = json.loads(path.read_text(encoding="utf-8"))
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
        left.set_yscale("log")
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
    grid[-1, 1].legend(loc="lower center", fontsize="small")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def markdown(by_name: dict[str, Found]) -> str:
    """What came of it, as this file says, and the figures."""
    title, _, text = __doc__.partition("\n\n")
    parts = [f"# {title}", text.strip(), "![Gradient and margin](gradient.png)"]
    for name, found in by_name.items():
        parts += [f"## {NAMED[name]}: as in the grid, and changed"]
        parts += [f"AUC of {KINDS[headline(name)]}.", variations_table(found)]
        parts += [f"## {NAMED[name]}: constant margins, and starts of DAMS", sweep_table(found)]
    return "\n\n".join(parts) + "\n"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the images")
    parser.add_argument("--datasets", default=",".join(NAMED), help=f"of {', '.join(NAMED)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="also where the grid's cells are")
    parser.add_argument("--scratch", type=Path, default=Path("runs/gradient"))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="on a GPU: 1")
    parser.add_argument("--report", action="store_true", help="only from the cells that are there")
    arguments = parser.parse_args(argv)
    arguments.datasets = arguments.datasets.split(",")
    for value in set(arguments.datasets) - set(NAMED):
        parser.error(f"--datasets must be some of {', '.join(NAMED)}; got {value}")
    if not arguments.report:
        check_folders(parser, arguments)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    well = True
    if not arguments.report:
        jobs = [(*shape, arguments) for shape in itertools.product(arguments.datasets, REDUCTIONS)]
        well = share_out(train, jobs, arguments.processes)
    by_name = {name: read(arguments.out, name) for name in NAMED}
    (arguments.out / "gradient.md").write_text(markdown(by_name), encoding="utf-8")
    plot(by_name).savefig(arguments.out / "gradient.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
