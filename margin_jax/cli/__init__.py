"""The command line: its commands in order; one line for what goes wrong."""

import contextlib
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from margin_jax import __version__
from margin_jax.cli import (
    compare,
    datasets,
    evaluate,
    export,
    features,
    schedules,
    search,
    train,
    use,
)
from margin_jax.cli.options import ELSEWHERE, Command, Group, name_options
from margin_jax.cli.streams import Shown, hold_streams

# The status of what is no one's input: Python's own, 1, is an answer of `verify`.
_FAULT = 3
_SMALLER = "smaller images, fewer of them in a batch or a smaller network need less"

app = typer.Typer(
    name="margin-jax",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"margin-jax {__version__}")
        raise typer.Exit


_VERSION = typer.Option(
    "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
)


@app.callback()
def margin_jax(version: Annotated[bool, _VERSION] = False) -> None:
    """Triplet learning and verification in JAX, with margins that adapt while training."""


_add = app.command(cls=Command)
_add(train.train)
_add(compare.compare)
_add(features.features)
app.add_typer(schedules.app, name="schedules")
app.add_typer(datasets.app, name="datasets")
_add(evaluate.evaluate)
_add(use.embed)
_add(use.verify)
_add(search.index)
_add(search.search)
_add(search.forget)
_add(export.export)


def main(arguments: list[str] | None = None) -> None:
    """The command ``margin-jax``. Exits with 2, after one line on what is wrong, for bad input.

    What cannot be shown fails nothing that is done: a training goes on, and its status is that of
    the run. A reader that has gone (``| head -1``) wants no more, and nothing is said of it; of a
    disk that is full, say, it is, and the status is 2 where showing was all there was to do.
    """
    hold_streams()
    output, errors = Shown(sys.stdout, 1), Shown(sys.stderr, 2)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        left = _run(arguments)
        output.flush()
        if output.lost is not None and not isinstance(output.lost, BrokenPipeError):
            where = f"; what was done is in {left}" if isinstance(left, Path) else ""
            told = f"standard output cannot be written: {output.lost.strerror}{where}"
            _fail(told, 0 if where else 2)
    sys.exit(left if isinstance(left, int) else 0)


def _run(arguments: list[str] | None) -> Any:
    """An exit status; or where the result is, of a command that leaves one in files."""
    warnings.showwarning = lambda message, *_: typer.echo(
        f"margin-jax: {name_options(str(message))}", err=True
    )
    try:
        return app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        meant = ELSEWHERE.get(getattr(error, "option_name", "").lstrip("-").replace("_", "-"))
        command = getattr(getattr(error, "ctx", None), "command", None)
        known = {option for p in getattr(command, "params", ()) for option in p.opts}
        if meant is not None and meant.split()[0] not in known:
            meant = None  # of another command
        told = error.format_message()
        _fail(f"{told.split(' (')[0]}; here that is {meant}" if meant else told, error.exit_code)
    except (ValueError, OSError) as error:
        _fail(name_options(str(error)), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except MemoryError as error:
        _fail(f"out of memory: {error}; {_SMALLER}", _FAULT)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except Exception as error:
        # Of a device; by its name, as `--help` does without JAX.
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
            first = str(error).splitlines()[0]
            _fail(f"out of memory on the device: {first}; {_SMALLER}", _FAULT)
        traceback.print_exc()
        sys.exit(_FAULT)


def _fail(message: str, status: int) -> NoReturn:
    if message:  # none came with the help that a bare `margin-jax` prints
        typer.echo(f"margin-jax: {' '.join(message.split())}", err=True)
    sys.exit(status)
