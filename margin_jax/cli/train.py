"""The command ``train``, and what other commands that train say alike."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margin_jax.cli.options import config_options
from margin_jax.config import TrainConfig
from margin_jax.evaluation.tables import (
    HEADER,
    certainty,
    figures,
    for_rate,
    report_rows,
    training_line,
)
from margin_jax.files import local_path

if TYPE_CHECKING:
    from margin_jax.runs.run import Run

# A share of the training time that is worth saying.
_WAIT = 0.05


def process_option(help: str) -> Any:
    """An option of the process rather than of what it trains."""
    return typer.Option(help=help, rich_help_panel="Process")


CACHE = "A folder for compiled programs; the next run reads them instead of compiling."


@config_options()
def train(
    *,
    coordinator: Annotated[
        str | None,
        process_option(
            "HOST:PORT of process 0, for a job of several processes without a known launcher."
        ),
    ] = None,
    processes: Annotated[int | None, process_option("The number of processes in the job.")] = None,
    process: Annotated[int | None, process_option("The number of this process, from 0.")] = None,
    multihost: Annotated[
        bool,
        typer.Option(
            "--multihost",
            help="On a TPU pod, let JAX find the other hosts. Not needed with Slurm, Open MPI or "
            "TPU slices on Kubernetes.",
            rich_help_panel="Process",
        ),
    ] = False,
    compilation_cache: Annotated[str | None, process_option(CACHE)] = None,
    debug_nans: Annotated[
        bool,
        typer.Option(
            "--debug-nans",
            help="Stop at the first operation that gives NaN, and name it. Slow.",
            rich_help_panel="Process",
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write each epoch's scalars and the final plots for TensorBoard, to the "
            "subfolder tensorboard of the run.",
            rich_help_panel="Process",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Print only warnings and errors.", rich_help_panel="Process"),
    ] = False,
    **given: Any,
) -> Path:
    """Train a Siamese network and verify it on identities it has never seen.

    Without options it trains on letters (the included glyphs dataset) with the DAMS schedule, in
    a minute or two on two cores. The run folder then holds the configuration, a record of
    each epoch, the report, the plots and the weights.

    Your own images: margin-jax train --dataset folder --data-dir FOLDER

    Exit status: 0 when the run is finished, 1 when it diverged, 2 for invalid input, 130 after
    Ctrl-C, and 143 after SIGTERM, once a checkpoint is saved.
    """
    import jax  # and flax and orbax: not needed for --help

    from margin_jax.devices import jobs as job
    from margin_jax.runs.fit import fit
    from margin_jax.runs.folder import CONFIG, is_vacant, read_config
    from margin_jax.runs.load import load_run
    from margin_jax.runs.resume import is_finished
    from margin_jax.runs.tensorboard import TensorBoard

    job.start(coordinator, processes, process, detect=multihost)
    cache_compilations(compilation_cache)

    # What is given belongs to the run that goes on, and may make no sense without the rest of it.
    resume = given.get("resume", False)
    folder = (
        local_path("out", given["out"])
        if resume and "out" in given
        else TrainConfig(**given).folder
    )
    job.check_joined()
    if resume and (folder / CONFIG).is_file():  # a kill can come before it is written
        config = read_config(folder).replace(**{"out": str(folder), **given})
    else:
        config = TrainConfig(**given)
        if resume and is_vacant(folder) and job.is_first():
            typer.echo(f"margin-jax: no run in {folder} to resume: a new one begins", err=True)
    if resume and jax.process_count() == 1 and is_finished(config):
        if not quiet:
            run = load_run(folder)
            more = ", but with a larger --patience and --allow-changes it goes on"
            left = more if len(run.history) < config.epochs else ""
            typer.echo(f"the run in {folder} is finished; there is nothing to do{left}")
            typer.echo(summary(run))
        return folder
    log = TensorBoard(config.folder) if tensorboard and job.is_first() else None
    command = f"margin-jax train --out {shlex.quote(str(folder))} --resume"
    # They decide nothing, so no run saves them.
    for name in ("memory_limit", "manual_dir", "devices", "checkpoint_steps"):
        if name in given:
            command += f" --{name.replace('_', '-')} {shlex.quote(str(given[name]))}"
    command += " --tensorboard" if tensorboard else ""
    if jax.process_count() > 1:
        command = "the same command for every process, with --resume"
    # In the context of this thread: a global one is forgotten once any code has left its own.
    watched = jax.debug_nans(True) if debug_nans else contextlib.nullcontext()
    with saying_how_to_go_on(command, config), watched:
        run = fit(config, progress=not quiet, on_epoch=None if log is None else log.on_epoch)
    if log is not None:
        log.finish()
    if job.is_first() and not quiet:
        typer.echo(summary(run))
    return run.path


def cache_compilations(folder: str | None) -> None:
    """Keeps compiled programs in a folder, if one is given."""
    if folder is not None:
        import jax

        path = local_path("compilation_cache", folder).absolute()
        jax.config.update("jax_compilation_cache_dir", str(path))
        # Every program, not only the slow ones: a run has many small ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def saying_how_to_go_on(command: str, config: TrainConfig) -> Iterator[None]:
    """Names the command that goes on, should the training be interrupted."""
    from margin_jax.runs.fit import Preempted

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


def _no_gain(test: dict[str, Any]) -> tuple[str, ...]:
    """A note if the network verifies no better than its input does."""
    if not test["raw"] or test["auc"] > test["raw"]["auc"]:
        return ()
    return (
        "the network is no better than the raw values: train longer, augment, or begin with "
        "pretrained weights or features",
    )


def summary(run: "Run") -> str:
    """What a person wants to know of a finished run."""
    test = run.report["test"]
    lines = [
        "",
        training_line(run.report, run.history),
        "",
        HEADER,
        *(figures(name, report) for name, report in report_rows(test)),
        *(f"  {line}" for line in certainty(test)),
        "",
        *(f"  note: {warning}" for warning in (*test["warnings"], *_no_gain(test))),
        f"threshold {test['threshold']:.4f}, chosen on validation{for_rate(run.config.fmr)}; "
        f"report, pictures and weights: {run.path}",
    ]
    what = "images" if run.embeds_pictures else "examples"
    if stopped := run.report.get("stopped_early"):
        lines.insert(
            2,
            f"stopped early, after {stopped['patience']} epochs without a better one; "
            f"{stopped['of_epochs']} were planned",
        )
    coverage, skipped = run.data["coverage"], len(run.data["skipped"])
    lines.insert(
        1,
        f"the first epoch trained on {coverage['used']:,} of {coverage['images']:,} training "
        f"{what}: {coverage['small']:,} belong to identities with too few, {coverage['left']:,} "
        "were left over",
    )
    waited = [record["data_wait"] * record["seconds"] for record in run.history]
    share = sum(waited) / sum(record["seconds"] for record in run.history)
    if share >= _WAIT:
        lines.append(f"training waited for {what} {share:.0%} of the time")
    if skipped:
        lines.append(f"{skipped} unreadable file(s) skipped: {run.path / 'data.json'}")
    if left_out := len(run.data.get("left_out", [])):
        lines.append(f"{left_out} file(s) or folder(s) left out: {run.path / 'data.json'}")
    lines += run.data.get("notes", [])
    return "\n".join(lines)
