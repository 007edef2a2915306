"""The command line: options from the fields of a configuration; one line for what goes wrong."""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from margin_jax.config import Option, TrainConfig

app = typer.Typer(
    name="margin-jax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def margin_jax() -> None:
    """Triplet learning and verification in JAX, with margins that adapt while training."""


def config_options(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for every field of a configuration: type, default and help.

    The command receives, as keywords, only what was given on the command line.
    """
    hints = get_type_hints(config, include_extras=True)

    def parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
        kind, option = hints[field.name].__origin__, hints[field.name].__metadata__[0]
        assert isinstance(option, Option)
        # Else typer would offer --no-strict and the like, which say nothing more.
        names = [f"--{field.name.replace('_', '-')}"] if kind is bool else []
        shown = typer.Option(*names, help=option.help, rich_help_panel=option.panel)
        return inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[kind, shown],
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_options(context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            given = {
                name: value
                for name, value in values.items()
                if (source := sources[name]) is not None and source.name == "COMMANDLINE"
            }
            command(**given)

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        fields = [parameter(field) for field in dataclasses.fields(config)]
        with_options.__signature__ = inspect.Signature([context, *fields])  # type: ignore[attr-defined]
        with_options.__annotations__ = {}
        paragraphs = (command.__doc__ or "").split("\n\n")  # typer would keep the line breaks
        with_options.__doc__ = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        with_options.__name__ = command.__name__
        return with_options

    return decorate


@app.command()
@config_options(TrainConfig)
def train(**given: Any) -> None:
    """Train a Siamese network and verify it on identities it has never seen.

    Without options: letters of the embedded glyphs dataset, with the margin moved by DAMS, in about
    two minutes on two cores. The run folder then holds the configuration, a record of every epoch,
    the report, the pictures and the weights.

    Your own images: margin-jax train --dataset folder --data-dir FOLDER
    """
    from margin_jax.run import read_config  # jax, flax and orbax: not needed for --help
    from margin_jax.training import fit

    config = TrainConfig(**given)
    if config.resume and (config.folder / "config.json").is_file():
        config = read_config(config.folder).replace(**{"out": str(config.folder), **given})
    typer.echo(f"run folder: {config.folder}")
    try:
        run = fit(config, progress=True)
    except KeyboardInterrupt:
        typer.echo(
            f"\nInterrupted. Every finished epoch is in {config.folder}; go on with: "
            f"margin-jax train --out {config.folder} --resume",
            err=True,
        )
        raise typer.Exit(130) from None
    typer.echo(summary(run))


def summary(run: "Any") -> str:
    """What a person wants to know of a finished run."""
    test, last = run.report["test"], run.history[-1]
    raw = test["raw_pixels"]

    def line(name: str, figures: dict[str, Any]) -> str:
        pairs = figures["same_pairs"] + figures["different_pairs"]
        return (
            f"  {name:<22}{figures['auc']:8.4f}{figures['eer']:8.2%}{figures['accuracy']:10.2%}"
            f"{figures['tpr_at_fpr']['0.01']:14.2%}{pairs:10,}"
        )

    lines = [
        "",
        f"best epoch {run.report['best_epoch']} of {run.report['epochs']}; margin "
        f"{run.history[0]['margin']:.2f} -> {last['margin']:.2f}; easy triplets "
        f"{run.history[0]['easy_fraction']:.1%} -> {last['easy_fraction']:.1%}",
        "",
        "  test identities            AUC     EER  accuracy  TPR@FPR 0.01     pairs",
        line("embedding", test),
        line("  published number", test["published"]),
        *([line("  hard pairs", test["hard"])] if "hard" in test else []),
        line("raw pixels", raw),
        *([line("  hard pairs", raw["hard"])] if "hard" in raw else []),
        "",
        *(f"  note: {warning}" for warning in test["warnings"]),
        f"threshold {test['threshold']:.4f}, chosen on validation; "
        f"report, pictures and weights: {run.path}",
    ]
    skipped = len(run.data["skipped"])
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
