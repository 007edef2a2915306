"""Chooses the letters of the embedded dataset and writes `margin_jax/data/glyphs.txt`.

    python experiments/make_glyphs.py

Every letter that all twelve DejaVu typefaces of matplotlib draw is a candidate, by code point. It
is kept if its 28 px image is clipped in no typeface, and in no typeface comes closer than `APART`
(mean absolute pixel difference, ink from 0 to 1) to a letter already kept: many accented letters,
and many letters of different scripts (Latin A, Greek Alpha, Cyrillic A), are one and the same
picture. An `APART` of 0.01 is about eight pixels of full ink.

Measured with matplotlib 3.11.2 and Pillow 13.0.0 (FreeType 2.13): 603 letters of 462 base letters.
Distances move a little with the font renderer, so the list is committed and nothing recomputes it.
"""

import unicodedata
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from margin_jax.data import glyphs

APART = 0.01
SIZE = 28
OUT = Path(glyphs.__file__).with_name("glyphs.txt")


def main() -> None:
    charmaps = [set(TTFont(path).getBestCmap()) for path in glyphs.typefaces()]
    candidates = [
        chr(code)
        for code in sorted(set.intersection(*charmaps))
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo")
    ]
    images = glyphs.draw(candidates, SIZE)
    border = np.concatenate(
        [images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1]], axis=-1
    )
    ink = images.reshape(*images.shape[:2], -1).astype(np.float32) / 255
    kept: list[int] = []
    for i in range(len(candidates)):
        clipped, blank = border[i].any(), not ink[i].any(axis=-1).all()
        if clipped or blank:
            continue
        if kept and np.abs(ink[kept] - ink[i]).mean(axis=-1).min() < APART:
            continue
        kept.append(i)
    letters = [candidates[i] for i in kept]
    lines = ["".join(letters[i : i + 40]) for i in range(0, len(letters), 40)]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    bases = {glyphs.base_letter(letter) for letter in letters}
    print(f"{len(candidates)} candidates, kept {len(letters)} letters of {len(bases)} base letters")


if __name__ == "__main__":
    main()
