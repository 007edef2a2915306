"""The command ``export``: a finished run as a folder that works without margin-jax."""

from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import RunFolder, path_option


def export(
    run: RunFolder,
    out: Annotated[Path, path_option("The folder to write.")] = Path("model"),
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write an ONNX file that includes the weights.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an exported model in the folder.")
    ] = False,
) -> Path:
    """Export a run as a folder that works without margin-jax: StableHLO, weights, model card.

    The model card, README.md, has the test results and the Python code that uses the model. Other
    commands take the folder in place of a run; it can also go to the Hugging Face hub as it is.
    """
    from margin_jax.runs.load import load_run

    folder = load_run(run).export(out, onnx=onnx, overwrite=overwrite)
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file.stat().st_size:>12,}  {file}")
    return folder
