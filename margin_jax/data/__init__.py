"""Datasets, identity splits, the PK sampler, the loader, and verification pairs."""

from pathlib import Path

from margin_jax.choices import check_choice
from margin_jax.data import folder, glyphs
from margin_jax.data.dataset import ImageDataset

DATASETS = ("glyphs", "folder")
# The name of a dataset that is given as an object.
OWN = "own"


def load_dataset(
    name: str, data_dir: str | Path | None, image_size: int | None, strict: bool
) -> ImageDataset:
    """The dataset of that name, decoded and in memory.

    Raises:
        ValueError: an unknown name, or what the dataset itself refuses.
    """
    check_choice("dataset", name, (*DATASETS, OWN))
    if name == "glyphs":
        return glyphs.load(image_size or glyphs.DEFAULT_SIZE)
    if name == OWN:
        raise ValueError("dataset own has to be given as an object: mj.fit(config, dataset=...)")
    if data_dir is None:
        raise ValueError("dataset folder needs data_dir, the folder of images")
    return folder.load(Path(data_dir), image_size or folder.DEFAULT_SIZE, strict)
