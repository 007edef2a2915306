"""What the cells of `compare.py` say about a dataset and reduction, and what can be compared.

Tables and pictures of it: `report.py`.
"""

import collections
import math
from collections.abc import Iterable
from pathlib import Path

from cell_files import read_all
from compare import options_of, tuned
from grid import CANDIDATES, DATASETS, FIXED, NAMES, TEST_TO_TRAIN, TUNING_SEEDS

import margin_jax as mj

KINDS = {"all_pairs": "all pairs", "pairs": "even pairs", "published_pairs": "1,000 pairs"}
# Where one identity can have most of the same pairs, figures are of even ones, as validation's are.
UNEVEN = {"lfw", "lfw_faces", "lfw_features"}
# The seeds that were read first; those after them were trained later, to see whether it holds.
FIRST = range(5)
REDUCTION = {"mean_active": "mean over active triplets", "mean": "mean over all triplets"}


def headline(name: str) -> str:
    """The kind of pairs that a data set is judged by."""
    return "pairs" if name in UNEVEN else "all_pairs"


class Shape:
    """The cells of one data set and one reduction.

    Attributes:
        name, reduction: which.
        cells: all of them, as read.
        settings: how many the constant margin, and all that is compared, was tuned over.
        chosen: by what is compared, the text of its schedule.
        unfinished: what was tuned over other settings in number than the constant margin, or
            trained on fewer than two reported seeds.
        seeds: those that everything compared was trained on.
        left_out: those that only some of it was trained on.
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
        tuning: dict[str, list[dict]] = {}
        for cell in cells:
            if cell["seed"] in TUNING_SEEDS:
                tuning.setdefault(cell["schedule"], []).append(cell)
        tried = {
            family: [own for own in candidates if len(tuning.get(own, [])) == len(TUNING_SEEDS)]
            for family, candidates in CANDIDATES.items()
        }
        self.settings = len(tried["constant"])
        self.chosen = {
            family: tuned([cell for own in candidates for cell in tuning[own]])
            for family, candidates in tried.items()
            if candidates
        }
        self.chosen |= {label: own for label, own in FIXED.items() if own in trained}
        counts = collections.Counter(cell["schedule"] for cell in reported)
        self.unfinished = [
            label
            for label, own in self.chosen.items()
            if counts[own] < 2 or (label in tried and len(tried[label]) != self.settings)
        ]
        for label in self.unfinished:
            del self.chosen[label]
        self.by_place = {(cell["schedule"], cell["seed"]): cell for cell in reported}
        every = sorted({cell["seed"] for cell in reported})
        self.seeds = [
            seed
            for seed in every
            if all((schedule, seed) in self.by_place for schedule in self.chosen.values())
        ]
        self.left_out = [seed for seed in every if seed not in self.seeds]
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
                baseline="constant",
            )
            for kind in KINDS
        }

    @property
    def data(self) -> str:
        """Of which data set, as one says it."""
        return NAMES.get(self.name, self.name)

    @property
    def of_features(self) -> bool:
        """Whether only a head was trained, on what a pretrained network makes of the images."""
        return DATASETS.get(self.name, {}).get("dataset") == "vectors"

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{self.data}, {REDUCTION[self.reduction]}"

    @property
    def kinds(self) -> list[str]:
        """Of pairs, the one that everything is judged by first."""
        first = headline(self.name)
        return [first, *(kind for kind in KINDS if kind != first)]

    @property
    def judged(self) -> mj.Comparison:
        """By those pairs."""
        return self.comparisons[self.kinds[0]]

    @property
    def complete(self) -> bool:
        """Whether there is something to compare with the tuned constant, over several seeds."""
        return "constant" in self.chosen and len(self.chosen) > 1 and len(self.seeds) > 1

    @property
    def widening(self) -> float | None:
        """By how much intervals grow if they shall hold for other images as well; None: unknown.

        Splits of the same images share most of what they train on, so their figures differ less
        than those of other images would (Nadeau and Bengio 2003, "Inference for the generalization
        error": the variance of a mean over n splits is 1/n + test/training of that of one).
        """
        ratio = TEST_TO_TRAIN.get(self.name)
        return None if ratio is None else math.sqrt(1 + len(self.seeds) * ratio)

    def moved(self, label: str) -> list[bool]:
        """By seed, whether the margin had become another by the epoch that was chosen."""
        cells = [self.by_place[self.chosen[label], seed] for seed in self.seeds]
        return [len(set(cell["epochs"]["margin"][: cell["best_epoch"]])) > 1 for cell in cells]

    def ranks(self, labels: Iterable[str]) -> dict[str, float]:
        """The place of each by mean AUC, 1 the best; ties share."""
        means = {label: self.judged.summary(label, "auc").mean for label in labels}
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
    every = [list(cells.values()) for cells in read_all(folder)]
    return [Shape(cells[0]["dataset"], cells[0]["reduction"], cells) for cells in every if cells]
