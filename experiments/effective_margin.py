"""Claim 1 of arXiv 2603.26389 in the open: effective margins outgrow μ, until they do not.

    python experiments/effective_margin.py

The effective margin of a triplet is d(a,n) − d(a,p). The paper says that during training the
effective margins of many triplets exceed the chosen margin μ, provided that enough triplets still
violate μ.

*The toy.* Identities are the components of a Gaussian mixture in 16 dimensions: their means are
drawn with a standard deviation of 1, and the samples around them with a standard deviation called
*overlap*. A network with two hidden layers embeds fresh samples (so it cannot memorise them): 32
components with 4 samples per batch, 25 batches per epoch, 30 epochs, Adam at 1e-3, constant μ.

*Real data.* The runs of `compare.py` with constant margins from 0.01 to 1, on the two tuning seeds.

Writes `experiments/results/effective_margin.json`, and from it and the cells the plots and the
table of `experiments/results/effective_margin.md` (with `--report` only these, in seconds). The
findings above them are written by hand and are kept. On two cores, next to other work, it took a
minute and a half (jax 0.10.2).
"""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import cell_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
from compare import significant
from flax import linen as nn
from grid import NAMES, REDUCTIONS, TUNING_SEEDS
from matplotlib.figure import Figure
from study import RESULTS, first_words, write_page

import margin_jax as mj
from margin_jax.plots.figure import EpochLocator
from margin_jax.plots.style import BLUE, GREEN, GREY, ORANGE, PALETTE, draw_quantiles, tidy

OVERLAPS = (0.25, 0.5, 1.0)
MARGINS = (0.01, 0.02, 0.05, 0.2, 0.5, 1.0)
OF_THE_TOY = (0.02, 0.05, 0.2, 0.5)
DIMENSIONS, COMPONENTS, P, K = 16, 100, 32, 4
EPOCHS, STEPS = 30, 25
FEWEST = 3e-6  # triplets violating μ, a share: the end of the axis


class Network(nn.Module):
    """Two hidden layers, and an embedding of length 1 in 16 dimensions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32[batch, DIMENSIONS] to float32[batch, 16]."""
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        x = nn.Dense(16)(x)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def batches(overlap: float, epoch: int):
    """The batches of an epoch: `(samples, components)`."""
    means = np.random.default_rng(0).normal(size=(COMPONENTS, DIMENSIONS))
    rng = np.random.default_rng((1, epoch))
    for _ in range(STEPS):
        components = np.repeat(rng.choice(COMPONENTS, P, replace=False), K)
        samples = means[components] + overlap * rng.normal(size=(P * K, DIMENSIONS))
        yield samples.astype(np.float32), components.astype(np.int32)


@functools.cache
def make_step(reduction: str):
    """Network, optimiser and step; compiled once, whatever the margin."""
    network, optimizer = Network(), optax.adam(1e-3)

    def apply(params, batch_stats, samples, *, train, key):
        return network.apply({"params": params}, samples), batch_stats

    step = mj.make_train_step(apply, optimizer, mj.TripletLoss(reduction=reduction), histogram=True)
    return network, optimizer, step


def train(overlap: float, margin: float, reduction: str, epochs: int) -> dict[str, list]:
    """What a training on the mixture comes to, by epoch."""
    (network, optimizer, step), schedule = make_step(reduction), mj.constant(margin)
    params = network.init(jax.random.key(0), np.zeros((1, DIMENSIONS), np.float32))["params"]
    state = mj.create_state(params, {}, optimizer, schedule, jax.random.key(1))
    history = []
    for epoch in range(epochs):
        state, record = mj.train_epoch(state, step, batches(overlap, epoch), schedule)
        history.append(record)
    return {
        "violating": [significant(1 - record.easy_fraction) for record in history],
        "mean_effective": [significant(record.mean_effective) for record in history],
        "quantiles": [[significant(q) for q in record.effective_quantiles] for record in history],
    }


def train_toy(epochs: int) -> Iterator[dict]:
    """Every overlap, margin and reduction of the mixture."""
    for overlap, reduction, margin in itertools.product(OVERLAPS, REDUCTIONS, OF_THE_TOY):
        figures = train(overlap, margin, reduction, epochs)
        print(
            f"overlap {overlap:g}, μ {margin:g}, {reduction}: mean effective margin "
            f"{figures['mean_effective'][-1] / margin:.1f} μ, "
            f"{figures['violating'][-1]:.2%} violate it",
            flush=True,
        )
        yield {"overlap": overlap, "margin": margin, "reduction": reduction, **figures}


# By title and reduction: of every run the share violating μ and the mean effective margin by epoch,
# and μ.
Curves = dict[str, dict[str, list[tuple[np.ndarray, np.ndarray, float]]]]


def read_curves(toy: list[dict], folder: Path) -> Curves:
    """Those of the mixture, and of the constant margins among the cells in a folder."""
    curves: Curves = {}
    for run in toy:
        place = curves.setdefault(f"mixture, overlap {run['overlap']:g}", {})
        figures = np.array(run["violating"]), np.array(run["mean_effective"])
        place.setdefault(run["reduction"], []).append((*figures, run["margin"]))
    for cell in (cell for own in cell_files.read_all(folder) for cell in own.values()):
        epochs, name = cell["epochs"], cell["dataset"]
        margin = epochs["margin"][0]
        constant = cell["schedule"].startswith("constant:") and margin in MARGINS
        # The seeds that every margin was trained on.
        if constant and cell["seed"] in TUNING_SEEDS:
            place = curves.setdefault(NAMES[name], {reduction: [] for reduction in REDUCTIONS})
            figures = 1 - np.array(epochs["easy_fraction"]), np.array(epochs["mean_effective"])
            place[cell["reduction"]].append((*figures, margin))
    return curves


def plot_bands(toy: list[dict]) -> Figure:
    """Effective margins of the toy by epoch against μ, for every overlap and reduction."""
    figure = Figure(figsize=(10, 5.6), dpi=130, layout="constrained")
    grid = figure.subplots(len(REDUCTIONS), len(OVERLAPS), sharex=True, sharey=True, squeeze=False)
    for row, reduction in enumerate(REDUCTIONS):
        for column, overlap in enumerate(OVERLAPS):
            axes = grid[row, column]
            wanted = {"overlap": overlap, "margin": 0.2, "reduction": reduction}
            (run,) = [run for run in toy if wanted.items() <= run.items()]
            quantiles = np.array(run["quantiles"]).T
            epochs = 1 + np.arange(quantiles.shape[1])
            axes.margins(x=0)
            draw_quantiles(axes, epochs, quantiles)
            axes.plot(epochs, quantiles[3], color=BLUE, label="median")
            axes.axhline(0.2, color=ORANGE, label="μ = 0.2")
            axes.axhline(0, color=GREY, lw=0.8)
            tidy(axes)
            if row == 0:
                axes.set_title(f"overlap {overlap:g}", fontsize="medium")
            if column == 0:
                axes.set_ylabel(f"{reduction}\nd(a,n) − d(a,p)")
            text = f"{run['violating'][-1]:.1%} still below μ"
            axes.text(0.97, 0.04, text, transform=axes.transAxes, ha="right", color=ORANGE)
    grid[0, 0].set_ylim(bottom=grid[0, 0].get_ylim()[0] - 0.35)  # for the words
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(EpochLocator())
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=5, frameon=False)
    return figure


def plot_growth(curves: Curves) -> Figure:
    """The mean effective margin in units of μ, against the share of triplets that violate μ."""
    figure = Figure(figsize=(0.8 + 1.3 * len(curves), 6.0), dpi=130, layout="constrained")
    grid = figure.subplots(len(REDUCTIONS), len(curves), sharex=True, sharey=True, squeeze=False)
    for column, (title, by_reduction) in enumerate(curves.items()):
        for row, reduction in enumerate(REDUCTIONS):
            axes = grid[row, column]
            for violating, mean, margin in by_reduction.get(reduction, []):
                colour = PALETTE[MARGINS.index(margin)]
                shown = violating > 0  # the axis is logarithmic
                axes.plot(violating[shown], (mean / margin)[shown], color=colour, lw=1.2, alpha=0.8)
                axes.plot(violating[shown][-1], (mean / margin)[shown][-1], "o", color=colour, ms=3)
            axes.axhline(1, color="black", lw=0.8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            tidy(axes)
            if row == 0:
                axes.set_title(title.replace(", ", ",\n"), fontsize="medium")
            if column == 0:
                axes.set_ylabel(f"{reduction}\nmean effective margin / μ")
    grid[0, 0].set_xlim(1, FEWEST)  # training goes from left to right
    grid[0, 0].set_xticks([1, 1e-2, 1e-4])
    figure.supxlabel("share of triplets that violate μ", fontsize="medium")
    lines = [grid[0, 0].plot([], [], color=PALETTE[i])[0] for i in range(len(MARGINS))]
    names = [f"μ = {margin:g}" for margin in MARGINS]
    figure.legend(lines, names, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


def plot_stop(curves: Curves) -> Figure:
    """How much the mean effective margin grows in an epoch, against the share violating μ."""
    figure = Figure(figsize=(0.8 + 1.3 * len(curves), 3.6), dpi=130, layout="constrained")
    grid = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, by_reduction) in zip(grid, curves.items(), strict=True):
        for colour, (reduction, runs) in zip((GREEN, ORANGE), by_reduction.items(), strict=True):
            if not runs:
                continue
            x = np.concatenate([violating[1:] for violating, _, _ in runs])
            y = np.concatenate([np.diff(mean) / mean[:-1] for _, mean, _ in runs])
            axes.plot(x, 100 * y, ".", color=colour, ms=3, alpha=0.35)
            edges = np.geomspace(1e-5, 1, 11)
            middles = np.sqrt(edges[1:] * edges[:-1])
            inside = [(x >= low) & (x < high) for low, high in itertools.pairwise(edges)]
            medians = [100 * np.median(y[i]) if i.sum() >= 5 else np.nan for i in inside]
            axes.plot(middles, medians, "-", color=colour, lw=2, label=reduction)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xscale("log")
        axes.set_title(title.replace(", ", ",\n"), fontsize="medium")
        tidy(axes)
    figure.supxlabel("share of triplets that violate μ, whatever μ is", fontsize="medium")
    grid[0].set_xlim(1, FEWEST)
    grid[0].set_xticks([1, 1e-2, 1e-4])
    grid[0].set_ylim(-5, 30)
    grid[0].set_ylabel("growth in an epoch (%)")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return figure


def settled(mean: np.ndarray) -> int | None:
    """The epoch, counted from 0, since which the mean growth of five is below 1 %."""
    growth = (mean[5:] / mean[:-5]) ** (1 / 5) - 1
    quick = np.flatnonzero(growth >= 0.01)
    since = 5 + int(quick[-1]) + 1 if len(quick) else 5
    return since if since < len(mean) else None


def table(curves: Curves) -> str:
    """Where every constant margin ended, and when its effective margins hardly grew any more."""
    lines = [
        "| data | reduction | μ | violating μ, first → last epoch | mean effective margin / μ, "
        "first → last epoch | grows by less than 1 % an epoch since | violating μ then |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, by_reduction in curves.items():
        for reduction, runs in by_reduction.items():
            for margin in MARGINS:
                own = [(v, m) for v, m, its in runs if its == margin]
                if not own:
                    continue
                violating, mean = (np.mean(curve, axis=0) for curve in zip(*own, strict=True))
                epochs = [(settled(m), v) for v, m in own]
                unsettled = "not yet" if len(mean) > 5 else "too short"
                when = [str(i + 1) if i is not None else unsettled for i, _ in epochs]
                then = [f"{v[i]:.2%}" if i is not None else "–" for i, v in epochs]
                lines.append(
                    f"| {title} | {reduction} | {margin:g} | "
                    f"{violating[0]:.1%} → {violating[-1]:.2%} | "
                    f"{mean[0] / margin:.1f} → {mean[-1] / margin:.1f} | "
                    f"{', '.join(when)} | {', '.join(then)} |"
                )
    return "\n".join(lines)


def markdown(curves: Curves, before: str) -> str:
    """The words of an earlier file, or at first what this one does, and the figures."""
    words = first_words(before, __doc__)
    pictures = [f"![{name}](effective_margin_{name}.png)" for name in ("toy", "growth", "stop")]
    return "\n\n".join([words, *pictures, table(curves)]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=Path, default=RESULTS / "cells")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the toy")
    parser.add_argument("--report", action="store_true", help="only from what is trained already")
    arguments = parser.parse_args(argv)

    arguments.out.mkdir(parents=True, exist_ok=True)
    trained = arguments.out / "effective_margin.json"
    if not arguments.report:
        toy = list(train_toy(arguments.epochs))
        trained.write_text("[\n" + ",\n".join(map(json.dumps, toy)) + "\n]\n", encoding="utf-8")
    elif not trained.exists():
        parser.error(f"--report reads {trained}, which is not there: run it without")
    toy = json.loads(trained.read_text(encoding="utf-8"))
    curves = read_curves(toy, arguments.cells)
    plot_bands(toy).savefig(arguments.out / "effective_margin_toy.png")
    plot_growth(curves).savefig(arguments.out / "effective_margin_growth.png")
    plot_stop(curves).savefig(arguments.out / "effective_margin_stop.png")
    write_page(arguments.out / "effective_margin.md", lambda before: markdown(curves, before))


if __name__ == "__main__":
    main()
