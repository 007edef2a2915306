"""The command line: options from the fields of a configuration; one line for what goes wrong."""

import contextlib
import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from margin_jax.config import TrainConfig
from margin_jax.schedules import SCHEDULES
from margin_jax.schedules.spec import split_specs

if TYPE_CHECKING:
    from margin_jax.run import Run

# Fewer than a run of its own: nine cells on glyphs then take some minutes.
COMPARE_EPOCHS = 10

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

app = typer.Typer(
    name="margin-jax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def margin_jax() -> None:
    """Triplet learning and verification in JAX, with margins that adapt while training."""


def config_options(*, without: Sequence[str] = (), **defaults: Any) -> Decorator:
    """Gives a command an option for every field of :class:`TrainConfig`: type, default and help.

    The command receives, as keywords, its own parameters and those options that were given on the
    command line.

    Args:
        without: fields that the command does not have.
        defaults: shown instead of the fields' own; the command has to apply them.
    """
    hints = get_type_hints(TrainConfig, include_extras=True)
    fields = [field for field in dataclasses.fields(TrainConfig) if field.name not in without]

    def parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
        kind, option = hints[field.name].__origin__, hints[field.name].__metadata__[0]
        # Else typer would offer --no-strict and the like, which say nothing more.
        names = [f"--{field.name.replace('_', '-')}"] if kind is bool else []
        shown = typer.Option(*names, help=option.help, rich_help_panel=option.panel)
        return inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=Annotated[kind, shown],
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]

        def with_options(context: typer.Context, **values: Any) -> None:
            for field in fields:
                source = context.get_parameter_source(field.name)
                if source is None or source.name != "COMMANDLINE":
                    del values[field.name]
            command(**values)

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [context, *own, *map(parameter, fields)]
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {}
        paragraphs = (command.__doc__ or "").split("\n\n")  # typer would keep the line breaks
        with_options.__doc__ = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        with_options.__name__ = command.__name__
        return with_options

    return decorate


@app.command()
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

    config = TrainConfig(**given)
    if config.resume and is_run(config.folder):
        config = read_config(config.folder).replace(**{"out": str(config.folder), **given})
    with _saying_how_to_go_on(
        f"margin-jax train --out {shlex.quote(str(config.folder))} --resume", config
    ):
        run = fit(config, progress=True)
    typer.echo(summary(run))


@app.command()
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
    given.setdefault("out", f"runs/compare-{given.get('dataset', 'glyphs')}")
    config, names = (
        TrainConfig(**given),
        list(SCHEDULES) if schedules == "all" else split_specs(schedules),
    )

    def on_cell(schedule: str, seed: int, report: dict[str, Any]) -> None:
        typer.echo(f"{schedule}, seed {seed}: test AUC {report['test']['auc']:.4f}")

    with _saying_how_to_go_on("the same command without --overwrite", config):
        compared = comparison.compare(config, names, range(seeds), on_cell=on_cell, progress=True)
    typer.echo(f"\n{compared.table()}\n\nalso in {config.folder}: comparison.md, .json, .png")


schedules_app = typer.Typer()
app.add_typer(schedules_app, name="schedules")


@schedules_app.callback(invoke_without_command=True)
def list_schedules(context: typer.Context) -> None:
    """List the margin schedules and their parameters, or plot how they act."""
    if context.invoked_subcommand is not None:
        return
    for name, factory in SCHEDULES.items():
        shown = [
            key if p.default is p.empty else f"{key}={p.default:g}"
            for key, p in inspect.signature(factory).parameters.items()
        ]
        first, *_ = inspect.getdoc(factory).splitlines()  # type: ignore[union-attr]
        typer.echo(f"{name}: {first}\n    {', '.join(shown)}")
    typer.echo(
        "\nUse one as --schedule NAME, NAME:MARGIN or NAME:KEY=VALUE,KEY=VALUE. Parameters without "
        "a value are options of train.\nHow they act: margin-jax schedules plot"
    )


@schedules_app.command("plot")
def plot_schedules(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME, NAME:MARGIN or NAME:KEY=VALUE,... each. Default: all.", metavar="SCHEDULE"
        ),
    ] = None,
    stimulus: Annotated[
        str | None, typer.Option(help="What they answer to: step (default), ramp or saturation.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Instead: the effective margins of a run, its folder or history.jsonl."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Length of a stimulus.")] = 40,
    margin: Annotated[float, typer.Option(help="In the first epoch, unless a name says so.")] = 0.2,
    margin_end: Annotated[float, typer.Option(help="For those that have one.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("schedules.png"),
) -> None:
    """Draw how margin schedules answer to a standard stimulus, or to a recorded run.

    The effective margins of each epoch are taken as normal, of the stimulus' or the run's mean and
    spread, whatever the margin is: a picture of the rules, not of what they are worth.
    """
    from margin_jax import plots
    from margin_jax.run import HISTORY, read_history
    from margin_jax.schedules import response, spec

    if history is not None and stimulus is not None:
        raise ValueError("they answer to a stimulus or to a history; got both")
    if history is None:
        stimulus = stimulus or "step"
        world = response.stimulus(stimulus, epochs)
        words, _ = response.STIMULI[stimulus]
        title = f"{stimulus.capitalize()}: easy at a margin of {response.REFERENCE} are {words}"
    else:
        folder = history.parent if history.name == HISTORY else history
        records = read_history(folder)
        if not records:
            raise ValueError(f"no epochs in {folder / HISTORY}")
        world, title = response.recorded(records), f"Effective margins as in {folder}"
    defaults = {"margin": margin, "margin_end": margin_end, "epochs": len(world.mean)}
    responses = {
        name: response.respond(spec.make_schedule(name, defaults), world)
        for name in names or SCHEDULES
    }
    plots.plot_responses(responses, title).savefig(out)
    for name, answer in responses.items():
        typer.echo(
            f"{name:<22} margin {answer.margin[0]:.3f} -> {answer.margin[-1]:.3f}, "
            f"easy {answer.easy_fraction[-1]:.1%} at the end"
        )
    typer.echo(f"{out}")


RunFolder = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]


@app.command()
def evaluate(
    run: RunFolder,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Another folder of images for each identity. Default: the run's test."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Lines FIRST,SECOND,1 (same) or 0, the files relative to --data-dir; or LFW's "
            "pairs.txt, reported by its ten folds. Default: drawn from all identities."
        ),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option("--retrieval", help="Also Recall@k and MAP@R of all images of --data-dir."),
    ] = False,
    count: Annotated[int, typer.Option(help="How many pairs to draw at most.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the pairs that are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
) -> None:
    """Verify with a run's best weights and threshold: its saved pairs, or other images."""
    from margin_jax.evaluate import evaluate_listed, evaluate_retrieval, evaluate_run
    from margin_jax.run import load_run, to_json, write_text

    loaded = load_run(run)
    folds, trained_on = None, tuple[str, ...]()
    if pairs is None:
        report = evaluate_run(loaded, data_dir=data_dir, count=count, seed=seed)
    elif data_dir is None:
        raise ValueError("pairs need data_dir, the folder that their files are relative to")
    else:
        report, folds, trained_on = evaluate_listed(loaded, data_dir, pairs)
    said = report.to_json()
    typer.echo("\n".join([HEADER, figures("embedding", said)]))
    if folds is not None:
        said["folds"] = folds.to_json()
        typer.echo(
            f"  {len(folds.accuracies)} folds: accuracy {folds.accuracy:.2%} ± "
            f"{folds.standard_error:.2%} (standard error), each at the others' best threshold"
        )
    if retrieval:
        found = evaluate_retrieval(loaded, data_dir)
        said["retrieval"] = found.to_json()
        recall = ", ".join(f"{share:.2%} @{k}" for k, share in found.recall_at.items())
        typer.echo(f"  retrieval, {found.queries:,} queries in {found.images:,} images: recall")
        typer.echo(f"    {recall}; MAP@R {found.map_at_r:.2%}")
    for warning in report.warnings:
        typer.echo(f"  note: {warning}")
    if trained_on:
        typer.echo(f"  note: the run was trained on {len(trained_on)} identities of these names")
    if out is not None:
        write_text(out, to_json(said, indent=2) + "\n")


@app.command()
def embed(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="A folder of images, nested or not.")],
    out: Annotated[Path, typer.Option(help="Arrays files and embeddings.")] = Path(
        "embeddings.npz"
    ),
) -> None:
    """Write the embeddings of all images in a folder, with their file names, to an npz file."""
    import numpy as np

    from margin_jax.evaluate import embed_folder
    from margin_jax.run import load_run

    files, embeddings, skipped = embed_folder(load_run(run), folder)
    for reason in skipped:
        typer.echo(f"skipped {reason}", err=True)
    with open(out, "wb") as file:
        np.savez_compressed(file, files=np.array(files), embeddings=embeddings)
    typer.echo(f"{len(files)} embeddings of length {embeddings.shape[1]}: {out}")


@app.command()
def verify(
    run: RunFolder,
    first: Annotated[Path, typer.Argument(help="An image.", metavar="IMAGE")],
    second: Annotated[Path, typer.Argument(help="Another image.", metavar="IMAGE")],
) -> None:
    """Are two images of the same identity? Their distance, and the run's threshold."""
    from margin_jax.evaluate import verify_images
    from margin_jax.run import load_run

    loaded = load_run(run)
    distance = verify_images(loaded, first, second)
    answer = "same" if distance <= loaded.threshold else "different"
    typer.echo(f"{answer}: distance {distance:.4f}, threshold {loaded.threshold:.4f}")


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


HEADER = "                             AUC     EER  accuracy  TPR@FPR 0.01     pairs"


def figures(name: str, report: dict[str, Any]) -> str:
    """A line under `HEADER`."""
    pairs = report["same_pairs"] + report["different_pairs"]
    return (
        f"  {name:<22}{report['auc']:8.4f}{report['eer']:8.2%}{report['accuracy']:10.2%}"
        f"{report['tpr_at_fpr']['0.01']:14.2%}{pairs:10,}"
    )


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
        figures("raw pixels", raw),
        *([figures("  hard pairs", raw["hard"])] if "hard" in raw else []),
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
    if skipped:
        lines.append(f"{skipped} unreadable file(s) skipped: {run.path / 'data.json'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command ``margin-jax``. Exits with 2, after one line on what is wrong, for bad input."""
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except typer.TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


def _fail(message: str, status: int) -> None:
    if message:  # none came with the help that a bare `margin-jax` prints
        typer.echo(f"margin-jax: {' '.join(message.split())}", err=True)
    sys.exit(status)
