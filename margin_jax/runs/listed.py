"""A finished run evaluated on the pairs that a file lists."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.pair_files import read_pairs
from margin_jax.evaluation.folds import FoldReport, fold_report
from margin_jax.evaluation.verification import VerificationReport
from margin_jax.runs.given import rows_of_images, rows_of_vectors, trained_on, unreadable
from margin_jax.runs.run import Run


class ListedReport(NamedTuple):
    """Verification of listed pairs.

    Attributes:
        verification: at the threshold; with intervals if what the list says to be the same is in
            one folder each time, and what is different is not, so that folders are identities.
        folds: with the folds' thresholds, where the list has folds.
        trained_on: folders of the list that are named like identities the run was trained on.
        missing: "file: reason" of listed files that cannot be read; their pairs are left out.
        listed: how many pairs the list has.
    """

    verification: VerificationReport
    folds: FoldReport | None
    trained_on: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int


def evaluate_listed(
    run: Run,
    data_dir: str | Path | None,
    pairs: str | Path,
    *,
    strict: bool = False,
    threshold: float | None = None,
) -> ListedReport:
    """Verification of the pairs that a file lists.

    Args:
        run: from :func:`~margin_jax.load_run`.
        data_dir: the folder that the listed files are relative to. Of a run on vectors a file of
            them, by default its own; the list then has names of rows.
        pairs: a csv file of lines ``FIRST,SECOND,1`` (same) or ``0``, or LFW's ``pairs.txt``, whose
            ten folds are then reported as that protocol wants: accuracy and its standard error;
            or its ``pairsDevTest.txt``.
        strict: a file that is missing or unreadable is an error, instead of leaving out its pairs.
        threshold: such as from :func:`choose_run_threshold`. Default: the run's own.

    Raises:
        ValueError: (strict) files that are missing or unreadable, or pairs of one kind only.
    """
    listed = read_pairs(Path(pairs))
    of = rows_of_vectors if run.embeds_vectors else rows_of_images
    examples, named, missing, identities = of(run, data_dir, listed.files)
    if missing and (strict or (named < 0).all()):
        raise unreadable(run, listed.files, missing)
    rows = named[listed.pairs.rows]
    whole = (rows >= 0).all(axis=1)
    same = listed.pairs.same[whole]
    if same.all() or not same.any():
        what = "pictures" if run.embeds_pictures else "vectors"
        raise ValueError(
            f"verification needs pairs of both kinds; of {pairs} {same.sum()} same and "
            f"{len(same) - same.sum()} different ones have both {what}"
            + (f" (first {missing[0]})" if missing else "")
        )
    distances = run.distances(examples, rows[whole])
    of_whom = np.array(identities)[listed.pairs.rows[whole]]
    named_alike = np.array_equal(of_whom[:, 0] == of_whom[:, 1], same)
    report = run.verify(
        distances, same, identities=of_whom if named_alike else None, threshold=threshold
    )
    folds = None if listed.folds is None else fold_report(distances, same, listed.folds[whole])
    met = trained_on(run, (identities[i] for i in np.unique(listed.pairs.rows[whole])))
    return ListedReport(report, folds, met, missing, len(listed.pairs.same))
