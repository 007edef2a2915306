"""The command ``features``: what a trunk makes of pictures, in a file for heads to train on."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from margin_jax.cli.options import config_options, path_option, remark
from margin_jax.config import TrainConfig

_ENCODER = "efficientnet_lite0"
_USED = (
    *("dataset", "data_dir", "manual_dir", "label_key", "image_size", "strict", "repeated_names"),
    *("fit", "bits", "transparency", "max_identities", "memory_limit", "seed", "augment"),
    *("devices", "encoder", "pretrained", "weights", "small_stem", "dtype"),
)


@config_options(
    without=[field.name for field in dataclasses.fields(TrainConfig) if field.name not in _USED],
    encoder=_ENCODER,
)
def features(
    folder: Annotated[
        str | None,
        typer.Argument(help="Short for --dataset folder --data-dir FOLDER.", metavar="[FOLDER]"),
    ] = None,
    *,
    out: Annotated[Path, path_option("The file to write, NAME.npz.")] = Path("features.npz"),
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the file, or an unfinished one of another command."
        ),
    ] = False,
    views: Annotated[
        int,
        typer.Option(
            help="Also write features of this many augmented copies of each image (see --augment)."
        ),
    ] = 0,
    feature_dtype: Annotated[
        str, typer.Option(help="The dtype in the file: float32, or float16 (half the size).")
    ] = "float32",
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    **given: Any,
) -> Path:
    """Compute an encoder's features of images (without its head), to train heads on them.

    The file has the arrays features, labels and files; views, groups and splits if there are any;
    and about, which says how it was made. If interrupted, run the same command again to continue.

    Your own images: margin-jax features FOLDER --pretrained --image-size 224
    """
    from margin_jax.data.dataset import Dataset, remarks
    from margin_jax.data.decode import one_line
    from margin_jax.runs.claim import check_data
    from margin_jax.runs.features import extract_features
    from margin_jax.runs.run_data import load, reading_of

    if folder is not None:
        if "data_dir" in given:
            raise ValueError(f"give the folder once; got {folder} and {given['data_dir']}")
        given = {"dataset": "folder", **given, "data_dir": folder}
    config = TrainConfig(**{"encoder": _ENCODER, **given})
    check_data(config)

    def loaded() -> Dataset:
        dataset = load(config)
        remark(dataset.skipped, remarks(dataset.left_out, dataset.notes))
        return dataset if config.max_identities is None else dataset.first(config.max_identities)

    name, parameters = config.encoder_parameters()
    said = ",".join(f"{key}={str(value).lower()}" for key, value in parameters.items())
    try:
        extract_features(
            loaded,
            f"{name}:{said}",
            out,
            pretrained=config.pretrained,
            weights=config.weights,
            views=views,
            augment=config.augment,
            seed=config.seed,
            feature_dtype=feature_dtype,
            batch_size=batch_size,
            devices=config.devices,
            about={"dataset": one_line(Path(config.title)), **reading_of(config)._asdict()},
            overwrite=overwrite,
            progress=True,
        )
    except KeyboardInterrupt:
        kept = f"what is done is kept in {out}.partial; the same command goes on"
        said = kept if Path(f"{out}.partial").is_dir() else "nothing was saved yet"
        typer.echo(f"\nInterrupted: {said}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{out}")
    return out
