"""The command ``export``: a finished run as a folder that works without margin-jax."""

from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import RunFolder


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder.")] = Path("model"),
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also as ONNX, with the weights inside.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the exported model that is there.")
    ] = False,
) -> Path:
    """Write a run as a folder that is used without margin-jax: StableHLO, weights, a card.

    The card, README.md, has the figures, and the lines of Python that use it. The folder can be
    given to the other commands in the place of a run, or put on the Hugging Face hub.
    """
    from margin_jax.runs.run import load_run

    folder = load_run(run).export(out, onnx=onnx, overwrite=overwrite)
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file.stat().st_size:>12,}  {file}")
    return folder
