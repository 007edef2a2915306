"""What it costs not to tune: the same settings on all data.

    python experiments/regret.py --data DATA

The *regret* of a setting on a data set is the test AUC of the constant margin that was tuned for
that set, minus its own, on the same seeds. A setting is worth typing without tuning if its regret
is small everywhere.

The rule by which the settings are chosen, written down before any of their cells was trained:

- Candidates are all settings of `grid.py` but the two untuned constants, 0.2 and 0.05, which stand
  beside. `compare.py` has trained each on the seeds 100 and 101.
- A candidate's loss on a set is the best mean validation AUC of a constant, minus its own. The
  candidates are ranked by the mean of it over the five sets, for each reduction apart.
- DAMS as published and DAMS from 0.02 are taken; then, in that order, six more, at most two of a
  kind.

*Our rule* is one more, written down when three seeds of the mean over all triplets were known here:
start at 0.02; rise to 0.2 (`litm`) if the network is trained, and stay if it is a head on features.
It knows what is trained, and watches nothing. As it was found on these five sets, only fresh ones
(`confirm.py`) can judge it. The aim was to be within 0.002 of the tuned constant on every set.

Sets are Omniglot, LFW and CUB-200-2011 with the small network, and LFW and CUB-200-2011 as
features of a pretrained one. MNIST takes no part: two digits validate it, which choose badly
(`schedules.md`). These eight, the two untuned constants and the constant that validation chose for
the set are trained on the seeds 0 to 9, on one kind of machine. Cells that `compare.py` has trained
on this very kind, with the same versions, are taken over; all others are trained anew. They go to
`experiments/results/regret`; started again, it continues where it was. `--report` writes
`experiments/results/regret.md` and its picture from them, in seconds; its first words, the
findings, stay as they are.
"""

import argparse
import collections
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import cell_files
import numpy as np
from compare import CELLS, open_dataset, share_out, train_cell, tuned
from grid import CANDIDATES, NAMES, PUBLISHED, REDUCTIONS, TUNING_SEEDS
from matplotlib.figure import Figure
from scipy import stats
from shapes import REDUCTION, headline
from study import Some, first_words, parse, write_page

from margin_jax.plots.style import PALETTE, tidy

SETS = ("omniglot", "lfw", "cub", "lfw_features", "cub_features")
SEEDS = range(10)
UNTUNED = ("constant:0.2", "constant:0.05")
ALWAYS = (PUBLISHED, "dams:margin=0.02,threshold=0.95,increase=0.01")
SETTINGS, OF_A_KIND = 8, 2
RULE = "our rule"
# By whether the examples are vectors, as features are.
RULE_IS = {False: "litm:margin=0.02,margin_end=0.2", True: "constant:0.02"}


def choose(validation: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The settings, by the rule above.

    Args:
        validation: by data set and schedule, the mean validation AUC over the tuning seeds.
    """
    candidates = {own for family in CANDIDATES.values() for own in family} - set(UNTUNED)
    lost = {
        own: np.mean(
            [max(by[c] for c in CANDIDATES["constant"]) - by[own] for by in validation.values()]
        )
        for own in candidates
    }
    taken = list(ALWAYS)
    kinds: collections.Counter[str] = collections.Counter(map(kind, taken))
    for own in sorted(candidates - set(ALWAYS), key=lambda own: (lost[own], own)):
        if len(taken) < SETTINGS and kinds[kind(own)] < OF_A_KIND:
            taken.append(own)
            kinds[kind(own)] += 1
    return taken


def kind(schedule: str) -> str:
    return schedule.partition(":")[0]


def settings_of(dataset: str, reduction: str, best: str) -> list[str]:
    """All that is reported of a data set; constants first, as a DAMS may be the same run as one."""
    chosen = choose(read_validation(CELLS, reduction))
    return list(dict.fromkeys((best, *UNTUNED, RULE_IS[dataset == "vectors"], *chosen)))


def by_the_rule(cells: Collection[dict]) -> Iterator[dict]:
    """The cells that our rule picks, as those of one more setting."""
    for cell in cells:
        _, *shape = cell["images"]["shape"]
        if cell["schedule"] == RULE_IS[len(shape) == 1]:
            yield {**cell, "schedule": RULE}


def read_validation(folder: Path, reduction: str) -> dict[str, dict[str, float]]:
    """What `choose` needs, from the cells of `compare.py`.

    Raises:
        ValueError: if a cell of the tuning is not there.
    """
    every = [own for family in CANDIDATES.values() for own in family]
    found: dict[str, dict[str, float]] = {}
    for name in SETS:
        path = cell_files.path_of(folder, name, reduction)
        cells = cell_files.read(path)
        keys = [cell_files.key(own, seed) for own in every for seed in TUNING_SEEDS]
        if missing := sum(key not in cells for key in keys):
            raise ValueError(
                f"the choice needs all {len(keys)} cells of the tuning in {path}; {missing} are "
                f"missing: python experiments/compare.py --datasets {name} --schedules all"
            )
        found[name] = {
            own: float(
                np.mean([cells[cell_files.key(own, s)]["validation"]["auc"] for s in TUNING_SEEDS])
            )
            for own in every
        }
    return found


def tuned_constant(cells: Mapping[cell_files.Key, dict]) -> str:
    """Of a data set: the one that validation chose."""
    return tuned([cell for cell in cells.values() if cell["schedule"] in CANDIDATES["constant"]])


def train(name: str, reduction: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a reduction."""
    grid = cell_files.read(cell_files.path_of(CELLS, name, reduction))
    best = tuned_constant(grid)
    options, data = open_dataset(name, arguments.data)
    options["reduction"] = reduction
    path = cell_files.path_of(arguments.out / "regret", name, reduction)
    settings = settings_of(options["dataset"], reduction, best)
    for seed in SEEDS:
        for schedule in settings:
            changed = {**options, "schedule": schedule, "seed": seed}
            train_cell(path, changed, data, arguments.scratch, {"dataset": name}, grid)


class Regret:
    """The regrets of a reduction.

    Attributes:
        reduction: which.
        tuned: by data set, the constant that was tuned for it.
        auc: by data set and schedule, the test AUC of the seeds that all of them have.
        seeds: how many these are.
        settings: what was trained on all sets, the least mean regret first.
    """

    def __init__(
        self,
        reduction: str,
        by_set: Mapping[str, list[dict]],
        best: Mapping[str, str],
        pairs: Callable[[str], str] = headline,
    ) -> None:
        self.reduction, self.tuned = reduction, dict(best)
        found: dict[str, dict[str, dict[int, float]]] = {name: {} for name in by_set}
        for name, cells in by_set.items():
            for cell in (*cells, *by_the_rule(cells)):
                auc = cell["test"][pairs(name)]["auc"]
                found[name].setdefault(cell["schedule"], {})[cell["seed"]] = auc
        common = set.intersection(*map(set, found.values()))
        needed = {name: common | {best[name]} for name in found}
        seeds = [
            seed
            for seed in SEEDS
            if all(seed in found[name].get(own, {}) for name in found for own in needed[name])
        ]
        self.seeds = len(seeds)
        self.auc = {
            name: {own: np.array([by[own][seed] for seed in seeds]) for own in needed[name]}
            for name, by in found.items()
        }
        self.settings = sorted(common, key=lambda own: (self.mean(own)[0], own))

    def regrets(self, schedule: str, against: str | None = None) -> dict[str, np.ndarray]:
        """By data set, of each seed: what the setting loses to the tuned constant, or another."""
        return {
            name: own[against or self.tuned[name]] - own[schedule] for name, own in self.auc.items()
        }

    def mean(self, schedule: str, against: str | None = None) -> tuple[float, float]:
        """Over all sets, with half the width of the 95 % interval over seeds."""
        return with_interval(np.mean(list(self.regrets(schedule, against).values()), axis=0))

    def worst(self, schedule: str) -> tuple[str, float]:
        """The set that it loses most on, and how much."""
        means = {name: float(np.mean(own)) for name, own in self.regrets(schedule).items()}
        name = max(means, key=lambda own: means[own])
        return name, means[name]

    def table(self) -> str:
        """A row a setting, the least mean regret first."""
        titles = [
            f"{NAMES.get(name, name)} ({self.tuned[name].partition(':')[2]})" for name in self.auc
        ]
        ends = ["mean", "worst", *(f"mean, to {own.partition(':')[2]}" for own in UNTUNED)]
        lines = [
            f"| setting | {' | '.join((*titles, *ends))} |",
            f"|---|{'---|' * (len(titles) + len(ends))}",
        ]
        for schedule in self.settings:
            row = [f"`{schedule}`"]
            row += [plus_minus(*with_interval(own)) for own in self.regrets(schedule).values()]
            row += [plus_minus(*self.mean(schedule)), f"{self.worst(schedule)[1]:+.4f}"]
            row += [plus_minus(*self.mean(schedule, own)) for own in UNTUNED]
            lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


def with_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t)."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("nan")
    width = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values)), float(width)


def plus_minus(mean: float, interval: float) -> str:
    return f"{mean:+.4f} ± {interval:.4f}"


def read(out: Path, cells: Path = CELLS) -> list[Regret]:
    """Of each reduction that has cells of every set."""
    found = []
    for reduction in REDUCTIONS:
        paths = {name: cell_files.path_of(out / "regret", name, reduction) for name in SETS}
        by_set = {name: list(cell_files.read(path).values()) for name, path in paths.items()}
        if all(by_set.values()):
            best = {
                name: tuned_constant(cell_files.read(cell_files.path_of(cells, name, reduction)))
                for name in SETS
            }
            found.append(Regret(reduction, by_set, best))
    return found


def plot(every: list[Regret]) -> Figure:
    """A panel a reduction: a dot a set, and the mean with its interval."""
    figure = Figure(figsize=(4.6 * len(every) + 2.4, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(every), squeeze=False)[0]
    names = dict.fromkeys(name for regret in every for name in regret.auc)  # a panel may lack some
    colours = dict(zip(names, itertools.cycle(PALETTE)))
    for axes, regret in zip(panels, every, strict=True):
        for row, schedule in enumerate(regret.settings):
            for name, own in regret.regrets(schedule).items():
                axes.plot(np.mean(own), row, "o", ms=4, color=colours[name])
            mean, width = regret.mean(schedule)
            axes.errorbar(mean, row, xerr=width, fmt="|", color="black", ms=9, capsize=2)
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set_yticks(range(len(regret.settings)), regret.settings, fontsize="x-small")
        axes.invert_yaxis()
        axes.set_title(REDUCTION[regret.reduction], fontsize="small")
        axes.locator_params(axis="x", nbins=5)
        tidy(axes, "x")
    for name, colour in colours.items():
        panels[0].plot([], [], "o", ms=4, color=colour, label=NAMES.get(name, name))
    figure.supxlabel("regret: test AUC below the constant tuned for the set", fontsize="small")
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize="small")
    return figure


def markdown(
    every: list[Regret], before: str, doc: str = __doc__, picture: str = "regret.png"
) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    parts = [first_words(before, doc), f"![Regret of each setting]({picture})"]
    for regret in every:
        parts.append(f"## {REDUCTION[regret.reduction].capitalize()}")
        parts.append(
            "Test AUC of the tuned constant (its margin in brackets) minus that of the setting, "
            f"{regret.seeds} seeds, ± half the width of the 95 % interval over splits. Negative: "
            "better than tuned."
        )
        parts.append(regret.table())
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv, __doc__, "regret", datasets=Some(SETS), reductions=Some(REDUCTIONS))
    well = True
    if not arguments.report:
        jobs = [
            (name, reduction, arguments)
            for name in arguments.datasets
            for reduction in arguments.reductions
        ]
        well = share_out(train, jobs, arguments.processes)
    if every := read(arguments.out):
        write_page(arguments.out / "regret.md", lambda before: markdown(every, before))
        plot(every).savefig(arguments.out / "regret.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
