r"""Two data sets that had no part in any choice: emoji of six designers, icons of several themes.

Emoji, from npm; an identity is a character, its pictures are the designers' drawings of it:

    npm pack emoji-datasource-{apple,facebook,google,twitter} emojione-assets emoji-assets
    python experiments/make_pictures.py emoji *.tgz --out DATA/emoji

Icons, from Debian; an identity is a name that the themes share, such as document-save:

    mkdir themes
    for name in elementary-xfce faenza gnome lxde mate moka obsidian oxygen paper; do
        apt-get download $name-icon-theme
        dpkg-deb --extract $name-icon-theme_*.deb themes/$name
    done
    python experiments/make_pictures.py icons themes/* --out DATA/icons

Both go to `confirm.py`. Emoji of several characters (families, flags, tones of skin) are left out,
as most differ little. So are links between icons, icons that are the same pixels as one of another
name, and all but the first of equal ones of a name; then names with fewer than four pictures. All
are drawn on white. The pictures belong to their authors and are not part of this project.
"""

import argparse
import collections
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

FEWEST = 4
# The file of an emoji of 64 pixels in any of the packages, by its code point.
EMOJI = re.compile(r"package/(?:img/(\w+)|png)/64/([0-9a-f]{4,5})(?:-fe0f)?\.png", re.IGNORECASE)


class Picture(NamedTuple):
    """An image and whose it is."""

    identity: str
    author: str
    pixels: Image.Image


def emoji(packages: Iterable[Path]) -> Iterator[Picture]:
    """Those of npm packages, as `npm pack` leaves them."""
    for path in packages:
        with tarfile.open(path) as package:
            for member in package:
                if found := EMOJI.fullmatch(member.name):
                    author = found[1] or re.sub(r"-\d.*", "", path.name)
                    content = package.extractfile(member)
                    assert content is not None, member.name
                    yield Picture(found[2].lower(), author, on_white(content.read()))


def icons(themes: Iterable[Path]) -> Iterator[Picture]:
    """Those of 48 pixels in unpacked themes."""
    for theme in themes:
        for path in sorted(theme.rglob("*.png")):
            if {"48", "48x48"} & {*path.parts} and not path.is_symlink():
                yield Picture(path.stem, theme.name, on_white(path.read_bytes()))


def on_white(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def chosen(pictures: Iterable[Picture]) -> dict[str, dict[str, Image.Image]]:
    """By identity and author, one picture each: those that tell identities apart."""
    names = collections.defaultdict(set)
    of_pixels: dict[tuple[str, str], Picture] = {}
    authors = set()
    for picture in pictures:
        digest = hashlib.sha256(picture.pixels.tobytes()).hexdigest()
        names[digest].add(picture.identity)
        # An author may have drawn a name twice, for two contexts: the first one counts.
        if (picture.identity, picture.author) not in authors:
            authors.add((picture.identity, picture.author))
            of_pixels.setdefault((picture.identity, digest), picture)
    kept: dict[str, dict[str, Image.Image]] = collections.defaultdict(dict)
    for (identity, digest), picture in of_pixels.items():
        if len(names[digest]) == 1:
            kept[identity][picture.author] = picture.pixels
    return {identity: own for identity, own in sorted(kept.items()) if len(own) >= FEWEST}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("emoji", "icons"))
    parser.add_argument("sources", type=Path, nargs="+", help="packages, or unpacked themes")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    given = parser.parse_args(argv)
    for source in given.sources:
        if not source.exists():
            parser.error(f"there is no {source}")
    if given.out.exists():
        parser.error(f"--out must be a folder that is not there yet; got {given.out}")
    found = chosen({"emoji": emoji, "icons": icons}[given.kind](given.sources))
    if not found:
        parser.error(f"no {given.kind} of at least {FEWEST} authors in {given.sources[0]} ...")
    for identity, own in found.items():
        folder = given.out / identity
        folder.mkdir(parents=True)
        for author, pixels in own.items():
            pixels.save(folder / f"{author}.png")
    print(f"{sum(map(len, found.values())):,} pictures of {len(found):,} {given.kind}")


if __name__ == "__main__":
    main()
