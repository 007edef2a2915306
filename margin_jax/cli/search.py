"""Commands on galleries: pictures that are known, and others that are searched among them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from margin_jax.cli.options import (
    RunFolder,
    check_out,
    path_argument,
    path_option,
    remark,
    save_picture,
)

GalleryFolder = Annotated[
    Path, path_argument("The folder of a gallery, made by `index`.", "GALLERY")
]
# Queries that a contact sheet can show.
_SHEET = 20


def index(
    run: RunFolder,
    folder: Annotated[
        Path, path_argument("A folder of images, nested or not, or a file of vectors.")
    ],
    out: Annotated[
        Path, path_option("The gallery; new images are added to an existing one.")
    ] = Path("gallery"),
) -> Path:
    """Make a searchable gallery of the images in a folder, or add them to an existing one.

    An image's identity is the name of the folder it is in, below FOLDER; directly in FOLDER, each
    image is an identity of its own. Run the command again to add images with new names;
    `margin-jax forget` removes images.
    """
    from margin_jax.runs.index import index as index_folder
    from margin_jax.runs.load import load_run

    gallery, added, skipped, remarks = index_folder(load_run(run), folder, out)
    remark(skipped, remarks)
    typer.echo(
        f"{added:,} added; now {len(gallery.names):,} images of "
        f"{len(set(gallery.identities)):,} identities in {out}"
    )
    return out


def forget(
    gallery: GalleryFolder,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Images, named as `search` prints them, or identities (all their images).",
            metavar="NAME",
        ),
    ],
) -> Path:
    """Remove images, or all images of an identity, from a gallery.

    Running `index` on a folder that still has them adds them again.
    """
    from margin_jax.runs.gallery import load_gallery

    here = load_gallery(gallery)
    left = here.forget(names)
    typer.echo(
        f"{len(here.names) - len(left.names):,} forgotten; now {len(left.names):,} images of "
        f"{len(set(left.identities)):,} identities in {gallery}"
    )
    return gallery


def search(
    gallery: GalleryFolder,
    images: Annotated[
        list[str], typer.Argument(help="Image files, or names of vectors.", metavar="IMAGE")
    ],
    count: Annotated[int, typer.Option(help="How many of the nearest images to show.", min=1)] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="An image is unknown if its nearest is farther than this. Default: the run's "
            "threshold.",
            min=0,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        path_option("The run that made the gallery, if it has been moved."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        path_option("The file of the vectors. Default: the run's own data."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[
        Path | None,
        path_option(f"Also draw the first {_SHEET} images with their nearest ones to this file."),
    ] = None,
) -> Path | None:
    """Find the nearest images in a gallery, with their distances and identities.

    An image is unknown if its nearest is farther than the threshold.
    """
    from margin_jax.evaluation.verification import check_threshold
    from margin_jax.files import to_json
    from margin_jax.runs import search as searching
    from margin_jax.runs.gallery import load_gallery

    if threshold is not None:
        check_threshold(threshold)
    if sheet is not None:
        check_out(sheet, *images, picture=True)
    here = load_gallery(gallery)
    if sheet is not None:
        check_out(sheet, *here.folders, picture=True)
        if sheet.resolve().is_relative_to(gallery.resolve()):
            raise ValueError(
                f"--sheet must be a file outside of the gallery {gallery}; got {sheet}"
            )
    made_with = searching.load_its_run(here, run)
    if sheet is not None and made_with.embeds_vectors:
        raise ValueError("--sheet is for pictures; the gallery has vectors")
    answers = searching.search_files(
        here, made_with, images, count, threshold=threshold, data_dir=data_dir
    )
    limit = here.threshold if threshold is None else threshold
    if json:
        said = [_as_json(image, answer) for image, answer in zip(images, answers, strict=True)]
        typer.echo(to_json({"threshold": limit, "queries": said}, indent=2))
    else:
        for image, answer in zip(images, answers, strict=True):
            typer.echo("\n".join(_lines(image, answer)))
        whose = "as given"
        if threshold is None:
            whose = "the run's, of pairs; among many images choose a smaller --threshold"
        typer.echo(f"threshold {limit:.4f}, {whose}; {len(here.names):,} in the gallery")
    if sheet is not None:
        shown = list(zip(images, answers, strict=True))[:_SHEET]
        save_picture(searching.draw_answers(here, made_with, shown, limit), sheet)
        typer.echo(f"sheet: {sheet}", err=True)
        if len(images) > _SHEET:
            typer.echo(f"{sheet} shows the first {_SHEET} of {len(images):,} images", err=True)
    return sheet


def _as_json(image: str, answer: Any) -> dict[str, Any]:
    keys = ("distance", "name", "identity")
    return {
        "query": image,
        "identity": answer.identity,
        "neighbours": [dict(zip(keys, found, strict=False)) for found in answer.neighbours],
    }


def _lines(image: str, answer: Any) -> list[str]:
    return [
        f"{image}: {'unknown' if answer.identity is None else answer.identity}",
        *(f"  {found.distance:.4f}  {found.name}" for found in answer.neighbours),
    ]
