"""What a run gets wrong, to look at: the worst pairs, whose they are, and a map of embeddings.

A folder::

    false_matches.png        different identities, the smallest distances
    false_non_matches.png    one identity, the largest distances
    pairs.csv                both
    identities.csv           how many mistakes each identity has a part in
    map.png                  all embeddings, coloured by identity
"""

import csv
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import one_line
from margin_jax.evaluation.mistakes import Mistakes, find_mistakes
from margin_jax.files import check_file, local_path, whole_folder
from margin_jax.plots.map import plot_map
from margin_jax.plots.tiles import Tile, plot_tiles
from margin_jax.runs.evaluate import Embedded
from margin_jax.runs.run import Run

# There after every evaluation, and after some.
_ALWAYS, _PERHAPS = (
    {"pairs.csv", "identities.csv", "map.png"},
    {"false_matches.png", "false_non_matches.png"},
)
WORST = 20
_COLUMNS = 4
_TOP = 5
_TITLES = {
    "false_matches": "False matches: different identities, at most {:.4f} apart. "
    "The nearest first, each picture once.",
    "false_non_matches": "False non-matches: the same identity, more than {:.4f} apart. "
    "The farthest first, each picture once.",
}

Pair = tuple[float, int, int]


def check_mistakes(
    folder: Path, listed: Path | None, out: Path | None = None, pictures: Collection[Path] = ()
) -> None:
    """Makes the folder of mistakes, before the work, not after it.

    Args:
        folder: which.
        listed: a list of pairs, which has no mistakes.
        out: another file that is written, which must not lie in it.
        pictures: folders of pictures that are read, in which it must not lie: what is in it would
            be an identity the next time.

    Raises:
        ValueError: for such places; if it cannot be written or has other files; for a list of
            pairs.
    """
    if listed is not None:
        raise ValueError(
            f"--mistakes is of every image with every other; got it with --pairs {listed}"
        )
    path = local_path("mistakes", folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--mistakes must be a folder; {path} is a file")
    if out is not None and out.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"--out must not lie in the folder of --mistakes, {path}; got {out}")
    for place in pictures:
        if path.resolve().is_relative_to(place.resolve()):
            raise ValueError(
                f"--mistakes must not lie in a folder of pictures, {place}; got {path}"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_replaceable(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    check_file("mistakes", path / "pairs.csv")


def _check_replaceable(path: Path) -> None:
    """Raises ValueError for a folder with anything but mistakes."""
    present = set(os.listdir(path)) if path.exists() else set()
    if present and not _ALWAYS <= present <= _ALWAYS | _PERHAPS:
        raise ValueError(
            f"{path} is not empty and not a folder of mistakes; choose another --mistakes"
        )


def write_mistakes(run: Run, embedded: Embedded, threshold: float, folder: Path) -> list[str]:
    """Finds the worst of all pairs at a threshold, and writes tables and pictures of them.

    Args:
        run: from :func:`~margin_jax.load_run`.
        embedded: from :func:`~margin_jax.runs.evaluate.embed_identities`.
        threshold: a distance.
        folder: is made, whole or not at all; one that was made so before is replaced.

    Returns:
        What a person should know at once, a line each.

    Raises:
        ValueError: as :func:`~margin_jax.evaluation.mistakes.find_mistakes`.
    """
    dataset, rows = embedded.dataset, embedded.rows
    labels = embedded.labels
    found = find_mistakes(
        embedded.vectors, labels, threshold=threshold, distance=run.config.distance
    )
    worst = {
        "false_matches": found.worst_false_matches(WORST),
        "false_non_matches": found.worst_false_non_matches(WORST),
    }
    names = [dataset.files[row] for row in rows.tolist()]
    target = local_path("mistakes", folder)
    by_identity = _by_identity(found, dataset, labels)
    with whole_folder(target) as made:
        _write_csv(made / "identities.csv", list(by_identity[0]), (d.values() for d in by_identity))
        _write_csv(
            made / "pairs.csv",
            ("kind", "distance", "first", "second", "first_identity", "second_identity"),
            (
                [
                    *(kind, f"{distance:.6f}", names[i], names[j]),
                    *(dataset.identities[labels[row]] for row in (i, j)),
                ]
                for kind, pairs in worst.items()
                for distance, i, j in pairs
            ),
        )
        plot_map(embedded.vectors, labels, dataset.identities).savefig(made / "map.png")
        for kind, pairs in worst.items():
            if pairs and run.embeds_pictures:
                tiles = [_tile(dataset, rows, names, pair) for pair in pairs]
                lines = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
                title = _TITLES[kind].format(threshold)
                plot_tiles(lines, title).savefig(made / f"{kind}.png")
        _check_replaceable(target)  # something may have come there meanwhile
    return [*_said(by_identity), f"pictures and tables: {target}"]


def _tile(dataset: Dataset, rows: np.ndarray, names: Sequence[str], pair: Pair) -> Tile:
    distance, *both = pair
    pictures = dataset.examples[rows[both]]
    return Tile(list(pictures), [f"{distance:.4f}", *(one_line(Path(names[i])) for i in both)])


def _by_identity(found: Mistakes, dataset: Dataset, labels: np.ndarray) -> list[dict[str, Any]]:
    """A record for each identity, those with a part in most mistakes first."""
    sizes = np.bincount(labels)
    matched = np.bincount(labels, found.false_matches).astype(int)
    missed = np.bincount(labels, found.false_non_matches).astype(int) // 2  # seen from both sides
    order = np.argsort(-(matched + missed), kind="stable")
    return [
        {
            "identity": dataset.identities[i],
            "images": int(sizes[i]),
            "false_matches": int(matched[i]),
            "different_pairs": int(sizes[i] * (len(labels) - sizes[i])),
            "false_non_matches": int(missed[i]),
            "same_pairs": int(sizes[i] * (sizes[i] - 1) // 2),
        }
        for i in order
        if sizes[i]
    ]


def _said(by_identity: list[dict[str, Any]]) -> list[str]:
    """How many mistakes there are, and who has a part in most."""
    lines = []
    # A false match is one of two identities.
    for kind, of, sides in (
        ("false_matches", "different_pairs", 2),
        ("false_non_matches", "same_pairs", 1),
    ):
        total = sum(identity[kind] for identity in by_identity) // sides
        pairs = sum(identity[of] for identity in by_identity) // sides
        named = kind.replace("_", " ").replace("non ", "non-")
        share = f"{total / pairs:.2%}" if pairs else "0"
        lines.append(f"{named}: {total:,} of all {pairs:,} {of.replace('_', ' ')}, {share}")
        most = sorted(by_identity, key=lambda identity: -identity[kind])[:_TOP]
        for identity in most:
            if identity[kind]:
                lines.append(
                    f"  {identity[kind] / total:6.1%} with {one_line(Path(identity['identity']))}, "
                    f"{identity[kind] / identity[of]:.1%} of its pairs"
                )
    return lines


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    # A name of a file may have bytes that are no text.
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([header, *rows])
