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
            "glyphs: letters in twelve typefaces, nothing to download; folder: your own images in "
            "--data-dir; list: pictures that a file lists; vectors: features in a file; "
            "tfds:NAME[:CONFIG]: of TensorFlow Datasets; `margin-jax datasets` lists some. "
            f"{one_of(DATASETS)}",
        ),
    ] = "glyphs"
    data_dir: Annotated[
        str | None,
        Option(
            "folder: a folder of images for each identity; it may be nested. list: a .csv or .tsv "
            "file with columns path and label, perhaps group and split; paths are relative to its "
            "folder. vectors: an .npz file of features and labels, perhaps files, groups, splits "
            "and views; .npy with a label a line in NAME.labels.txt; or .parquet or .csv with "
            "columns label, perhaps file, group and split, and numbers. tfds: where the prepared "
            "datasets lie, by default ~/tensorflow_datasets.",
            is_path=True,
        ),
    ] = None
    manual_dir: Annotated[
        str | None,
        Option(
            "tfds: a folder of files that would be downloaded, or that only you can.", is_path=True
        ),
    ] = None
    label_key: Annotated[
        str | None,
        Option("tfds: the feature that names the identity. Default: the label."),
    ] = None
    image_size: Annotated[
        int | None,
        Option("Pixels a side. Default: 28 for glyphs, 64, or the preset's.", 8, 2**14),
    ] = None
    split: Annotated[
        str | None,
        Option(
            "Identities of training/validation/test: percentages; halves: the first half of the "
            "identities trains, the second is the test; or a .json file with lists of names, such "
            "as a run's data.json. Default: what a list or vectors say themselves, else 40/10/50; "
            "tfds:mnist and tfds:fashion_mnist 40/20/40.",
            is_path=True,
        ),
    ] = None
    strict: Annotated[bool, Option("An unreadable file is an error instead of being skipped.")] = (
        False
    )
    repeated_names: Annotated[
        str,
        Option(
            "folder: what train/anna and val/anna are. error: they are refused; merge: one "
            f"identity; separate: two. {one_of(REPEATED_NAMES)}",
        ),
    ] = "error"
    fit: Annotated[
        str,
        Option(
            "How pictures become squares. pad: whole, in their own shape, the rest filled by "
            "repeating their edge; crop: the middle; stretch: whole, but out of shape. "
            f"{one_of(FITS)}",
        ),
    ] = "pad"
    bits: Annotated[
        int,
        Option("How many of their 16 bits files use, 10 or 12 of many cameras.", 8, 16),
    ] = 16
    transparency: Annotated[
        str,
        Option(
            "white: what is transparent is laid on white; ignore: the colours below are taken, "
            f"which often are all black. {one_of(TRANSPARENCIES)}",
        ),
    ] = "white"
    max_identities: Annotated[
        int | None, Option("Use only the first so many identities, for a quick try.", 6)
    ] = None
    memory_limit: Annotated[
        float,
        Option(
            "Gigabytes (2^30). Images that take more (files counted in colour) are not held in "
            "memory but decoded anew for every batch.",
            most=math.inf,
        ),
    ] = 4.0

    def _check_data(self) -> None:
        check_dataset(_dataset_as_meant(self.dataset))
        check_choice("fit", self.fit, FITS)
        check_choice("transparency", self.transparency, TRANSPARENCIES)
        check_choice("repeated_names", self.repeated_names, REPEATED_NAMES)
        if self.split is not None:
            check_split(self.split)
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


def _dataset_as_meant(name: str) -> str:
    """The name, unless it is one that people give for another.

    Raises:
        ValueError: with what to say instead.
    """
    if isinstance(name, str) and name in PRESETS:
        raise ValueError(f"dataset {name} is one of TensorFlow Datasets: say tfds:{name}")
    if isinstance(name, str) and Path(name).is_dir():
        raise ValueError(
            f"dataset must be one of {', '.join(DATASETS)}; got the folder {name}: say "
            f"--dataset folder --data-dir {name}"
        )
    if isinstance(name, str) and Path(name).is_file():
        raise ValueError(
            f"dataset must be one of {', '.join(DATASETS)}; got the file {name}: say --dataset "
            f"vectors --data-dir {name}, or list for a list of pictures"
        )
    return name
