"""What suits well-known sets of TensorFlow Datasets."""

import re
from typing import NamedTuple


class Preset(NamedTuple):
    """What suits a data set.

    Attributes:
        about: identities and images, for a person.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        parts: the splits of TFDS that are merged before the identities are split.
        split: of the identities, where the usual one needs more of them.
    """

    about: str
    image_size: int
    channels: int
    parts: str = "all"
    split: str | None = None


# Numbers as in the catalogue of TFDS.
PRESETS = {
    "lfw": Preset("5,749 people, 13,233 photographs", 96, 3),
    "caltech_birds2011": Preset("200 species, 11,788 photographs (CUB-200-2011)", 96, 3),
    "cars196": Preset("196 models of cars, 16,185 photographs", 96, 3),
    # Its other parts are subsets of train.
    "omniglot": Preset("1,623 characters, 32,460 drawings", 64, 1, parts="train+test"),
    "mnist": Preset("10 digits, 70,000 images", 28, 1, split="40/20/40"),
    "emnist": Preset("up to 62 letters and digits, 814,255 images", 28, 1),
    "fashion_mnist": Preset("10 kinds of clothes, 70,000 images", 28, 1, split="40/20/40"),
}


def get_preset(name: str) -> Preset | None:
    """The preset of a data set, whatever its configuration."""
    return PRESETS.get(re.split("[:/]", name)[0])
