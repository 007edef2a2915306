"""The whole pretrained network fine-tuned, with small margins, the usual one, and DAMS.

    python experiments/finetune.py --data DATA --sizes 64      # 14 epochs, on a CPU
    python experiments/finetune.py --data DATA --sizes 224     # as in the paper, on a GPU

DATA has the folders `lfw_faces`, the middle 150 of 250 pixels of each picture of LFW, and `cub`,
and timm's weights of ImageNet: `tf_efficientnet_lite0.safetensors`. All of EfficientNet-Lite0 is
trained, with batches of 32 identities with 2 images, half of them mirrored, and the mean over all
triplets. At 64 pixels the learning rate is that of a first run (`features.md`): 5e-4, which warms
up and falls. At 224 it is the paper's protocol: Adam at 1e-4, 50 epochs.

The settings were written down before any cell was trained: four constants, DAMS as published, DAMS
that acts at 80 % from 0.05, and of the settings that `regret.py` chooses the first that is not one
of these nor of those it always takes. A constant of 1 was added when the largest, 0.5, had turned
out best for two of three seeds of LFW. All have the seeds 0 to 2. Split, batches and pairs depend
on the seed only, so differences are paired.

A DAMS that never acts is copied from its constant, as in `compare.py`. (The first six, those of
LFW, were trained, and are equal to the last digit.)

Cells go to `experiments/results/finetuned`; started again, it goes on where it was, also in the
middle of a cell. `--report` writes `experiments/results/finetuned.md` and its picture from them, in
seconds; its first words, the findings, stay as they are.
"""

import argparse
import sys
from pathlib import Path

import cell_files
import numpy as np
from compare import CELLS, open_dataset, share_out, train_cell
from grid import DATASETS, NAMES, PUBLISHED
from matplotlib.figure import Figure
from regret import ALWAYS, choose, plus_minus, read_validation, with_interval
from shapes import KINDS, headline
from study import Some, first_words, parse, write_page

from margin_jax.plots.figure import EpochLocator
from margin_jax.plots.style import show_hidden, styles, tidy

SETS = {"lfw_faces": {"dataset": "folder"}, "cub": DATASETS["cub"]}
SEEDS = range(3)
REDUCTION = "mean"
BASELINE = "constant:0.2"
SETTINGS = (
    *("constant:0.02", "constant:0.05", BASELINE, "constant:0.5"),
    *(PUBLISHED, "dams:margin=0.05,threshold=0.8,increase=0.05"),
)
ADDED = ("constant:1",)
COMMON = {
    "encoder": "efficientnet_lite0",
    "weights": "tf_efficientnet_lite0.safetensors",
    "width": 1.0,
    "augment": "flip",
    "identities_per_batch": 32,
    "images_per_identity": 2,
    "reduction": REDUCTION,
}
# By pixels a side.
SIZES = {
    "64": {"epochs": 14, "learning_rate": 5e-4, "learning_rate_schedule": "warmup_linear"},
    "224": {"epochs": 50, "learning_rate": 1e-4, "learning_rate_schedule": "constant"},
}


def settings() -> tuple[str, ...]:
    """Those above, and the best of the untuned ones that are not among them."""
    ranked = choose(read_validation(CELLS, REDUCTION))
    best = next(own for own in ranked if own not in (*ALWAYS, *SETTINGS))
    return *SETTINGS, best, *ADDED


def train(name: str, size: str, arguments: argparse.Namespace) -> None:
    """All cells of a data set and a size."""
    own = settings()
    changed = {**SETS[name], **COMMON, **SIZES[size], "image_size": int(size)}
    options, data = open_dataset(name, arguments.data, **changed)
    path = cell_files.path_of(arguments.out / "finetuned", name, REDUCTION)
    for seed in SEEDS:
        for schedule in own:
            told = {"dataset": name, "variation": variation(size)}
            own_options = {**options, "schedule": schedule, "seed": seed}
            train_cell(path, own_options, data, arguments.scratch, told)


def variation(size: str) -> str:
    return f"{size} pixels"


class Found:
    """The cells of a data set and a size.

    Attributes:
        name, size: which.
        cells: by schedule, those of the seeds; only schedules that have all.
    """

    def __init__(self, name: str, size: str, cells: list[dict]) -> None:
        self.name, self.size = name, size
        by: dict[str, dict[int, dict]] = {}
        for cell in cells:
            if cell["variation"] == variation(size):
                by.setdefault(cell["schedule"], {})[cell["seed"]] = cell
        self.cells = {
            schedule: [own[seed] for seed in SEEDS]
            for schedule, own in by.items()
            if set(own) == set(SEEDS)
        }

    def auc(self, schedule: str) -> np.ndarray:
        """float[seeds], on the test."""
        own = self.cells[schedule]
        return np.array([cell["test"][headline(self.name)]["auc"] for cell in own])

    def easy(self, schedule: str) -> np.ndarray:
        """float[epochs], the share of easy triplets, the mean over the seeds."""
        own = self.cells[schedule]
        return np.mean([cell["epochs"]["easy_fraction"] for cell in own], axis=0)

    def table(self) -> str:
        """A row a setting: its AUC, the difference to the usual constant, and easy triplets."""
        names = ["setting", "AUC", f"minus `{BASELINE}`", "easy at first", "easy at the end"]
        lines = [f"| {' | '.join(names)} | last margin |", "|---|---|---|---|---|---|"]
        for schedule, own in self.cells.items():
            auc, easy = self.auc(schedule), self.easy(schedule)
            paired = plus_minus(*with_interval(auc - self.auc(BASELINE)))
            margins = [cell["epochs"]["margin"] for cell in own]
            stays = not schedule.startswith("constant") and all(max(m) == min(m) for m in margins)
            row = [f"`{schedule}`{' †' * stays}", f"{auc.mean():.4f}"]
            row += ["–" if schedule == BASELINE else paired]
            row += [f"{easy[0]:.0%}", f"{easy[-1]:.0%}", f"{np.mean([m[-1] for m in margins]):.2f}"]
            lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


def read(out: Path) -> list[Found]:
    """Of what has the usual constant on all seeds."""
    files = {
        name: cell_files.read(cell_files.path_of(out / "finetuned", name, REDUCTION))
        for name in SETS
    }
    every = [Found(name, size, list(files[name].values())) for name in SETS for size in SIZES]
    return [found for found in every if BASELINE in found.cells]


def plot(every: list[Found]) -> Figure:
    """A panel a data set and size: the share of easy triplets by epoch."""
    figure = Figure(figsize=(3.6 * len(every) + 2.4, 3.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(every), sharey=True, squeeze=False)[0]
    for axes, found in zip(panels, every, strict=True):
        for (line, colour), schedule in zip(styles(), found.cells, strict=False):
            easy = found.easy(schedule)
            axes.plot(np.arange(1, len(easy) + 1), easy, line, color=colour, label=schedule)
        axes.set_title(f"{NAMES[found.name]}, {found.size} pixels", fontsize="small")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(EpochLocator())
        tidy(axes, "y")
        show_hidden(axes)  # DAMS that never acts is the constant
    panels[0].set_ylabel("share of easy triplets")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="x-small", frameon=False)
    return figure


def markdown(every: list[Found], before: str) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    parts = [first_words(before, __doc__), "![Share of easy triplets](finetuned.png)"]
    for found in every:
        seeds = f"{len(SEEDS)} seeds, ± half the width of the 95 % interval of paired differences"
        parts.append(f"## {NAMES[found.name]}, {found.size} pixels")
        parts += [f"Test AUC of {KINDS[headline(found.name)]} over {seeds}.", found.table()]
    parts.append("† The margin never moved: the same run as the constant that it starts from.")
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> None:
    lists = {"datasets": Some(SETS), "sizes": Some(SIZES)}
    arguments = parse(argv, __doc__, "finetune", **lists)
    well = True
    if not arguments.report:
        jobs = [(name, size, arguments) for name in arguments.datasets for size in arguments.sizes]
        well = share_out(train, jobs, arguments.processes)
    if every := read(arguments.out):
        write_page(arguments.out / "finetuned.md", lambda before: markdown(every, before))
        plot(every).savefig(arguments.out / "finetuned.png")
    sys.exit(not well)


if __name__ == "__main__":
    main()
