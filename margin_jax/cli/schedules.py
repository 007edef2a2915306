"""The commands ``schedules``: list the margin schedules, or plot how they act."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import Command, Group, check_out, path_option, save_picture
from margin_jax.schedules import ALONE, SCHEDULES

app = typer.Typer(cls=Group)


@app.callback(invoke_without_command=True)
def list_schedules(context: typer.Context) -> None:
    """List the margin schedules and their parameters, or plot them."""
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
        "\nUse one as --schedule NAME, NAME:MARGIN or NAME:KEY=VALUE,KEY=VALUE. Parameters shown "
        "without a value are options of train; margins are one for each epoch, as in "
        "replay:0.2/0.3.\nTo plot them: margin-jax schedules plot"
    )


@app.command("plot", cls=Command)
def plot_schedules(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME, NAME:MARGIN or NAME:KEY=VALUE,...; several are allowed. Default: all.",
            metavar="SCHEDULE",
        ),
    ] = None,
    stimulus: Annotated[
        str | None, typer.Option(help="The simulated training: step (default), ramp or saturation.")
    ] = None,
    history: Annotated[
        Path | None,
        path_option("Use the effective margins of this run instead: its folder or history.jsonl."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the simulated training. Default: 40.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="The margin in the first epoch, for schedules given without one.")
    ] = 0.2,
    margin_end: Annotated[
        float, typer.Option(help="The margin in the last epoch, for schedules that have one.")
    ] = 1.0,
    out: Annotated[Path, path_option("The image file to write.")] = Path("schedules.png"),
) -> Path:
    """Plot how margin schedules respond to a simulated training, or to a recorded run.

    The effective margins of each epoch are taken as normally distributed, with the mean and spread
    of the simulation or the run. They do not react to the margin, so the plot shows what a schedule
    does, not whether it helps.
    """
    from margin_jax import plots
    from margin_jax.runs.folder import HISTORY, read_history
    from margin_jax.schedules import make_schedule, response

    check_out(out, history, picture=True)
    for option, given in (("stimulus", stimulus), ("epochs", epochs)):
        if history is not None and given is not None:
            raise ValueError(f"--{option} and --history cannot be used together")
    if history is None:
        stimulus = stimulus or "step"
        world = response.stimulus(stimulus, 40 if epochs is None else epochs)
        words, _ = response.STIMULI[stimulus]
        title = f"{stimulus.capitalize()}: easy at margin {response.REFERENCE}: {words}"
    else:
        folder = history.parent if history.name == HISTORY else history
        records = read_history(folder)
        if not records:
            raise ValueError(f"no epochs in {folder / HISTORY}")
        world, title = response.recorded(records), f"Effective margins as in {folder}"
    defaults = {"margin": margin, "margin_end": margin_end, "epochs": len(world.mean)}
    responses = {
        name: response.respond(make_schedule(name, defaults), world) for name in names or ALONE
    }
    save_picture(plots.plot_responses(responses, title), out)
    for name, answer in responses.items():
        typer.echo(
            f"{name:<22} margin {answer.margin[0]:.3f} -> {answer.margin[-1]:.3f}, "
            f"easy {answer.easy_fraction[-1]:.1%} at the end"
        )
    typer.echo(f"{out}")
    return out
