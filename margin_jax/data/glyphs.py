"""The embedded dataset: letters drawn by the twelve DejaVu typefaces that come with matplotlib.

A letter is an identity and a typeface an image of it, so there is nothing to download. It is a
demonstration, not evidence: telling unseen letters apart is easy. Harder are pairs of letters with
one base letter (É and Ë); those stay on one side of a split, and the report shows them apart.
"""

import unicodedata
from importlib import resources
from pathlib import Path

import numpy as np

from margin_jax.data.dataset import Dataset

DEFAULT_SIZE = 28
_STYLES = {
    "DejaVuSans": ("", "-Oblique", "-Bold", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Oblique", "-Bold", "-BoldOblique"),
    "DejaVuSerif": ("", "-Italic", "-Bold", "-BoldItalic"),
}


def load(image_size: int = DEFAULT_SIZE) -> Dataset:
    """All letters in all typefaces, grey, white on black."""
    text = resources.files("margin_jax.data").joinpath("glyphs.txt").read_text(encoding="utf-8")
    letters = text.replace("\n", "")
    images = draw(letters, image_size)
    faces = [path.stem for path in typefaces()]
    bases = {base: i for i, base in enumerate(dict.fromkeys(map(base_letter, letters)))}
    return Dataset(
        examples=images.reshape(-1, image_size, image_size, 1),
        labels=np.repeat(np.arange(len(letters), dtype=np.int32), len(faces)),
        identities=tuple(letters),
        files=tuple(f"{letter} {face}" for letter in letters for face in faces),
        groups=np.array([bases[base_letter(letter)] for letter in letters], np.int32),
    )


def typefaces() -> list[Path]:
    """The font files: sans, mono and serif, each upright, slanted, bold, and bold slanted."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return [folder / f"{family}{style}.ttf" for family in _STYLES for style in _STYLES[family]]


def draw(letters: "str | list[str]", size: int) -> np.ndarray:
    """uint8[letters, typefaces, size, size]: each letter centred, on one base line."""
    from PIL import Image, ImageDraw, ImageFont

    # Basic layout: what an optional text-shaping library would do must not change the pixels.
    layout = ImageFont.Layout.BASIC
    fonts = [ImageFont.truetype(path, size * 20 / 28, layout_engine=layout) for path in typefaces()]
    images = np.zeros((len(letters), len(fonts), size, size), np.uint8)
    for i, letter in enumerate(letters):
        for j, font in enumerate(fonts):
            image = Image.new("L", (size, size))
            at = (size / 2, size * 0.74)
            ImageDraw.Draw(image).text(at, letter, fill=255, font=font, anchor="ms")
            images[i, j] = np.asarray(image)
    return images


def base_letter(letter: str) -> str:
    """The letter without its accents: E for É, È, Ë."""
    return unicodedata.normalize("NFD", letter)[0]
