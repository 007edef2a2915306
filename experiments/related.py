"""The losses named beside the paper, and their well-known relatives, tuned alike and compared.

    python experiments/related.py --data DATA

DATA is the folder of `compare.py` (`omniglot`, `lfw`, `cub`) and two more files, features of
photographs by a network trained on ImageNet:

    margin-jax features PICTURES --encoder efficientnet_lite0 --weights WEIGHTS --image-size 128 \
        --out DATA/lfw_features.npz

and the same for CUB, in `cub_features.npz`. A cell is a dataset, a loss with its parameters, a
margin schedule and a seed. Everything else is as in the grid (`grid.py`): network, batches, epochs,
optimiser and its learning rate, which is not tuned for any loss.

As in `compare.py`, every kind has six settings (KINDS), each trained on the seeds 100 and 101; the
one with the best mean validation AUC is trained on the reported seeds, 0 to 4. Splits, order of
batches and pairs depend on the seed only, so differences are paired. Losses over triplets are means
over all of them; the classifiers have a proxy for each training identity.

An interrupted study continues when it is started again. `--report` only rewrites
`experiments/results/related.md` and its plot from the cells in `experiments/results/related`, in
seconds; the findings at its top are written by hand and are kept.
"""

import argparse
import itertools
import sys
from pathlib import Path

import cell_files
import numpy as np
from compare import open_dataset, share_out, train_cell, tuned
from grid import CANDIDATES, NAMES, TUNING_SEEDS
from matplotlib.figure import Figure
from shapes import KINDS as PAIRS
from shapes import headline, records
from study import Some, first_words, parse, write_page

import margin_jax as mj
from margin_jax.plots.style import PALETTE, tidy

SETS = ("lfw_features", "cub_features", "omniglot", "lfw", "cub")
SEEDS = range(5)
REDUCTION = "mean"
BASELINE = "triplet, constant margin"


def constants(loss: str, *margins: float) -> list[tuple[str, str]]:
    """A loss at several margins."""
    return [(loss, f"constant:{margin}") for margin in margins]


# By kind, six pairs of a loss and a schedule. Where the margin is no part of the loss it counts
# easy triplets alone, and stays at the usual one.
KINDS: dict[str, list[tuple[str, str]]] = {
    BASELINE: constants("triplet", 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "triplet, DAMS": [("triplet", schedule) for schedule in CANDIDATES["dams"]],
    # The same on embeddings of length 1, which all of these are.
    "Shadow = cosine triplet": constants("shadow", 0.005, 0.02, 0.05, 0.1, 0.2, 0.5),
    "Fisher triplet": [
        *constants("fisher_triplet:lam=0.01", 0.0078),
        *constants("fisher_triplet:lam=0.1", 0.1),
        *constants("fisher_triplet:lam=0.5", 0.25, 0.5),
        *constants("fisher_triplet:lam=1", 0.5, 1.5),
    ],
    "Fisher contrastive": [
        *constants("fisher_contrastive:lam=0.01", 0.0078),
        *constants("fisher_contrastive:lam=0.1", 0.2),
        *constants("fisher_contrastive:lam=0.5", 0.5, 1),
        *constants("fisher_contrastive:lam=1", 1, 2),
    ],
    "DBM": [
        *constants("balancing_margin:scale=16", 0.1, 0.3, 0.5),
        *constants("balancing_margin:scale=32", 0.1, 0.3, 0.5),
    ],
    "triplet transplant of DBM": [
        *constants("transplant:tau=0.25", 0.02, 0.05, 0.2),
        *constants("transplant:tau=1", 0.05, 0.2, 0.5),
    ],
    "ArcFace": [
        *constants("arcface:scale=16", 0.1, 0.3, 0.5),
        *constants("arcface:scale=32", 0.1, 0.3, 0.5),
    ],
    "CosFace": [
        *constants("cosface:scale=16", 0.1, 0.2, 0.35),
        *constants("cosface:scale=32", 0.1, 0.2, 0.35),
    ],
    "SupCon": [
        (f"supcon:temperature={temperature}", "constant:0.2")
        for temperature in (0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
    ],
    "dynamic soft margin": [
        (f"dynamic_soft_margin:momentum={momentum}", "constant:0.2")
        for momentum in (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    ],
}


def train(name: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set: tunes every kind, then trains the seeds."""
    options, data = open_dataset(name, arguments.data)
    path = cell_files.path_of(arguments.out / "related", name, REDUCTION)

    def cell(loss: str, schedule: str, seed: int) -> dict:
        changed = {"loss": loss, "schedule": schedule, "seed": seed, **reduction_of(loss)}
        told = {"dataset": name, "variation": loss}
        return train_cell(path, {**options, **changed}, data, arguments.scratch, told)

    for kind in arguments.kinds:
        cells = [cell(*own, seed) for own, seed in itertools.product(KINDS[kind], TUNING_SEEDS)]
        loss, schedule = chosen(cells)
        for seed in SEEDS:
            cell(loss, schedule, seed)


def reduction_of(loss: str) -> dict[str, str]:
    """The option of those that average over triplets."""
    averaged = {"triplet", "shadow", "transplant"}
    return {"reduction": REDUCTION} if loss.partition(":")[0] in averaged else {}


def chosen(cells: list[dict]) -> tuple[str, str]:
    """The loss and the schedule with the best mean validation AUC over the tuning seeds."""
    settings = {(cell["variation"], cell["schedule"]) for cell in cells}
    by_name = {f"{loss} {schedule}": (loss, schedule) for loss, schedule in settings}
    named = [{**cell, "schedule": f"{cell['variation']} {cell['schedule']}"} for cell in cells]
    return by_name[tuned(named)]


class Found:
    """The cells of one data set.

    Attributes:
        settings: by kind that is whole, the chosen loss and schedule.
        comparison: of those kinds with the tuned constant margin, over the reported seeds.
    """

    def __init__(self, name: str, cells: dict[cell_files.Key, dict]) -> None:
        self.name = name
        self.settings: dict[str, tuple[str, str]] = {}
        reported: dict[str, dict[int, dict]] = {}
        for kind, settings in KINDS.items():
            keys = itertools.product(settings, TUNING_SEEDS)
            tuning = [cells.get(cell_files.key(s, seed, loss)) for (loss, s), seed in keys]
            if None in tuning:
                continue
            loss, schedule = chosen(tuning)
            own = {seed: cells.get(cell_files.key(schedule, seed, loss)) for seed in SEEDS}
            if None not in own.values():
                self.settings[kind], reported[kind] = (loss, schedule), own
        self.comparison = None
        if BASELINE in reported:
            self.comparison = mj.Comparison(
                tuple(reported),
                tuple(SEEDS),
                {
                    kind: {s: {"test": cell["test"][headline(name)]} for s, cell in own.items()}
                    for kind, own in reported.items()
                },
                {
                    kind: {seed: records(cell) for seed, cell in own.items()}
                    for kind, own in reported.items()
                },
                baseline=BASELINE,
            )

    def table(self) -> str:
        """A row a kind: its setting, AUC and EER on the test, and the difference in AUC."""
        lines = [
            "| loss | setting | AUC | difference | EER | easy at the end |",
            "|---|---|---|---|---|---|",
        ]
        for kind, (loss, schedule) in self.settings.items():
            auc, eer = (self.comparison.summary(kind, figure) for figure in ("auc", "eer"))
            runs = self.comparison.histories[kind].values()
            easy = np.mean([run[-1]["easy_fraction"] for run in runs])
            paired = f"{auc.difference:+.4f} ± {auc.difference_interval:.4f}"
            row = [
                kind,
                f"`{loss}` `{schedule}`",
                f"{auc.mean:.4f} ± {auc.interval:.4f}",
                "–" if kind == BASELINE else paired,
                f"{eer.mean:.4f} ± {eer.interval:.4f}",
                f"{easy:.0%}",
            ]
            lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


def read(folder: Path) -> list[Found]:
    """Of every data set that has a comparison."""
    paths = [cell_files.path_of(folder / "related", name, REDUCTION) for name in SETS]
    found = [Found(name, cell_files.read(path)) for name, path in zip(SETS, paths, strict=True)]
    return [own for own in found if own.comparison is not None]


def plot(every: list[Found]) -> Figure:
    """A panel a data set: differences in AUC to the tuned constant margin, with intervals."""
    kinds = [kind for kind in KINDS if kind != BASELINE]
    figure = Figure(figsize=(2.6 + 2.1 * max(2, len(every)), 3.8), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(every), sharey=True, squeeze=False)[0]
    for axes, found in zip(panels, every, strict=True):
        for kind in set(kinds) & set(found.settings):
            own = found.comparison.summary(kind, "auc")
            mean, width = own.difference, own.difference_interval
            colour = "0.55" if abs(mean) <= width else PALETTE[0] if mean > 0 else PALETTE[1]
            axes.errorbar(mean, kinds.index(kind), xerr=width, fmt="o", color=colour, ms=4)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_title(NAMES[found.name], fontsize="small")
        axes.locator_params(axis="x", nbins=3)
        tidy(axes, "x")
    panels[0].set_yticks(range(len(kinds)), kinds)
    panels[0].set_ylim(len(kinds) - 0.5, -0.5)
    figure.supxlabel(
        "test AUC minus that of triplets with the tuned constant margin, paired by seed,\n"
        "with 95 % interval; grey: it contains 0",
        fontsize="small",
    )
    return figure


def markdown(every: list[Found], before: str) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    words = first_words(before, __doc__)
    parts = [words, "![Differences to the triplet loss](related.png)"]
    for found in every:
        parts += [f"## {NAMES[found.name]}", f"AUC of {PAIRS[headline(found.name)]}."]
        parts += [found.table(), found.comparison.verdict()]
        if missing := [kind for kind in KINDS if kind not in found.settings]:
            parts.append(f"Not trained yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv, __doc__, "related", datasets=Some(SETS), kinds=Some(KINDS, ";"))
    well = True
    if not arguments.report:
        jobs = [(name, arguments) for name in arguments.datasets]
        well = share_out(train, jobs, arguments.processes)
    if every := read(arguments.out):
        write_page(arguments.out / "related.md", lambda before: markdown(every, before))
        plot(every).savefig(arguments.out / "related.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
