"""The results of several arms, trained over the same seeds: differences paired by seed."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

K = TypeVar("K")

FIGURES = ("auc", "eer")
# What is called clear has a chance below this, corrected for the number of comparisons.
CHANCE = 0.05
# With fewer, the verdict says so.
_FEW = 3


@dataclass(frozen=True)
class Summary:
    """One result of one arm over all seeds.

    Attributes:
        mean: over the seeds.
        interval: half the width of its 95 % confidence interval (Student's t); NaN for one seed.
        difference: mean over the seeds of this arm's result minus the baseline's.
        difference_interval: half the width of the 95 % interval of the paired difference.
        p_value: of a two-sided paired t test; 1 if no seed shows a difference, NaN for one seed.
    """

    mean: float
    interval: float
    difference: float
    difference_interval: float
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Runs of several arms over the same seeds.

    Attributes:
        arms: the names of the arms.
        seeds: the seeds, the same for every arm.
        reports, histories: those of the run folders, by arm, then by seed.
        baseline: the arm that the others are compared with.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    reports: dict[str, dict[int, dict[str, Any]]] = field(repr=False)
    histories: dict[str, dict[int, list[dict[str, Any]]]] = field(repr=False)
    baseline: str

    def values(self, arm: str, figure: str) -> np.ndarray:
        """float64[seeds]: a test result ("auc", "eer", "accuracy") for every seed."""
        return np.array([self.reports[arm][seed]["test"][figure] for seed in self.seeds])

    def differences(self, arm: str, figure: str) -> np.ndarray:
        """float64[seeds]: a test result minus the baseline's with the same seed."""
        difference: np.ndarray = self.values(arm, figure) - self.values(self.baseline, figure)
        return difference

    def summary(self, arm: str, figure: str) -> Summary:
        """Mean, interval, and the paired difference to the baseline."""
        differences = self.differences(arm, figure)
        return Summary(
            *_mean_interval(self.values(arm, figure)),
            *_mean_interval(differences),
            _p_value(differences),
        )

    def table(self) -> str:
        """A Markdown table with one row per arm."""
        n = len(self.seeds)
        lines = [
            f"Test figures, mean ± half the 95 % interval over {n} seed{'s' if n > 1 else ''}; "
            f"differences to {self.baseline} are paired by seed.",
            "",
            "| arm | margin | easy at the end | AUC | difference | EER | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in self.arms:
            auc, eer = (self.summary(name, figure) for figure in FIGURES)
            ends = [self.histories[name][seed][-1] for seed in self.seeds]
            start = self.histories[name][self.seeds[0]][0]["margin"]
            end = np.mean([record["margin"] for record in ends])
            easy = np.mean([record["easy_fraction"] for record in ends])
            cells = [name, f"{start:.2f} → {end:.2f}", f"{easy:.1%}"]
            for figure in (auc, eer):
                cells.append(_plus_minus(figure.mean, figure.interval, ".4f"))
                paired = _plus_minus(figure.difference, figure.difference_interval, "+.4f")
                cells.append("–" if name == self.baseline else paired)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def verdict(self) -> str:
        """A sentence that says which differences in AUC are clear.

        Clear means a p-value below 5 % after Holm's correction for the number of comparisons.
        """
        others = [name for name in self.arms if name != self.baseline]
        if not others:
            return "One arm alone: there is nothing to compare it with."
        if len(self.seeds) < 2:
            return f"One seed shows no spread, so nothing is clear: use {_FEW} seeds or more."
        found = {name: self.summary(name, "auc") for name in others}
        same = [name for name in others if not self.differences(name, "auc").any()]
        tried = {name: found[name].p_value for name in others if name not in same}
        clear = {name for name, p in holm(tried).items() if p < CHANCE}

        def shown(name: str) -> str:
            own = found[name]
            return f"{name} ({_plus_minus(own.difference, own.difference_interval, '+.4f')})"

        said = []
        for words, sign in (("ahead of", 1), ("behind", -1)):
            if own := [shown(n) for n in others if n in clear and found[n].difference * sign > 0]:
                said.append(f"{_are(own)} clearly {words} {self.baseline}")
        if unclear := [name for name in tried if name not in clear]:
            said.append(f"{_are(unclear)} not clearly different from {self.baseline}")
        if same:
            said.append(f"{_are(same)} equal to {self.baseline} with every seed")
        parts = [f"AUC: {'; '.join(said)}.", f"{len(self.seeds)} seeds, paired"]
        if len(tried) > 1:
            parts[1] += f"; corrected for {len(tried)} comparisons (Holm)"
        parts[1] += "."
        if len(self.seeds) < _FEW:
            parts.append(f"With so few seeds differences are a hint at best: use {_FEW} or more.")
        return " ".join(parts)

    def markdown(self) -> str:
        """The table, and below it what it says in words."""
        return f"{self.table()}\n\n{self.verdict()}"

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        return self.markdown()

    def to_json(self) -> dict[str, Any]:
        """Every cell's test figures, the summaries and the verdict."""
        return {
            "arms": list(self.arms),
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "cells": [
                {"arm": name, "seed": seed, **self.reports[name][seed]}
                for name in self.arms
                for seed in self.seeds
            ],
            "summaries": {
                name: {f: dataclasses.asdict(self.summary(name, f)) for f in FIGURES}
                for name in self.arms
            },
            "verdict": self.verdict(),
        }


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Holm's correction: the chance that one or more of so many would look as good by chance.

    Args:
        p_values: by what was compared.

    Returns:
        The corrected ones, from the smallest to the largest. Those below a level are the ones that
        Holm's procedure rejects at it (S. Holm, 1979, "A simple sequentially rejective multiple
        test procedure").
    """
    corrected, largest = {}, 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - place)))
        corrected[key] = largest
    return corrected


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval."""
    from scipy.stats import t  # slow to import

    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    width = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return float(np.mean(values)), float(width)


def _p_value(differences: np.ndarray) -> float:
    """Of a two-sided t test that their mean is 0."""
    from scipy.stats import t  # slow to import

    n = len(differences)
    if n < 2:
        return math.nan
    mean, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(n)
    if error == 0:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / error, n - 1))


def _plus_minus(mean: float, interval: float, form: str) -> str:
    shown = f"{mean:{form}}"
    return shown if math.isnan(interval) else f"{shown} ± {interval:.4f}"


def _are(names: list[str]) -> str:
    """`a is`, `a and b are`, `a, b and c are`."""
    *before, last = names
    return f"{', '.join(before)} and {last} are" if before else f"{last} is"
