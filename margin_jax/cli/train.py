"""Commands that train: one run, or a comparison of margin schedules."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margin_jax.cli.options import config_options
from margin_jax.cli.report_lines import HEADER, figures
from margin_jax.config import TrainConfig, as_file_name
from margin_jax.schedules import SCHEDULES
from margin_jax.schedules.spec import split_specs

if TYPE_CHECKING:
    from margin_jax.run import Run

# Fewer than a run of its own: nine cells on glyphs then take some minutes.
COMPARE_EPOCHS = 10
# A share of the training time that is worth saying.
_WAIT = 0.05


@config_options()
def train(**given: Any) -> None:
    """Train a Siamese network and verify it on identities it has never seen.

    Without options: letters of the embedded glyphs dataset, with the margin moved by DAMS, in about
    two minutes on two cores. The run folder then holds the configuration, a record of every epoch,
    the report, the pictures and the weights.

    Your own images: margin-jax train --dataset folder --data-dir FOLDER
    """
    from margin_jax.run import is_run, read_config  # jax, flax and orbax: not needed for --help
    from margin_jax.training import fit

    # What is given belongs to the run that goes on, and may make no sense without the rest of it.
    resume = given.get("resume", False)
    folder = Path(given["out"]) if resume and "out" in given else TrainConfig(**given).folder
    if resume and is_run(folder):
        config = read_config(folder).replace(**{"out": str(folder), **given})
    else:
        config = TrainConfig(**given)
    command = f"margin-jax train --out {shlex.quote(str(folder))} --resume"
    for name in ("memory_limit", "manual_dir", "devices"):  # decide nothing, so no run saves them
        if name in given:
            command += f" --{name.replace('_', '-')} {shlex.quote(str(given[name]))}"
    with _saying_how_to_go_on(command, config):
        run = fit(config, progress=True)
    typer.echo(summary(run))


@config_options(
    without=("schedule", "seed", "resume"), epochs=COMPARE_EPOCHS, out="runs/compare-DATASET"
)
def compare(
    *,
    schedules: Annotated[
        str,
        typer.Option(
            help="Separated by commas: names, NAME:MARGIN to set the first epoch's margin, or "
            "NAME:KEY=VALUE,KEY=VALUE. all: every one that `margin-jax schedules` lists.",
            rich_help_panel="Comparison",
        ),
    ] = "constant,linear,dams",
    seeds: Annotated[
        int, typer.Option(help="How many: 0, 1, ...", rich_help_panel="Comparison")
    ] = 3,
    **given: Any,
) -> None:
    """Compare margin schedules over several seeds, on shared splits and pairs.

    Leaves a table with 95 % intervals and differences paired by seed, a picture, and a run folder
    for every cell. The same command again goes on where it stopped.

    Tuned constants beside DAMS: margin-jax compare --schedules constant:0.05,constant:0.2,dams
    """
    from margin_jax import comparison

    given = {"epochs": COMPARE_EPOCHS, **given}
    given.setdefault("out", f"runs/compare-{as_file_name(given.get('dataset', 'glyphs'))}")
    config, names = (
        TrainConfig(**given),
        list(SCHEDULES) if schedules == "all" else split_specs(schedules),
    )

    def on_cell(schedule: str, seed: int, report: dict[str, Any]) -> None:
        typer.echo(f"{schedule}, seed {seed}: test AUC {report['test']['auc']:.4f}")

    with _saying_how_to_go_on("the same command without --overwrite", config):
        compared = comparison.compare(config, names, range(seeds), on_cell=on_cell, progress=True)
    typer.echo(f"\n{compared.table()}\n\nalso in {config.folder}: comparison.md, .json, .png")


@contextlib.contextmanager
def _saying_how_to_go_on(command: str, config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        said = f"every finished epoch is in {config.folder}; go on with: {command}"
        if not config.folder.is_dir():  # still loading
            said = "nothing was saved yet"
        typer.echo(f"\nInterrupted: {said}", err=True)
        raise typer.Exit(130) from None


def summary(run: "Run") -> str:
    """What a person wants to know of a finished run."""
    test, last = run.report["test"], run.history[-1]
    raw = test["raw_pixels"]
    lines = [
        "",
        f"best epoch {run.report['best_epoch']} of {run.report['epochs']}; margin "
        f"{run.history[0]['margin']:.2f} -> {last['margin']:.2f}; easy triplets "
        f"{run.history[0]['easy_fraction']:.1%} -> {last['easy_fraction']:.1%}",
        "",
        HEADER,
        figures("embedding", test),
        figures("  published number", test["published"]),
        *([figures("  hard pairs", test["hard"])] if "hard" in test else []),
        *([figures("raw pixels", raw)] if raw else []),
        *([figures("  hard pairs", raw["hard"])] if raw and "hard" in raw else []),
        "",
        *(f"  note: {warning}" for warning in test["warnings"]),
        f"threshold {test['threshold']:.4f}, chosen on validation; "
        f"report, pictures and weights: {run.path}",
    ]
    coverage, skipped = run.data["coverage"], len(run.data["skipped"])
    lines.insert(
        1,
        f"the first epoch trained on {coverage['used']:,} of {coverage['images']:,} training "
        f"images: {coverage['small']:,} belong to identities with too few, {coverage['left']:,} "
        "were left over",
    )
    waited = [record["data_wait"] * record["seconds"] for record in run.history]
    share = sum(waited) / sum(record["seconds"] for record in run.history)
    if share >= _WAIT:
        lines.append(f"training waited for images {share:.0%} of the time")
    if skipped:
        lines.append(f"{skipped} unreadable file(s) skipped: {run.path / 'data.json'}")
    return "\n".join(lines)
