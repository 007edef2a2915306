"""Commands that put a finished run to use: the embeddings of a folder, two images."""

from pathlib import Path
from typing import Annotated

import typer

from margin_jax.cli.options import RunFolder, check_out


def embed(
    run: RunFolder,
    folder: Annotated[
        Path, typer.Argument(help="A folder of images, nested or not, or a file of vectors.")
    ],
    out: Annotated[Path, typer.Option(help="Arrays files and embeddings.")] = Path(
        "embeddings.npz"
    ),
) -> Path:
    """Write the embeddings of all images in a folder, with their file names, to an npz file.

    Or those of all vectors in a file, with their names.
    """
    import numpy as np

    from margin_jax.runs.run import load_run
    from margin_jax.runs.use import embed_folder

    check_out(out)
    files, embeddings, skipped, remarks = embed_folder(load_run(run), folder)
    for reason in skipped:
        typer.echo(f"skipped {reason}", err=True)
    for remark in remarks:
        typer.echo(remark, err=True)
    with open(out, "wb") as file:
        np.savez_compressed(file, files=np.array(files), embeddings=embeddings)
    typer.echo(f"{len(files)} embeddings of length {embeddings.shape[1]}: {out}")
    return out


def verify(
    run: RunFolder,
    first: Annotated[str, typer.Argument(help="An image, or a vector's name.", metavar="IMAGE")],
    second: Annotated[str, typer.Argument(help="Another one.", metavar="IMAGE")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The file of the vectors. Default: the one that the run was trained on."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="At most this distance means the same, such as one of `evaluate --fmr`. Default: "
            "the run's threshold."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="The answer as a line of JSON: same, distance, threshold."),
    ] = False,
) -> int:
    """Are two images of the same identity? Their distance, and the threshold.

    Of a run on vectors, two rows by the names in their file, or by their numbers, from 0.

    Exits with 0 for the same, 1 for different, and 2 for what cannot be compared.
    """
    from margin_jax.evaluation.verification import check_threshold
    from margin_jax.files import to_json
    from margin_jax.runs.run import load_run
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
