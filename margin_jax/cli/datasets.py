"""`margin-jax datasets`: what there is, and what it is like."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from margin_jax.cli.options import (
    Command,
    Group,
    check_out,
    config_options,
    path_option,
    save_picture,
)
from margin_jax.config import TrainConfig
from margin_jax.data import tfds
from margin_jax.data.presets import PRESETS

app = typer.Typer(cls=Group)

_USED = (
    *("data_dir", "manual_dir", "label_key", "image_size", "split", "strict", "max_identities"),
    *("fit", "bits", "transparency", "repeated_names"),
    *("memory_limit", "seed", "identities_per_batch", "images_per_identity", "small_identities"),
    "fillers",
)


@app.callback(invoke_without_command=True)
def list_datasets(
    context: typer.Context,
    data_dir: Annotated[
        Path | None,
        path_option(
            "Where prepared TensorFlow Datasets are stored. Default: ~/tensorflow_datasets."
        ),
    ] = None,
) -> None:
    """List the datasets and show which are already prepared, or describe one."""
    if context.invoked_subcommand is not None:
        if data_dir is not None:
            raise ValueError("give data_dir after the command: datasets describe NAME --data-dir")
        return
    prepared = tfds.prepared(data_dir)
    configured = {name.partition(":")[0] for name in prepared}
    lines = [
        ("glyphs", "letters in twelve typefaces", "comes with the package"),
        ("folder", "your own images, a folder for each identity", "give --data-dir"),
        ("list", "your own images, listed in a .csv or .tsv", "give --data-dir"),
        ("vectors", "features in an .npz, .npy, .parquet or .csv", "give --data-dir"),
    ]
    for name, preset in PRESETS.items():
        where = "prepared" if name in configured else "not prepared"
        lines.append((f"{tfds.PREFIX}{name}", preset.about, where))
    lines += [(f"{tfds.PREFIX}{name}", "", "prepared") for name in prepared if name not in PRESETS]
    for name, about, where in lines:
        typer.echo(f"{name:<24} {about:<50} {where}")
    typer.echo(
        "\nAny other of TensorFlow Datasets with an image and a label: tfds:NAME[:CONFIG]. They "
        f"are prepared when first used, in {data_dir or tfds.default_folder()}.\n"
        "To describe one: margin-jax datasets describe NAME"
    )


@app.command("describe", cls=Command)
@config_options(without=[field.name for field in fields(TrainConfig) if field.name not in _USED])
def describe_dataset(
    name: Annotated[
        str, typer.Argument(help="glyphs, folder, list, vectors or tfds:NAME[:CONFIG].")
    ],
    out: Annotated[
        Path | None,
        path_option("Also draw a contact sheet of its images to this file."),
    ] = None,
    **given: Any,
) -> Path | None:
    """Describe a dataset: identities, images, sizes (of vectors: length), split and coverage."""
    from margin_jax import plots
    from margin_jax.runs.describe import describe
    from margin_jax.runs.run_data import load

    config = TrainConfig(dataset=name, **given)
    if name == "vectors" and out is not None:
        raise ValueError("out is for the contact sheet of pictures; got it with vectors")
    if out is not None:
        check_out(out, config.data_dir, picture=True)
    dataset = load(config)
    if config.max_identities is not None:
        dataset = dataset.first(config.max_identities)
    for line in describe(config, dataset):  # what there is, though the split may be impossible
        typer.echo(line)
    if out is None:
        return None
    save_picture(plots.plot_contact_sheet(dataset), out)
    typer.echo(f"contact sheet: {out}")
    return out
