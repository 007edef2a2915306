"""Commands that put a finished run to use: the embeddings of a folder, two images."""

from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import RunFolder, check_out, path_argument, path_option, remark, saving
from margin_jax.files import to_json, write_npz


def embed(
    run: RunFolder,
    folder: Annotated[
        Path, path_argument("A folder of images, nested or not, or a file of vectors.")
    ],
    out: Annotated[
        Path, path_option("The .npz file, with the arrays files and embeddings.")
    ] = Path("embeddings.npz"),
) -> Path:
    """Write the embeddings of all images in a folder, with their file names, to an npz file.

    For a run on vectors: the embeddings of all vectors in a file, with their names.
    """
    import numpy as np

    from margin_jax.runs.load import load_run
    from margin_jax.runs.use import embed_folder

    check_out(out, folder, run=run)
    files, embeddings, skipped, remarks = embed_folder(load_run(run), folder)
    remark(skipped, remarks)
    with saving(out) as file:
        write_npz(file, files=np.array(files), embeddings=embeddings)
    typer.echo(f"{len(files)} embeddings of length {embeddings.shape[1]}: {out}")
    return out


def verify(
    run: RunFolder,
    first: Annotated[
        str, typer.Argument(help="An image file, or the name of a vector.", metavar="IMAGE")
    ],
    second: Annotated[str, typer.Argument(help="The other image or vector.", metavar="IMAGE")],
    data_dir: Annotated[
        Path | None,
        path_option("The file of the vectors. Default: the run's own data."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Distances up to this count as the same identity; `evaluate --fmr` finds one for "
            "a false match rate. Default: the run's threshold.",
            min=0,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a line of JSON: same, distance, threshold."),
    ] = False,
) -> int:
    """Tell whether two images show the same identity, with their distance and the threshold.

    For a run on vectors, give two names from its file; if it has none, two row numbers, counted
    from 0.

    Exit status: 0 for the same identity, 1 for different ones, 2 for invalid input, 3 for
    any other failure.
    """
    from margin_jax.evaluation.verification import check_threshold
    from margin_jax.runs.load import load_run
    from margin_jax.runs.use import verify_images

    if threshold is not None:
        check_threshold(threshold)
    loaded = load_run(run)
    limit = loaded.threshold if threshold is None else threshold
    distance = verify_images(loaded, first, second, data_dir)
    same = distance <= limit
    if as_json:
        typer.echo(to_json({"same": same, "distance": distance, "threshold": limit}))
    else:
        answer = "same" if same else "different"
        typer.echo(f"{answer}: distance {distance:.4f}, threshold {limit:.4f}")
    return 0 if same else 1
