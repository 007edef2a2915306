"""A finished run evaluated: its own test, other examples, pairs that a file lists."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from margin_jax.data import OWN
from margin_jax.data.dataset import Dataset, remarks
from margin_jax.data.pair_files import read_pairs
from margin_jax.data.pairs import Pairs, sample_pairs
from margin_jax.data.rows import RowNames
from margin_jax.evaluation.all_pairs import all_pairs_report
from margin_jax.evaluation.embedding import pair_distances
from margin_jax.evaluation.folds import FoldReport, fold_report
from margin_jax.evaluation.identification import IdentificationReport, identification_report
from margin_jax.evaluation.retrieval import RetrievalReport, retrieval_report
from margin_jax.evaluation.threshold import threshold_pairs
from margin_jax.evaluation.verification import VerificationReport, choose_threshold
from margin_jax.runs.folder import PAIRS, check_sealed
from margin_jax.runs.given import load_others, rows_of_images, rows_of_vectors, unreadable
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import load


class Own(NamedTuple):
    """What a run was trained and tested on.

    Attributes:
        dataset: all examples.
        pairs: "validation" and "test", as they were saved; rows of `dataset`.
    """

    dataset: Dataset
    pairs: dict[str, Pairs]

    def rows(self, run: Run, part: str) -> np.ndarray:
        """Those of the examples of a part of the split."""
        # By the names that the run saved: a file of lists may have changed since, or be gone.
        own = np.isin(self.dataset.identities, run.data["identities"][part])
        return np.flatnonzero(own[self.dataset.labels])


class Embedded(NamedTuple):
    """Images as embeddings.

    Attributes:
        vectors: float32[n, dim].
        labels: int32[n], the identity of each.
        pairs: those that the run saved, if these are its own test images.
        skipped: "file: reason" of each picture that could not be read.
        remarks: on other files of the folder, a line each.
        dataset, rows: where they come from, int[n] rows of it.
    """

    vectors: np.ndarray
    labels: np.ndarray
    pairs: Pairs | None = None
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    dataset: Dataset | None = None
    rows: np.ndarray | None = None


class ListedReport(NamedTuple):
    """Verification of listed pairs.

    Attributes:
        verification: at the threshold; with intervals if what the list says to be the same is in
            one folder each time, and what is different is not, so that folders are identities.
        folds: with the folds' thresholds, where the list has folds.
        trained_on: folders of the list that are named like identities the run was trained on.
        missing: "file: reason" of listed files that can not be read; their pairs are left out.
        listed: how many pairs the list has.
    """

    verification: VerificationReport
    folds: FoldReport | None
    trained_on: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int


def load_own(run: Run) -> Own:
    """The examples that a run was trained on, and its verification pairs.

    Raises:
        ValueError: files that are missing or unreadable, or not those the run was tested on.
    """
    if run.config.dataset == OWN:
        raise ValueError(f"{run.path} has no examples of its own: give data_dir")
    dataset = load(run.config)
    if run.config.max_identities is not None:
        dataset = dataset.first(run.config.max_identities)
    try:
        check_sealed(run.path, PAIRS)
        with open(run.path / PAIRS, "rb") as file, np.load(file) as saved:
            pairs = {
                name: Pairs(saved[f"{name}_rows"], saved[f"{name}_same"])
                for name in ("validation", "test")
            }
            files = tuple(saved["files"]) if "files" in saved else ()
    except (BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(f"the run in {run.path} is damaged: {error}") from error
    known = files == dataset.files
    if isinstance(dataset.files, RowNames):
        known = run.data.get("sha256") == dataset.digest()
    if not known:
        what = "images" if run.embeds_pictures else "examples"
        raise ValueError(f"the {what} are not those that {run.path} was tested on")
    return Own(dataset, pairs)


def choose_run_threshold(run: Run, fmr: float, own: Own | None = None) -> float:
    """The threshold of a false match rate, on the run's validation pairs.

    On its saved ones, or, if their different ones are too few for the rate, on more that are drawn
    from the same identities. What is tested never chooses.

    Args:
        run: from :func:`~margin_jax.load_run`.
        fmr: the rate, from 1e-06 to 0.5.
        own: from :func:`load_own`, if it is loaded already.

    Raises:
        ValueError: as :func:`load_own`; too few different pairs for the rate.
    """
    own = own or load_own(run)
    rows = own.rows(run, "validation")
    labels, saved = own.dataset.labels[rows], own.pairs["validation"]
    within = Pairs(np.searchsorted(rows, saved.rows), saved.same)
    pairs = threshold_pairs(within, labels, fmr, seed=run.config.seed)
    vectors = run.embed(own.dataset.examples, rows)
    distances = pair_distances(vectors, pairs.rows, run.config.distance)
    return choose_threshold(distances, pairs.same, fmr)


def embed_identities(
    run: Run,
    data_dir: str | Path | None = None,
    *,
    repeated_names: str | None = None,
    own: Own | None = None,
) -> Embedded:
    """The embeddings of examples by identity.

    Args:
        run: from :func:`~margin_jax.load_run`.
        data_dir: a folder of images for each identity, or a list of images; of a run on vectors a
            file of vectors. Default: the run's own test identities.
        repeated_names: as of a configuration, for `data_dir`. Default: the run's.
        own: from :func:`load_own`, if it is loaded already.

    Raises:
        ValueError: files that are missing or unreadable, or not those the run was tested on.
    """
    if data_dir is not None:
        dataset = load_others(run, Path(data_dir), repeated_names)
        return Embedded(
            run.embed(dataset.examples),
            dataset.labels,
            skipped=dataset.skipped,
            remarks=remarks(dataset.left_out, dataset.notes),
            dataset=dataset,
            rows=np.arange(len(dataset.labels)),
        )
    dataset, saved = own or load_own(run)
    rows = Own(dataset, saved).rows(run, "test")
    pairs = Pairs(np.searchsorted(rows, saved["test"].rows), saved["test"].same)
    vectors = run.embed(dataset.examples, rows)
    return Embedded(vectors, dataset.labels[rows], pairs, dataset=dataset, rows=rows)


def evaluate_run(
    run: Run,
    embedded: Embedded,
    *,
    count: int = 100_000,
    seed: int = 0,
    threshold: float | None = None,
) -> VerificationReport:
    """Verification with a run's best weights.

    Args:
        run: from :func:`~margin_jax.load_run`.
        embedded: from :func:`embed_identities`; of other images than the run's own, pairs are drawn
            evenly over all identities.
        count, seed: of the pairs that are drawn.
        threshold: such as from :func:`choose_run_threshold`. Default: the run's own.

    Raises:
        ValueError: pairs of one kind only.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 pairs; got {count}")
    pairs = embedded.pairs or sample_pairs(embedded.labels, count, seed=seed)
    distances = pair_distances(embedded.vectors, pairs.rows, run.config.distance)
    return run.verify(
        distances, pairs.same, identities=embedded.labels[pairs.rows], threshold=threshold
    )


def evaluate_all_pairs(
    run: Run, embedded: Embedded, *, threshold: float | None = None
) -> VerificationReport:
    """As :func:`evaluate_run`, of every image with every other.

    An identity weighs by its pairs, so one with many images can be most of the same pairs.
    """
    return all_pairs_report(
        embedded.vectors,
        embedded.labels,
        threshold=run.threshold if threshold is None else threshold,
        distance=run.config.distance,
        intervals=True,
    )


def evaluate_retrieval(run: Run, embedded: Embedded) -> RetrievalReport:
    """Recall@k and MAP@R of every image against all others.

    Raises:
        ValueError: no two images of one identity.
    """
    return retrieval_report(embedded.vectors, embedded.labels, distance=run.config.distance)


class Identified(NamedTuple):
    """Identification of the queries of one folder in the gallery of another.

    Attributes:
        report: at the threshold.
        skipped: "file: reason" of each picture of either that could not be read.
        remarks: on other files of the folders, a line each.
    """

    report: IdentificationReport
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


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
    return Identified(report, sides[0].skipped + sides[1].skipped, tuple(said))


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
    trained = {unicodedata.normalize("NFC", name) for name in run.data["identities"]["train"]}
    compared = np.unique(listed.pairs.rows[whole])
    met = {unicodedata.normalize("NFC", identities[i]) for i in compared}
    return ListedReport(
        report, folds, tuple(sorted(met & trained)), missing, len(listed.pairs.same)
    )
