"""A finished run asked who it is: queries in a gallery, some of them of nobody there."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.dataset import remarks
from margin_jax.evaluation.identification import IdentificationReport, identification_report
from margin_jax.runs.given import load_others, trained_on
from margin_jax.runs.run import Run


class Identified(NamedTuple):
    """Identification of the queries of one folder in the gallery of another.

    Attributes:
        report: at the threshold.
        skipped: "file: reason" of each picture of either that could not be read.
        remarks: on other files of the folders, a line each.
        trained_on: identities of the queries with the name of one that the run was trained on.
        in_both: how many image files of the queries have the name and the identity of one in the
            gallery, so that they may be the same. 0 for vectors, whose rows may have no names.
    """

    report: IdentificationReport
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]
    trained_on: tuple[str, ...]
    in_both: int


def evaluate_identification(
    run: Run,
    gallery: str | Path,
    query: str | Path,
    *,
    group_by: str | None = None,
    repeated_names: str | None = None,
    threshold: float | None = None,
) -> Identified:
    """Open-set identification: a query of an identity that the gallery has not is unknown.

    Args:
        run: from :func:`~margin_jax.load_run`.
        gallery, query: each as `data_dir` of :func:`embed_identities`; identities are the same if
            they have one name.
        group_by: a regular expression with one pair of parentheses, which find the group of an
            image, such as its camera, in its file name: ``_c([0-9])``. Images of the query's own
            identity and group are then no candidates.
        repeated_names: as of a configuration. Default: the run's.
        threshold: such as from :func:`choose_run_threshold`. Default: the run's own.

    Raises:
        ValueError: as :func:`embed_identities` and :func:`~margin_jax.identification_report`; an
            expression that is none, or is not found in a name.
    """
    pattern = None if group_by is None else _pattern(group_by)
    for name, place in (("gallery", gallery), ("query", query)):
        if not Path(place).exists():
            raise ValueError(f"{name} must be a folder or a file; there is no {place}")
    sides = [load_others(run, Path(place), repeated_names) for place in (gallery, query)]
    groups = [None if pattern is None else _groups(pattern, side.files) for side in sides]
    names = [np.array(side.identities)[side.labels] for side in sides]
    vectors = [run.embed(side.examples) for side in sides]
    report = identification_report(
        vectors[0],
        names[0],
        vectors[1],
        names[1],
        distance=run.config.distance,
        threshold=run.threshold if threshold is None else threshold,
        gallery_groups=groups[0],
        query_groups=groups[1],
    )
    said = [line for side in sides for line in remarks(side.left_out, side.notes)]
    in_both = 0
    if run.embeds_pictures:
        known, asked = (
            {*zip(side.files, own, strict=True)} for side, own in zip(sides, names, strict=True)
        )
        in_both = len(known & asked)
    return Identified(
        report,
        sides[0].skipped + sides[1].skipped,
        tuple(said),
        trained_on(run, names[1]),
        in_both,
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"group_by must be a regular expression; got {text}: {error}") from None
    if pattern.groups != 1:
        raise ValueError(f"group_by must have one pair of parentheses; got {text}")
    return pattern


def _groups(pattern: re.Pattern[str], files: Sequence[str]) -> np.ndarray:
    """The group of each image, by its name."""
    found = [pattern.search(files[row]) for row in range(len(files))]
    groups = [match and match[1] for match in found]
    if None in groups:
        name = files[groups.index(None)]
        raise ValueError(f"group_by finds nothing of {pattern.pattern} in {name}")
    return np.array(groups)
