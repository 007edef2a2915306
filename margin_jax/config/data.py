"""Options of what is trained and tested on."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from margin_jax.choices import check_choice, one_of
from margin_jax.config.option import Option, as_file_name
from margin_jax.data import DATASETS, PLACES, check_dataset
from margin_jax.data.decode import FITS, TRANSPARENCIES
from margin_jax.data.folder import REPEATED_NAMES
from margin_jax.data.presets import PRESETS
from margin_jax.data.splits import check_split


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset, how its pictures are read, and how its identities are split."""

    PANEL: ClassVar[str] = "Data"

    dataset: Annotated[
        str,
        Option(
            "glyphs: letters in twelve typefaces, included; folder: your own images, in "
            "--data-dir; list: images listed in a file; vectors: features in a file; "
            "tfds:NAME[:CONFIG]: TensorFlow Datasets (`margin-jax datasets` lists some). "
            f"{one_of(DATASETS)}",
        ),
    ] = "glyphs"
    data_dir: Annotated[
        str | None,
        Option(
            "folder: the folder of your images, with a subfolder (nested or not) for each "
            "identity. list: a .csv or .tsv file with the columns path and label, optionally group "
            "and split; paths are relative to the file's folder. vectors: an .npz file with the "
            "arrays features and labels, optionally files, groups, splits and views; or an .npy "
            "file, with one label per line in NAME.labels.txt; or a .parquet or .csv file with a "
            "column label, optionally file, group and split, and columns of numbers. tfds: where "
            "prepared datasets are stored, by default ~/tensorflow_datasets.",
            is_path=True,
        ),
    ] = None
    manual_dir: Annotated[
        str | None,
        Option("tfds: a folder with source files that you downloaded yourself.", is_path=True),
    ] = None
    label_key: Annotated[
        str | None,
        Option("tfds: the feature that holds the identity. Default: the dataset's label."),
    ] = None
    image_size: Annotated[
        int | None,
        Option(
            "Height and width in pixels. Default: 28 for glyphs; for TensorFlow Datasets with a "
            "preset, that of the preset (96 for tfds:lfw); otherwise 64.",
            8,
            2**14,
        ),
    ] = None
    split: Annotated[
        str | None,
        Option(
            "How identities are split: percentages for training/validation/test; halves: train and "
            "validate on the first half of the identities, test on the second; or a .json file "
            "with lists of names, such as a run's data.json. Default: the split in the list or "
            "vector file, if it has one, else 40/10/50 (40/20/40 for tfds:mnist and "
            "tfds:fashion_mnist).",
            is_path=True,
        ),
    ] = None
    strict: Annotated[bool, Option("Stop at an unreadable file instead of skipping it.")] = False
    repeated_names: Annotated[
        str,
        Option(
            "folder: what to do with folders of the same name, such as train/anna and val/anna. "
            "error: refuse them; merge: one identity; separate: two identities. "
            f"{one_of(REPEATED_NAMES)}",
        ),
    ] = "error"
    fit: Annotated[
        str,
        Option(
            "How images become square. pad: keep the aspect ratio and fill up by repeating the "
            "edge; crop: take the centre; stretch: ignore the aspect ratio. "
            f"{one_of(FITS)}",
        ),
    ] = "pad"
    bits: Annotated[
        int,
        Option("Bits used in 16-bit files; many cameras use 10 or 12.", 8, 16),
    ] = 16
    transparency: Annotated[
        str,
        Option(
            "white: draw transparent images on white; ignore: drop the alpha channel, which often "
            f"leaves black. {one_of(TRANSPARENCIES)}",
        ),
    ] = "white"
    max_identities: Annotated[
        int | None, Option("Use only the first N identities, for a quick try.", 6)
    ] = None
    memory_limit: Annotated[
        float,
        Option(
            "In gigabytes (2^30 bytes). A dataset that needs more (files count as colour images) "
            "is not kept in memory: its images are decoded again for every batch.",
            most=math.inf,
        ),
    ] = 4.0

    def _check_data(self) -> None:
        _check_name(self.dataset)
        check_choice("fit", self.fit, FITS)
        check_choice("transparency", self.transparency, TRANSPARENCIES)
        check_choice("repeated_names", self.repeated_names, REPEATED_NAMES)
        if self.split is not None:
            check_split(os.fspath(self.split))
        if self.dataset in PLACES and self.data_dir is None:
            raise ValueError(f"dataset {self.dataset} needs data_dir, {PLACES[self.dataset]}")
        tfds = self.dataset.startswith("tfds:")
        if self.dataset not in PLACES and not tfds and self.data_dir is not None:
            raise ValueError(
                f"data_dir is for dataset {', '.join(PLACES)} or tfds; got it with {self.dataset}"
            )
        for name in ("manual_dir", "label_key"):
            if getattr(self, name) is not None and not tfds:
                raise ValueError(f"{name} is for datasets tfds:NAME; got it with {self.dataset}")

    @property
    def title(self) -> str:
        """The dataset as a part of a folder's name, with that of a folder of images."""
        name = as_file_name(self.dataset)
        if self.dataset not in PLACES or self.data_dir is None:
            return name
        path = Path(os.path.abspath(self.data_dir))
        return f"{name}-{path.name if self.dataset == 'folder' else path.stem}"


def _check_name(name: str) -> None:
    """Whether it is a dataset's.

    Raises:
        ValueError: with what to say instead, for a name that people give for another.
    """
    try:
        check_dataset(name)
    except ValueError:
        if name in PRESETS:
            raise ValueError(
                f"dataset {name} is one of TensorFlow Datasets: use tfds:{name}"
            ) from None
        known = ", ".join(DATASETS)
        if os.path.isdir(name):
            raise ValueError(
                f"dataset must be one of {known}; got the folder {name}: use --dataset folder "
                f"--data-dir {name}"
            ) from None
        if os.path.isfile(name):
            raise ValueError(
                f"dataset must be one of {known}; got the file {name}: use --dataset vectors "
                f"--data-dir {name}, or list for a list of pictures"
            ) from None
        raise
