"""Datasets, identity splits, PK samplers, the loader, and verification pairs."""

import dataclasses
from pathlib import Path

from margin_jax.choices import OWN, check_choice
from margin_jax.data import folder, glyphs, listing, tfds, vectors
from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import FITS, TRANSPARENCIES, Reading
from margin_jax.data.presets import get_preset

# Those that lie where data_dir says.
PLACES = {
    "folder": "the folder of images",
    "list": "the .csv or .tsv file that lists images",
    "vectors": "the file of features and labels",
}
DATASETS = ("glyphs", *PLACES, "tfds:NAME")


def check_dataset(name: str) -> None:
    """Whether a name is one of a dataset's; nothing is opened.

    Raises:
        ValueError: if not.
    """
    if not name.startswith(tfds.PREFIX) or name == tfds.PREFIX:
        check_choice("dataset", name, ("glyphs", *PLACES, OWN, "tfds:NAME"))


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    strict: bool = False,
    *,
    manual_dir: str | Path | None = None,
    label_key: str | None = None,
    memory_limit: float = float("inf"),
    fit: str = "pad",
    transparency: str = "white",
    bits: int = 16,
    repeated_names: str = "error",
) -> Dataset:
    """Loads a dataset by name: glyphs, folder, list, vectors, or tfds:NAME[:CONFIG].

    Args:
        name: one of these names.
        data_dir: the path of the folder, the list (:func:`margin_jax.data.listing.load`) or the
            vectors (:func:`margin_jax.data.vectors.load`); for TensorFlow Datasets, where prepared
            ones are stored.
        image_size: height and width in pixels. Default: the dataset's own.
        strict: raise an error for an unreadable image instead of skipping it.
        manual_dir: for TensorFlow Datasets, a folder with source files that you downloaded
            yourself.
        label_key: for TensorFlow Datasets, the feature that holds the identity. Default: the
            dataset's label.
        memory_limit: in bytes; images of a larger dataset are not kept in memory but decoded
            whenever they are needed.
        fit: how images become square: "pad" keeps the aspect ratio and repeats the edge, "crop"
            takes the centre, "stretch" ignores the aspect ratio.
        transparency: "white" draws transparent images on white; "ignore" drops the alpha channel.
        bits: how many bits 16-bit files use.
        repeated_names: for a folder, what to do with folders of the same name in different places:
            raise an "error", or treat them as one identity ("merge") or several ("separate").

    Raises:
        ValueError: for an unknown name, or data that cannot be read as this dataset.

    Example:
        >>> import margin_jax as mj
        >>> letters = mj.load_dataset("glyphs")
        >>> letters.examples.shape, len(letters.identities)
        ((7236, 28, 28, 1), 603)
    """
    check_dataset(name)
    if name == OWN:
        raise ValueError("dataset own has to be given as an object: mj.fit(config, dataset=...)")
    check_choice("fit", fit, FITS)
    check_choice("transparency", transparency, TRANSPARENCIES)
    check_choice("repeated_names", repeated_names, folder.REPEATED_NAMES)
    if not 8 <= bits <= 16:
        raise ValueError(f"bits must be from 8 to 16; got {bits}")
    if name == "glyphs" and data_dir is not None:
        raise ValueError(f"dataset glyphs is drawn, and has no data_dir; got {data_dir}")
    reading = Reading(fit, transparency, bits)
    where = None if data_dir is None else Path(data_dir)
    size = image_size or folder.DEFAULT_SIZE
    if name == "glyphs":
        found = glyphs.load(image_size or glyphs.DEFAULT_SIZE)
    elif name.startswith(tfds.PREFIX):
        found = tfds.load(
            name.removeprefix(tfds.PREFIX),
            where,
            image_size,
            strict,
            manual_dir=None if manual_dir is None else Path(manual_dir),
            label_key=label_key,
            memory_limit=memory_limit,
            reading=reading,
        )
    elif where is None:
        raise ValueError(f"dataset {name} needs data_dir, {PLACES[name]}")
    elif name == "vectors":
        found = vectors.load(where)
    elif name == "list":
        found = listing.load(where, size, strict, memory_limit=memory_limit, reading=reading)
    else:
        found = folder.load(
            where,
            size,
            strict,
            memory_limit=memory_limit,
            reading=reading,
            repeated_names=repeated_names,
        )
    return dataclasses.replace(found, source=name)


def default_split(name: str) -> str:
    """The split of a dataset's identities where none is asked for."""
    preset = get_preset(name.removeprefix(tfds.PREFIX)) if ":" in name else None
    return (preset and preset.split) or "40/10/50"
