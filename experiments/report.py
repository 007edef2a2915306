"""From the cells of `compare.py` to tables and pictures, in seconds.

    python experiments/report.py

Reads `experiments/results/cells` and writes `experiments/results/schedules.md` with its pictures.
Every cell that is there is in it.
"""

import argparse
import collections
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from compare import CANDIDATES, CELLS, FIXED, NAMES, TUNING_SEEDS, options_of, tuned
from matplotlib.figure import Figure

import margin_jax as mj
from margin_jax.plots import PALETTE, tidy

RESULTS = CELLS.parent
KINDS = {"all_pairs": "all pairs", "pairs": "even pairs", "published_pairs": "1,000 pairs"}
# Where a few identities have most of the same pairs; even pairs then tell something else.
UNEVEN = {"lfw"}
REDUCTION = {"mean_active": "mean over active triplets", "mean": "mean over all triplets"}


class Shape:
    """The cells of one data set and one reduction.

    Attributes:
        name, reduction: which.
        cells: all of them, as read.
        chosen: by what is compared, the text of its schedule.
        unfinished: what was tuned, and trained on fewer than two reported seeds.
        seeds: those that everything compared was trained on.
        by_place: the reported cells by schedule and seed.
        comparisons: by kind of pairs, an `mj.Comparison` over those seeds.
    """

    def __init__(self, name: str, reduction: str, cells: list[dict]) -> None:
        self.name, self.reduction, self.cells = name, reduction, cells
        settings = {frozenset(shared_options(cell["command"])) for cell in cells}
        if len(settings) > 1:
            differing = set.union(*map(set, settings)) - set.intersection(*map(set, settings))
            raise ValueError(
                f"the cells of {name}, {reduction}, must differ in schedule and seed alone; they "
                f"differ in {', '.join(sorted(differing))}"
            )
        reported = [cell for cell in cells if cell["seed"] not in TUNING_SEEDS]
        trained = {cell["schedule"] for cell in reported}
        self.chosen = {}
        for family, candidates in CANDIDATES.items():
            own = [cell for cell in cells if cell["schedule"] in candidates]
            tuning = [cell for cell in own if cell["seed"] in TUNING_SEEDS]
            if len(tuning) == len(candidates) * len(TUNING_SEEDS) and tuned(own) in trained:
                self.chosen[family] = tuned(own)
        self.chosen |= {label: own for label, own in FIXED.items() if own in trained}
        counts = collections.Counter(cell["schedule"] for cell in reported)
        self.unfinished = [name for name, own in self.chosen.items() if counts[own] < 2]
        for label in self.unfinished:
            del self.chosen[label]
        self.by_place = {(cell["schedule"], cell["seed"]): cell for cell in reported}
        self.seeds = sorted(
            seed
            for seed in {cell["seed"] for cell in reported}
            if all((schedule, seed) in self.by_place for schedule in self.chosen.values())
        )
        histories = {
            label: {seed: records(self.by_place[schedule, seed]) for seed in self.seeds}
            for label, schedule in self.chosen.items()
        }
        self.comparisons = {
            kind: mj.Comparison(
                tuple(self.chosen),
                tuple(self.seeds),
                {
                    label: {
                        s: {"test": self.by_place[schedule, s]["test"][kind]} for s in self.seeds
                    }
                    for label, schedule in self.chosen.items()
                },
                histories,
            )
            for kind in KINDS
        }

    @property
    def data(self) -> str:
        """Of which data set, as one says it."""
        return NAMES.get(self.name, self.name)

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{self.data}, {REDUCTION[self.reduction]}"

    @property
    def complete(self) -> bool:
        """Whether there is something to compare with the tuned constant, over several seeds."""
        return "constant" in self.chosen and len(self.chosen) > 1 and len(self.seeds) > 1

    def moved(self, label: str) -> bool:
        """Whether the margin had become another by the epoch that was chosen, with any seed."""
        cells = [self.by_place[self.chosen[label], seed] for seed in self.seeds]
        return any(len(set(cell["epochs"]["margin"][: cell["best_epoch"]])) > 1 for cell in cells)

    def ranks(self, labels: Iterable[str]) -> dict[str, float]:
        """The place of each by mean AUC of all pairs, 1 the best; ties share."""
        means = {
            label: self.comparisons["all_pairs"].summary(label, "auc").mean for label in labels
        }
        return {
            label: 1 + sum(m > mean for m in means.values()) + (ties(means, mean) - 1) / 2
            for label, mean in means.items()
        }


def shared_options(command: str) -> list[str]:
    """What all cells of a shape must have in common."""
    mine = ("--schedule=", "--seed=")
    return [option for option in options_of(command) if not option.startswith(mine)]


def ties(means: dict[str, float], mean: float) -> int:
    return sum(m == mean for m in means.values())


def records(cell: dict) -> list[dict]:
    """The epochs of a cell as a run's history has them."""
    columns = cell["epochs"]
    rows = zip(*columns.values(), strict=True)
    return [
        {"epoch": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, start=1)
    ]


def read_shapes(folder: Path) -> list[Shape]:
    """Everything that is in a folder of cells, in the order of their names."""
    shapes = []
    for place in sorted(folder.glob("*/*")):
        cells = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(place.glob("*.json"))]
        if cells:
            shapes.append(Shape(place.parent.name, place.name, cells))
    return shapes


def setting(schedule: str) -> str:
    """The parameters of a schedule in short."""
    return (
        schedule.partition(":")[2]
        .replace("margin=", "μ=")
        .replace("margin_end=", "to ")
        .replace(",", ", ")
    )


def plus_minus(mean: float, interval: float, sign: str = "") -> str:
    """In bold, where a difference exceeds its interval."""
    text = f"{mean:{sign}.4f} ± {interval:.4f}"
    return f"**{text}**" if sign and abs(mean) > interval else text


def table(shape: Shape) -> str:
    """Every schedule of a shape: what it was tuned to, its figures, its differences."""
    lines = [
        "| schedule | tuned to | margin | easy at the end | AUC | difference | EER | difference "
        "| AUC difference, even pairs | 1,000 pairs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    every = shape.comparisons["all_pairs"]
    for label, schedule in shape.chosen.items():
        ends = [every.histories[label][seed][-1] for seed in shape.seeds]
        start = every.histories[label][shape.seeds[0]][0]["margin"]
        end = np.mean([record["margin"] for record in ends])
        easy = np.mean([record["easy_fraction"] for record in ends])
        row = [label, setting(schedule), f"{start:.2f} → {end:.2f}", f"{easy:.1%}"]
        is_baseline = label == every.baseline
        for figure in ("auc", "eer"):
            summary = every.summary(label, figure)
            row.append(plus_minus(summary.mean, summary.interval))
            difference = plus_minus(summary.difference, summary.difference_interval, "+")
            row.append("–" if is_baseline else difference)
        for kind in ("pairs", "published_pairs"):
            summary = shape.comparisons[kind].summary(label, "auc")
            difference = plus_minus(summary.difference, summary.difference_interval, "+")
            row.append("–" if is_baseline else difference)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def short_tables(shapes: Iterable[Shape]) -> str:
    """One for each reduction."""
    by_reduction: dict[str, list[Shape]] = {}
    for shape in shapes:
        if shape.complete:
            by_reduction.setdefault(shape.reduction, []).append(shape)
    return "\n\n".join(
        f"{REDUCTION[reduction].capitalize()}:\n\n{short_table(own)}"
        for reduction, own in by_reduction.items()
    )


def short_table(shapes: list[Shape]) -> str:
    """A row a schedule: its difference in AUC to the tuned constant on each set, and its rank."""
    labels = dict.fromkeys(label for shape in shapes for label in shape.chosen)
    everywhere = [label for label in labels if all(label in shape.chosen for shape in shapes)]
    ranks = [shape.ranks(everywhere) for shape in shapes]
    columns = [
        (shape, kind)
        for shape in shapes
        for kind in ("all_pairs", "pairs")
        if kind == "all_pairs" or shape.name in UNEVEN
    ]
    titles = [
        shape.data + ("" if kind == "all_pairs" else f", {KINDS[kind]}") for shape, kind in columns
    ]
    lines = [
        f"| schedule | {' | '.join(titles)} | mean rank |",
        f"|---|{'---|' * (len(titles) + 1)}",
    ]
    for label in labels:
        row = [label]
        for shape, kind in columns:
            if label not in shape.chosen:
                row.append("")
                continue
            summary = shape.comparisons[kind].summary(label, "auc")
            difference = plus_minus(summary.difference, summary.difference_interval, "+")
            mark = "" if shape.moved(label) else " †"
            row.append(f"{summary.mean:.4f}" if label == "constant" else difference + mark)
        own = [places[label] for places in ranks if label in places]
        row.append(f"{np.mean(own):.1f}" if own else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def tuning_table(shape: Shape) -> str:
    """The mean validation AUC of every candidate over the tuning seeds."""
    lines = ["| schedule | candidates, and their validation AUC |", "|---|---|"]
    for family, candidates in CANDIDATES.items():
        shown = []
        for schedule in candidates:
            values = [
                cell["validation"]["auc"]
                for cell in shape.cells
                if cell["schedule"] == schedule and cell["seed"] in TUNING_SEEDS
            ]
            if values:
                text = f"{setting(schedule)}: {np.mean(values):.4f}"
                shown.append(f"**{text}**" if shape.chosen.get(family) == schedule else text)
        if shown:
            lines.append(f"| {family} | {'; '.join(shown)} |")
    return "\n".join(lines)


def cells_table(shape: Shape) -> str:
    """The test AUC over all pairs of every reported cell."""
    values = shape.comparisons["all_pairs"]
    head = " | ".join(f"seed {seed}" for seed in shape.seeds)
    lines = [f"| schedule | {head} |", f"|---|{'---|' * len(shape.seeds)}"]
    for label in shape.chosen:
        row = " | ".join(f"{value:.4f}" for value in values.values(label, "auc"))
        lines.append(f"| {label} | {row} |")
    return "\n".join(lines)


def plot_differences(shapes: list[Shape]) -> Figure:
    """Paired differences in AUC to the tuned constant with their 95 % intervals."""
    labels = dict.fromkeys(label for shape in shapes for label in shape.chosen)
    del labels["constant"]
    points: dict[str, list[tuple[float, float, float]]] = {label: [] for label in labels}
    ticks, row = [], 0
    for shape in shapes:
        first = row
        for label in labels:
            if label in shape.chosen:
                summary = shape.comparisons["all_pairs"].summary(label, "auc")
                points[label].append((-row, summary.difference, summary.difference_interval))
                row += 1
        ticks.append(-(first + row - 1) / 2)
        row += 1
    figure = Figure(figsize=(8, 1.1 + 0.2 * row), dpi=150, layout="constrained")
    axes = figure.subplots()
    for look, (label, own) in zip(looks("osD"), points.items(), strict=False):
        at, means, widths = zip(*own, strict=True)
        marker, colour = look
        axes.errorbar(means, at, xerr=widths, fmt=marker, color=colour, ms=4, lw=1.5, label=label)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(ticks, [shape.title.replace(", ", "\n") for shape in shapes])
    axes.set_xlabel("test AUC minus the tuned constant's, paired by seed, with 95 % interval")
    tidy(axes, "x")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def looks(styles: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A style and a colour for each schedule; three styles and seven colours make 21 of them."""
    return zip(itertools.cycle(styles), itertools.cycle(PALETTE), strict=False)


def plot_curves(shapes: list[Shape]) -> Figure:
    """Margin, easy share, gradient and validation AUC by epoch, means over seeds; one data set."""
    shown = (
        ("margin", "margin μ", "linear"),
        ("easy_fraction", "easy triplets", "linear"),
        ("gradient_norm", "length of the gradient", "log"),
        ("validation_auc", "validation AUC", "linear"),
    )
    figure = Figure(figsize=(4.6 * len(shapes), 10), dpi=130, layout="constrained")
    grid = figure.subplots(len(shown), len(shapes), sharex=True, sharey="row", squeeze=False)
    settled: list[float] = []
    labels = dict.fromkeys(label for shape in shapes for label in shape.chosen)
    styles = dict(zip(labels, looks(("-", "--", ":")), strict=False))
    for column, shape in enumerate(shapes):
        for row, (name, title, scale) in enumerate(shown):
            axes = grid[row, column]
            histories = shape.comparisons["all_pairs"].histories
            for label, runs in histories.items():
                style, colour = styles[label]
                curves = np.array([[record[name] for record in run] for run in runs.values()])
                epochs = 1 + np.arange(curves.shape[1])
                axes.plot(epochs, curves.mean(axis=0), style, color=colour, lw=1.6)
                if name == "validation_auc":  # of all but the first epochs, which are alike
                    settled += curves.mean(axis=0)[len(epochs) // 6 :].tolist()
            axes.set_yscale(scale)
            tidy(axes)
            if column == 0:
                axes.set_ylabel(title)
        grid[0, column].set_title(shape.title, fontsize="medium")
        grid[-1, column].set_xlabel("epoch")
    grid[-1, 0].set_ylim(min(settled) - 0.005, max(settled) + 0.005)
    lines = [grid[0, 0].plot([], [], style, color=colour)[0] for style, colour in styles.values()]
    figure.legend(lines, styles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def markdown(shapes: list[Shape]) -> str:
    """The whole report."""
    complete = [shape for shape in shapes if shape.complete]
    compared = sum(len(shape.chosen) - 1 for shape in complete)
    seconds = sum(cell["seconds"] for shape in shapes for cell in shape.cells)
    machines = sorted({cell["machine"] for shape in shapes for cell in shape.cells})
    count = sum(len(shape.cells) for shape in shapes)
    parts = [
        "# Margin schedules, each tuned alike",
        "Written by `python experiments/report.py` from "
        f"`experiments/results/cells`: {count} cells, {seconds / 3600:.1f} hours on "
        f"{', '.join(machines)} each. How they were made, and what makes the comparison fair, "
        "is in `experiments/compare.py`.",
        "Test figures are of the best epoch by validation AUC, as mean ± half the 95 % interval "
        "(Student's t) over the reported seeds; differences are to the tuned constant, paired by "
        "seed, and **bold** where they exceed their interval. "
        f"Of {compared} differences in a column about {0.05 * compared:.0f} would do so by chance. "
        "*All pairs* "
        "are those of every test image with every other; *even pairs* give no identity more than "
        "ten times the average; *1,000 pairs* are as published.",
        "## In short",
        short_tables(complete),
        "AUC of all pairs, and of even ones where few identities have most of the same pairs: the "
        "tuned constant's own, and the others' difference to it. The rank is by all pairs, among "
        "what was trained on every data set. †: the margin had not moved by the best epoch, so two "
        "constants are compared.",
        "![Differences to the tuned constant](schedules_differences.png)",
    ]
    for shape in shapes:
        parts.append(f"## {shape.title}")
        if not shape.complete:
            parts.append(f"Not finished: {len(shape.cells)} cells so far.")
            continue
        command = shape.cells[0]["command"]
        parts += [
            f"Seeds {', '.join(map(str, shape.seeds))}. All cells as this one, run in the data's "
            f"folder, but for schedule and seed:\n\n```bash\n{command}\n```",
            *([f"Not finished: {', '.join(shape.unfinished)}."] if shape.unfinished else []),
            table(shape),
            "Test AUC of all pairs, cell by cell:",
            cells_table(shape),
            f"Tuning, mean over the seeds {' and '.join(map(str, TUNING_SEEDS))}:",
            tuning_table(shape),
        ]
    for name in dict.fromkeys(shape.name for shape in complete):
        parts.append(f"![{NAMES.get(name, name)} by epoch](schedules_{name}.png)")
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    try:
        shapes = read_shapes(arguments.cells)
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    complete = [shape for shape in shapes if shape.complete]
    if not complete:
        parser.error(f"{arguments.cells} holds no tuned constant with another schedule beside it")
    (arguments.out / "schedules.md").write_text(markdown(shapes), encoding="utf-8")
    plot_differences(complete).savefig(arguments.out / "schedules_differences.png")
    for name in dict.fromkeys(shape.name for shape in complete):
        own = [shape for shape in complete if shape.name == name]
        plot_curves(own).savefig(arguments.out / f"schedules_{name}.png")
    print(short_tables(complete))


if __name__ == "__main__":
    main()
