"""Schedules compared fairly: every seed has one split and one set of pairs, shared by all of them.

Each cell (a schedule and a seed) is a run folder of its own, so a comparison that was killed goes
on where it was. Differences are paired by seed.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from margin_jax import multihost, plots, run
from margin_jax.config import TrainConfig
from margin_jax.config.option import as_file_name
from margin_jax.data.dataset import Dataset
from margin_jax.files import to_json, write_text
from margin_jax.lock import locked
from margin_jax.models.encoder import Encoder
from margin_jax.protocol import load, prepare_data, settle_batches
from margin_jax.training import fit

FIGURES = ("auc", "eer")


@dataclass(frozen=True)
class Summary:
    """One figure of one schedule over all seeds.

    Attributes:
        mean: over the seeds.
        interval: half the width of its 95 % confidence interval (Student's t); NaN for one seed.
        difference: mean over the seeds of this schedule's figure minus the baseline's.
        difference_interval: half the width of the 95 % interval of that paired difference.
    """

    mean: float
    interval: float
    difference: float
    difference_interval: float


@dataclass(frozen=True)
class Comparison:
    """Runs of several schedules over the same seeds.

    Attributes:
        schedules: as they were asked for; the first constant one is the baseline, else the first.
        seeds: of every schedule.
        reports, histories: by schedule, then by seed; as in the run folders.
    """

    schedules: tuple[str, ...]
    seeds: tuple[int, ...]
    reports: dict[str, dict[int, dict[str, Any]]] = field(repr=False)
    histories: dict[str, dict[int, list[dict[str, Any]]]] = field(repr=False)

    @property
    def baseline(self) -> str:
        """What the others are compared with."""
        constants = [name for name in self.schedules if name.split(":")[0] == "constant"]
        return (constants or list(self.schedules))[0]

    def values(self, schedule: str, figure: str) -> np.ndarray:
        """float64[seeds]: a test figure ("auc", "eer", "accuracy") of every seed."""
        return np.array([self.reports[schedule][seed]["test"][figure] for seed in self.seeds])

    def summary(self, schedule: str, figure: str) -> Summary:
        """Mean, interval, and the paired difference to the baseline."""
        values = self.values(schedule, figure)
        difference = values - self.values(self.baseline, figure)
        return Summary(*_mean_interval(values), *_mean_interval(difference))

    def table(self) -> str:
        """Markdown: a row a schedule."""
        n = len(self.seeds)
        lines = [
            f"Test figures, mean ± half the 95 % interval over {n} seed{'s' if n > 1 else ''}; "
            f"differences to {self.baseline} are paired by seed.",
            "",
            "| schedule | margin | easy at the end | AUC | difference | EER | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in self.schedules:
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

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        return self.table()

    def to_json(self) -> dict[str, Any]:
        """Every cell's test figures, and the summaries."""
        return {
            "schedules": list(self.schedules),
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "cells": [
                {"schedule": name, "seed": seed, **self.reports[name][seed]}
                for name in self.schedules
                for seed in self.seeds
            ],
            "summaries": {
                name: {f: dataclasses.asdict(self.summary(name, f)) for f in FIGURES}
                for name in self.schedules
            },
        }


def compare(
    config: TrainConfig,
    schedules: Sequence[str],
    seeds: Sequence[int],
    *,
    dataset: Dataset | None = None,
    encoder: Encoder | None = None,
    on_cell: Callable[[str, int, dict[str, Any]], None] | None = None,
    progress: bool = False,
) -> Comparison:
    """Trains every schedule with every seed, and leaves the table, the picture and the cells.

    Args:
        config: all that the cells have in common; `out` is the folder of the comparison, by
            default runs/compare-DATASET. Its `overwrite` starts every cell anew; otherwise finished
            cells are kept, and an unfinished one goes on from its last checkpoint.
        schedules: names, ``NAME:MARGIN`` to set the margin of the first epoch, or
            ``NAME:KEY=VALUE,...`` to set any of their parameters.
        seeds: one split, one set of pairs and one initialisation each.
        dataset: your own images, with ``TrainConfig(dataset="own")``.
        encoder: your own network, with ``TrainConfig(encoder="own")``.
        on_cell: called with (schedule, seed, report) after each cell.
        progress: show progress bars.

    Returns:
        The figures of all cells, which are in the folder too: ``comparison.json``, ``.md`` and
        ``.png``, and a run folder a cell.

    Raises:
        ValueError: as :func:`~margin_jax.fit`; for no or repeated schedules or seeds; if a finished
            cell was trained on other images or with another network.
    """
    schedules, seeds = list(schedules), [config.replace(seed=seed).seed for seed in seeds]
    for what, values in (("schedules", schedules), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{what} must be at least one, each once; got {list(values)}")
    if len({as_file_name(name) for name in schedules}) < len(schedules):
        raise ValueError(f"schedules must have folders of their own; got {list(schedules)}")
    config = with_folder(config)
    run.get_encoder(config, encoder)  # refuses one that is missing, or not asked for
    cells = {(name, seed): _cell_config(config, name, seed) for name in schedules for seed in seeds}
    with contextlib.ExitStack() as held:
        multihost.on_first(lambda: held.enter_context(locked(config.folder)))
        return _compare(config, cells, dataset, encoder, on_cell, progress)


def _compare(
    config: TrainConfig,
    cells: dict[tuple[str, int], TrainConfig],
    dataset: Dataset | None,
    encoder: Encoder | None,
    on_cell: Callable[[str, int, dict[str, Any]], None] | None,
    progress: bool,
) -> Comparison:
    """In a folder that no other process has."""
    schedules, seeds = (tuple(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    if dataset is None:
        dataset = load(config)
    cells = {key: settle_batches(cell, dataset)[0] for key, cell in cells.items()}

    @functools.cache
    def described(seed: int) -> dict[str, Any]:
        """Of the images and the split that all schedules of a seed share."""
        return prepare_data(cells[schedules[0], seed], dataset, encoder).described

    reports: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in schedules}
    histories: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in schedules}
    for (name, seed), cell in cells.items():
        report = _finished(cell)
        if report is None:
            report = fit(cell, dataset=dataset, encoder=encoder, progress=progress).report
        elif other := run.differences(cell.folder, described(seed)):
            raise ValueError(
                f"{cell.folder} was trained on other images or with another network ({other}): "
                f"give --overwrite, or choose another out"
            )
        reports[name][seed], histories[name][seed] = report, run.read_history(cell.folder)
        if on_cell is not None:
            on_cell(name, seed, report)
    comparison = Comparison(schedules, seeds, reports, histories)
    folder = config.folder
    write_text(folder / "comparison.json", to_json(comparison.to_json(), indent=2) + "\n")
    write_text(folder / "comparison.md", comparison.table() + "\n")
    plots.plot_comparison(histories).savefig(folder / "comparison.png")
    return comparison


def with_folder(config: TrainConfig) -> TrainConfig:
    """The configuration with the folder of the comparison, which is never one of a run."""
    return config.replace(out=config.out or f"runs/compare-{config.title}")


def _cell_config(config: TrainConfig, schedule: str, seed: int) -> TrainConfig:
    return config.replace(
        schedule=schedule,
        seed=seed,
        out=str(config.folder / f"{as_file_name(schedule)}-seed{seed}"),
        resume=not config.overwrite,
    ).shrunk()


def _finished(cell: TrainConfig) -> dict[str, Any] | None:
    """The report of a cell that needs no training."""
    path = cell.folder / run.REPORT
    if cell.overwrite or not path.is_file():
        return None
    if run.read_config(cell.folder).experiment() != cell.experiment():
        return None  # `fit` says what differs
    try:
        report = run.read_report(cell.folder)
    except ValueError as error:
        raise ValueError(f"the run in {cell.folder} is damaged: {error}") from error
    return report if report["epochs"] == cell.epochs else None


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval."""
    from scipy.stats import t  # slow to import

    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    width = t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return float(np.mean(values)), float(width)


def _plus_minus(mean: float, interval: float, form: str) -> str:
    shown = f"{mean:{form}}"
    return shown if math.isnan(interval) else f"{shown} ± {interval:.4f}"
