"""Commands that train: one run, or a comparison of margin schedules."""

import contextlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margin_jax.cli.options import config_options
from margin_jax.config import TrainConfig
from margin_jax.files import local_path
from margin_jax.report_lines import HEADER, figures, report_rows, training_line
from margin_jax.schedules import SCHEDULES
from margin_jax.spec import split_specs

if TYPE_CHECKING:
    from margin_jax.run import Run

# Fewer than a run of its own: nine cells on glyphs then take some minutes.
COMPARE_EPOCHS = 10
# A share of the training time that is worth saying.
_WAIT = 0.05


def _process(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Process")


_CACHE = "A folder that keeps compiled programs, so that the next run begins to train at once."


@config_options()
def train(
    *,
    coordinator: Annotated[
        str | None,
        _process("HOST:PORT of process 0, for a job of several processes that nobody announces."),
    ] = None,
    processes: Annotated[int | None, _process("How many processes the job has.")] = None,
    process: Annotated[int | None, _process("Which of them this is, from 0.")] = None,
    multihost: Annotated[
        bool,
        typer.Option(
            "--multihost",
            help="Let JAX find the other hosts, on a TPU pod. Slurm, Open MPI and TPU slices on "
            "Kubernetes are noticed without it.",
            rich_help_panel="Process",
        ),
    ] = False,
    compilation_cache: Annotated[str | None, _process(_CACHE)] = None,
    debug_nans: Annotated[
        bool,
        typer.Option(
            "--debug-nans",
            help="Stop at the operation that first gives NaN, and name it. Slow.",
            rich_help_panel="Process",
        ),
    ] = False,
    **given: Any,
) -> None:
    """Train a Siamese network and verify it on identities it has never seen.

    Without options: letters of the embedded glyphs dataset, with the margin moved by DAMS, in two
    to three minutes on two cores. The run folder then holds the configuration, a record of every
    epoch, the report, the pictures and the weights.

    Your own images: margin-jax train --dataset folder --data-dir FOLDER

    Exits with 0 when the run is finished, 1 when it diverged, 2 for what can not be done, 130 after
    Ctrl-C, and 143 after SIGTERM, when its place is saved.
    """
    import jax  # and flax and orbax: not needed for --help

    from margin_jax import multihost as job
    from margin_jax.run import CONFIG, is_vacant, read_config
    from margin_jax.training import fit

    job.start(coordinator, processes, process, detect=multihost)
    _cache_compilations(compilation_cache)

    # What is given belongs to the run that goes on, and may make no sense without the rest of it.
    resume = given.get("resume", False)
    folder = (
        local_path("out", given["out"])
        if resume and "out" in given
        else TrainConfig(**given).folder
    )
    if resume and (folder / CONFIG).is_file():  # a kill can come before it is written
        config = read_config(folder).replace(**{"out": str(folder), **given})
    else:
        config = TrainConfig(**given)
        if resume and is_vacant(folder) and job.is_first():
            typer.echo(f"margin-jax: no run in {folder} to resume: a new one begins", err=True)
    command = f"margin-jax train --out {shlex.quote(str(folder))} --resume"
    # They decide nothing, so no run saves them.
    for name in ("memory_limit", "manual_dir", "devices", "checkpoint_steps"):
        if name in given:
            command += f" --{name.replace('_', '-')} {shlex.quote(str(given[name]))}"
    if jax.process_count() > 1:
        command = "the same command for every process, with --resume"
    # In the context of this thread: a global one is forgotten once any code has left its own.
    watched = jax.debug_nans(True) if debug_nans else contextlib.nullcontext()
    with _saying_how_to_go_on(command, config), watched:
        run = fit(config, progress=True)
    if job.is_first():
        typer.echo(summary(run))


@config_options(
    without=("schedule", "seed", "resume", "allow_changes"),
    epochs=COMPARE_EPOCHS,
    out="runs/compare-DATASET",
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
    compilation_cache: Annotated[str | None, _process(_CACHE)] = None,
    **given: Any,
) -> None:
    """Compare margin schedules over several seeds, on shared splits and pairs.

    Leaves a table with 95 % intervals and differences paired by seed, a picture, and a run folder
    for every cell. The same command again goes on where it stopped.

    Tuned constants beside DAMS: margin-jax compare --schedules constant:0.05,constant:0.2,dams
    """
    from margin_jax import comparison

    _cache_compilations(compilation_cache)
    given = {"epochs": COMPARE_EPOCHS, **given}
    config = comparison.with_folder(TrainConfig(**given))
    names = list(SCHEDULES) if schedules == "all" else split_specs(schedules)

    def on_cell(schedule: str, seed: int, report: dict[str, Any]) -> None:
        typer.echo(f"{schedule}, seed {seed}: test AUC {report['test']['auc']:.4f}")

    with _saying_how_to_go_on("the same command without --overwrite", config):
        compared = comparison.compare(config, names, range(seeds), on_cell=on_cell, progress=True)
    typer.echo(f"\n{compared.table()}\n\nalso in {config.folder}: comparison.md, .json, .png")


def _cache_compilations(folder: str | None) -> None:
    if folder is not None:
        import jax

        path = local_path("compilation_cache", folder).absolute()
        jax.config.update("jax_compilation_cache_dir", str(path))
        # Every program, not only the slow ones: a run has many small ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def _saying_how_to_go_on(command: str, config: TrainConfig) -> Iterator[None]:
    from margin_jax.training import Preempted

    try:
        yield
    except KeyboardInterrupt:
        said = f"what was finished is in {config.folder}; go on with: {command}"
        if not config.folder.is_dir():  # still loading
            said = "nothing was saved yet"
        typer.echo(f"\nInterrupted: {said}", err=True)
        raise typer.Exit(130) from None
    except Preempted as preempted:
        typer.echo(
            f"\nStopped by SIGTERM {preempted.when}, all of it saved in {config.folder}; go on "
            f"with: {command}",
            err=True,
        )
        raise


def summary(run: "Run") -> str:
    """What a person wants to know of a finished run."""
    test = run.report["test"]
    lines = [
        "",
        training_line(run.report, run.history),
        "",
        HEADER,
        *(figures(name, report) for name, report in report_rows(test)),
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
    if left_out := len(run.data.get("left_out", [])):
        lines.append(f"{left_out} file(s) or folder(s) left out: {run.path / 'data.json'}")
    lines += run.data.get("notes", [])
    return "\n".join(lines)
