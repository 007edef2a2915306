"""From the cells of `compare.py` to tables and pictures, in seconds.

    python experiments/report.py

Reads `experiments/results/cells` and writes `experiments/results/schedules.md` with its pictures.
It includes every cell.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from compare import CELLS
from grid import CANDIDATES, NAMES, TUNING_SEEDS
from report_plots import plot_curves, plot_differences
from shapes import FIRST, KINDS, REDUCTION, UNEVEN, Shape, read_shapes

import margin_jax as mj
from margin_jax.runs.comparison import CHANCE, holm

RESULTS = CELLS.parent


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


def difference(comparison: mj.Comparison, label: str, figure: str) -> str:
    """To the tuned constant."""
    if label == comparison.baseline:
        return "–"
    summary = comparison.summary(label, figure)
    return plus_minus(summary.difference, summary.difference_interval, "+")


def table(shape: Shape) -> str:
    """Every schedule of a shape: what it was tuned to, its figures, its differences."""
    others = [f"AUC difference, {KINDS[kind]}" for kind in shape.kinds[1:]]
    columns = ("schedule", "tuned to", "margin", "easy at the end")
    figures = ("AUC", "difference", "EER", "difference", *others)
    lines = [f"| {' | '.join((*columns, *figures))} |", "|---|---|---|---|---|---|---|---|---|---|"]
    every = shape.judged
    for label, schedule in shape.chosen.items():
        ends = [every.histories[label][seed][-1] for seed in shape.seeds]
        start = every.histories[label][shape.seeds[0]][0]["margin"]
        end = np.mean([record["margin"] for record in ends])
        easy = np.mean([record["easy_fraction"] for record in ends])
        row = [label, setting(schedule), f"{start:.2f} → {end:.2f}", f"{easy:.1%}"]
        for figure in ("auc", "eer"):
            summary = every.summary(label, figure)
            row += [plus_minus(summary.mean, summary.interval), difference(every, label, figure)]
        row += [difference(shape.comparisons[kind], label, "auc") for kind in shape.kinds[1:]]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def short_tables(shapes: Iterable[Shape]) -> str:
    """One for each reduction, of small networks and of heads on features."""
    groups: dict[tuple[bool, str], list[Shape]] = {}
    for shape in shapes:
        if shape.complete:
            groups.setdefault((shape.of_features, shape.reduction), []).append(shape)
    return "\n\n".join(
        f"{'Heads on features' if features else 'Small networks'}, {REDUCTION[reduction]}:\n\n"
        f"{short_table(groups[features, reduction])}"
        for features, reduction in sorted(groups)
    )


def short_table(shapes: list[Shape]) -> str:
    """A row a schedule: its difference in AUC to the tuned constant on each set, and its rank."""
    labels = dict.fromkeys(label for shape in shapes for label in shape.chosen)
    everywhere = [label for label in labels if all(label in shape.chosen for shape in shapes)]
    ranks = [shape.ranks(everywhere) for shape in shapes]
    columns = [
        (shape, kind)
        for shape in shapes
        for kind in (shape.kinds[:2] if shape.name in UNEVEN else shape.kinds[:1])
    ]
    titles = [
        shape.data.removesuffix(", features") + (f", {KINDS[kind]}" if shape.name in UNEVEN else "")
        for shape, kind in columns
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
            elif label == "constant":
                row.append(f"{shape.comparisons[kind].summary(label, 'auc').mean:.4f}")
            else:
                moved = shape.moved(label)
                mark = "" if all(moved) else " (†)" if any(moved) else " †"
                row.append(difference(shape.comparisons[kind], label, "auc") + mark)
        own = [places[label] for places in ranks if label in places]
        row.append(f"{np.mean(own):.1f}" if own else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def multiplicity(shapes: Iterable[Shape]) -> str:
    """How many of the differences would look like one by chance, and which would not."""
    p_values, gain = {}, {}
    for shape in shapes:
        for label in shape.chosen:
            if shape.judged.differences(label, "auc").any():  # else the same run
                key = label, shape.data, REDUCTION[shape.reduction]
                found = shape.judged.summary(label, "auc")
                p_values[key], gain[key] = found.p_value, found.difference > 0
    outside = [key for key, p in p_values.items() if p < CHANCE]
    gains = sum(gain[key] for key in outside)
    left = {key: p for key, p in holm(p_values).items() if p < CHANCE}
    up, down = (
        "; ".join(f"{', '.join(key)} (p = {p:.2g})" for key, p in left.items() if gain[key] == sign)
        for sign in (True, False)
    )
    return (
        f"{len(outside)} of the {len(p_values)} differences in AUC exceed their interval, {gains} "
        f"gains and {len(outside) - gains} losses, where about {CHANCE * len(p_values):.1f} would "
        f"by chance. Corrected for their number (Holm), these gains remain: {up or 'none'}. These "
        f"losses: {down or 'none'}."
    )


def active_or_all(shapes: Iterable[Shape]) -> str:
    """The tuned constant over the active triplets minus that over all of them, by data set.

    "" where no data set has both.
    """
    by_name: dict[str, dict[str, mj.Comparison]] = {}
    for shape in shapes:
        by_name.setdefault(shape.data, {})[shape.reduction] = shape.judged
    found = []
    for name, own in by_name.items():
        if len({judged.seeds for judged in own.values()}) == 1 < len(own):
            reports = {reduction: judged.reports["constant"] for reduction, judged in own.items()}
            both = mj.Comparison(tuple(reports), own["mean"].seeds, reports, {}, baseline="mean")
            found.append(f"{name} {difference(both, 'mean_active', 'auc')}")
    if not found:
        return ""
    return f"The tuned constant over the active triplets, minus that over all: {'; '.join(found)}."


def for_other_images(shapes: Iterable[Shape]) -> str:
    """Which differences exceed an interval that allows for splits of the same images.

    "" where no data set draws its test anew.
    """
    left, factors = [], []
    for shape in shapes:
        if shape.widening is None:
            continue
        factors.append(shape.widening)
        for label in shape.chosen:
            found = shape.judged.summary(label, "auc")
            if abs(found.difference) > shape.widening * found.difference_interval:
                left.append(", ".join((label, shape.data, REDUCTION[shape.reduction])))
    if not factors:
        return ""
    return (
        f"Where every seed draws its test anew, an interval that allows for all splits being of "
        f"the same images (Nadeau and Bengio 2003) is {min(factors):.1f} to {max(factors):.1f} "
        f"times as wide, and exceeded by: {'; '.join(left) if left else 'none'}."
    )


def replaced(shape: Shape) -> str:
    """What was trained on reported seeds as well, and is of no choice now that there are more."""
    lines = ["| setting | seeds | AUC difference |", "|---|---|---|"]
    base = shape.chosen["constant"]
    others = {own for own, _ in shape.by_place} - set(shape.chosen.values())
    for own in sorted(others):
        seeds = [seed for seed in shape.seeds if (own, seed) in shape.by_place]
        if len(seeds) > 1:
            found = {
                label: {s: {"test": shape.by_place[text, s]["test"][shape.kinds[0]]} for s in seeds}
                for label, text in (("constant", base), (own, own))
            }
            judged = mj.Comparison(("constant", own), tuple(seeds), found, {}, baseline="constant")
            lines.append(f"| {own} | {len(seeds)} | {difference(judged, own, 'auc')} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def again(shape: Shape) -> str:
    """The differences of the seeds that were read first, and of those that were trained later.

    "" where all were trained before any was read.
    """
    if shape.of_features or len(set(shape.seeds) - set(FIRST)) < 2:
        return ""
    parts = [
        dataclasses.replace(shape.judged, seeds=tuple(seeds))
        for seeds in (
            [seed for seed in shape.seeds if seed in FIRST],
            [seed for seed in shape.seeds if seed not in FIRST],
        )
    ]
    titles = [f"AUC difference, seeds {part.seeds[0]} to {part.seeds[-1]}" for part in parts]
    lines = [f"| schedule | {' | '.join(titles)} |", "|---|---|---|"]
    for label in shape.chosen:
        row = [label, *(difference(part, label, "auc") for part in parts)]
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
    """The test AUC of every reported cell."""
    values = shape.judged
    head = " | ".join(f"seed {seed}" for seed in shape.seeds)
    lines = [f"| schedule | {head} |", f"|---|{'---|' * len(shape.seeds)}"]
    for label in shape.chosen:
        row = " | ".join(f"{value:.4f}" for value in values.values(label, "auc"))
        lines.append(f"| {label} | {row} |")
    return "\n".join(lines)


def over_identities(shape: Shape) -> str:
    """How wide the intervals of single tests are, by a bootstrap over their identities.

    "" where the cells do not have them.
    """
    kind, chosen = shape.kinds[0], shape.chosen["constant"]
    tests = [shape.by_place[chosen, seed]["test"][kind] for seed in shape.seeds]
    ends = [test["auc_interval"] for test in tests if "auc_interval" in test]
    if len(ends) < len(tests):
        return ""
    half = np.mean([(high - low) / 2 for low, high in ends])
    return (
        "That is over splits and initialisations. Over the identities of one test (a bootstrap), "
        f"the AUC of the constant has ± {half:.4f}, mean over the seeds."
    )


def markdown(shapes: list[Shape]) -> str:
    """The whole report."""
    complete = [shape for shape in shapes if shape.complete]
    seconds = sum(cell["seconds"] for shape in shapes for cell in shape.cells)
    machines = sorted({cell["machine"] for shape in shapes for cell in shape.cells})
    count = sum(len(shape.cells) for shape in shapes)
    parts = [
        "# Margin schedules, each tuned alike",
        "Written by `python experiments/report.py` from "
        f"`experiments/results/cells`: {count} cells, {seconds / 3600:.1f} hours on "
        f"{' or '.join(machines)}. How they were made, and what makes the comparison fair, "
        "is in `experiments/compare.py`.",
        "Test figures are of the best epoch by validation AUC, as mean ± half the 95 % interval "
        "(Student's t) over the reported seeds; differences are to the tuned constant, paired by "
        "seed, and **bold** where they exceed their interval. Two seeds split the same images "
        "anew, so an interval is over splits and initialisations, not over other data. *All pairs* "
        "are those of every test image with every other; *even pairs*, from which the best epoch "
        "is chosen too, give no identity more than ten times the average; *1,000 pairs* are as "
        "published.",
        "## In short",
        short_tables(complete),
        "AUC of all pairs (of even ones first, where one identity can have most of the same "
        "pairs): the tuned constant's own, and the others' difference to it. The rank is among "
        "what was trained on every data set of a table. †: the margin had not moved by the best "
        "epoch, so two constants are compared; (†): with some of the seeds.",
        multiplicity(complete),
        for_other_images(complete),
        active_or_all(complete),
        "![Differences to the tuned constant](schedules_differences.png)",
    ]
    for shape in shapes:
        parts.append(f"## {shape.title}")
        if not shape.complete:
            parts.append(f"Not finished: {len(shape.cells)} cells so far.")
            continue
        command = shape.cells[0]["command"]
        kind = KINDS[shape.kinds[0]]
        parts += [
            f"Seeds {', '.join(map(str, shape.seeds))}. All cells as this one, run in the data's "
            f"folder, but for schedule and seed:\n\n```bash\n{command}\n```",
            *([f"Not finished: {', '.join(shape.unfinished)}."] if shape.unfinished else []),
            *(
                [f"Left out, with cells of some schedules only: seeds {shape.left_out}."]
                if shape.left_out
                else []
            ),
            f"Figures are of {kind} where nothing else is said.",
            table(shape),
            over_identities(shape),
            *(
                [
                    "Seeds 5 to 9 were trained after 0 to 4 had been read (what else was known "
                    "when: *Looks* in `experiments/compare.py`):",
                    later,
                ]
                if (later := again(shape))
                else []
            ),
            "Test AUC, cell by cell:",
            cells_table(shape),
            *(
                ["Chosen while there were fewer settings, and trained on reported seeds:", earlier]
                if (earlier := replaced(shape))
                else []
            ),
            f"Tuning, {shape.settings} settings of each schedule, mean over the seeds "
            f"{' and '.join(map(str, TUNING_SEEDS))}:",
            tuning_table(shape),
        ]
    for name in dict.fromkeys(shape.name for shape in complete):
        parts.append(f"![{NAMES.get(name, name)} by epoch](schedules_{name}.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


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
    print(f"{short_tables(complete)}\n\n{multiplicity(complete)}")


if __name__ == "__main__":
    main()
