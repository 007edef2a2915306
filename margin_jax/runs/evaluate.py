"""A finished run evaluated: on its own test, or on other examples."""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from margin_jax.choices import OWN
from margin_jax.config.option import MOST
from margin_jax.data.dataset import Dataset, remarks
from margin_jax.data.pairs import Pairs, sample_pairs
from margin_jax.data.rows import RowNames
from margin_jax.evaluation.all_pairs import all_pairs_report
from margin_jax.evaluation.embedding import pair_distances
from margin_jax.evaluation.retrieval import RetrievalReport, retrieval_report
from margin_jax.evaluation.threshold import threshold_pairs
from margin_jax.evaluation.verification import VerificationReport, choose_threshold
from margin_jax.runs.folder import PAIRS, check_sealed
from margin_jax.runs.given import load_others
from margin_jax.runs.run import Run
from margin_jax.runs.run_data import MORE_IDENTITIES, load


class OwnData(NamedTuple):
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
        dataset, rows: where they come from, int[n] rows of it.
        pairs: those that the run saved, if these are its own test images.
        skipped: "file: reason" of each picture that could not be read.
        remarks: on other files of the folder, a line each.
    """

    vectors: np.ndarray
    labels: np.ndarray
    dataset: Dataset
    rows: np.ndarray
    pairs: Pairs | None = None
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def load_own(run: Run) -> OwnData:
    """The examples that a run was trained on, and its verification pairs.

    Raises:
        ValueError: files that are missing or unreadable, or not those the run was tested on.
    """
    if run.config.dataset == OWN:
        raise ValueError(
            f"{run.path} has no examples of its own: give data_dir; a threshold for a false match "
            "rate needs the run itself, with its validation examples"
        )
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
    return OwnData(dataset, pairs)


def choose_run_threshold(run: Run, fmr: float, own: OwnData | None = None) -> float:
    """The threshold of a false match rate, on the run's validation pairs.

    On its saved ones, or, if their different ones are too few for the rate, on more that are drawn
    from the same identities. What is tested never chooses.

    Args:
        run: from :func:`~margin_jax.load_run`.
        fmr: the rate, at least 1e-6 and below 1.
        own: from :func:`load_own`, if it is loaded already.

    Raises:
        ValueError: as :func:`load_own`; too few different pairs for the rate.
    """
    own = own or load_own(run)
    rows = own.rows(run, "validation")
    labels, saved = own.dataset.labels[rows], own.pairs["validation"]
    within = Pairs(np.searchsorted(rows, saved.rows), saved.same)
    pairs = threshold_pairs(within, labels, fmr, seed=run.config.seed, advice=MORE_IDENTITIES)
    vectors = run.embed(own.dataset.examples, rows)
    distances = pair_distances(vectors, pairs.rows, run.config.distance)
    return choose_threshold(distances, pairs.same, fmr)


def embed_identities(
    run: Run,
    data_dir: str | Path | None = None,
    *,
    repeated_names: str | None = None,
    own: OwnData | None = None,
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
            dataset,
            np.arange(len(dataset.labels)),
            skipped=dataset.skipped,
            remarks=remarks(dataset.left_out, dataset.notes),
        )
    dataset, saved = own or load_own(run)
    rows = OwnData(dataset, saved).rows(run, "test")
    pairs = Pairs(np.searchsorted(rows, saved["test"].rows), saved["test"].same)
    vectors = run.embed(dataset.examples, rows)
    return Embedded(vectors, dataset.labels[rows], dataset, rows, pairs)


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
    if not 2 <= count <= MOST:
        raise ValueError(f"count must be at least 2 pairs and at most {MOST:,}; got {count}")
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
