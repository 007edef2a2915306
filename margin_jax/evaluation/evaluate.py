"""All figures of embeddings in one call, for a loop of one's own."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from margin_jax.data.pairs import sample_pairs
from margin_jax.evaluation.all_pairs import EXACT_UP_TO, all_distances, all_pairs_report
from margin_jax.evaluation.embedding import pair_distances
from margin_jax.evaluation.retrieval import RetrievalReport, check_embeddings, retrieval_report
from margin_jax.evaluation.tables import for_rate
from margin_jax.evaluation.threshold import threshold_pairs
from margin_jax.evaluation.verification import (
    VerificationReport,
    choose_threshold,
    verification_report,
)
from margin_jax.losses.distances import DistanceFn, get_distance


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` finds.

    Attributes:
        verification: with intervals.
        retrieval: each image as a query against all others.
        threshold_from: "validation", or "test" if the threshold was chosen on the reported pairs.
        pairs: "all" pairs are verified, or pairs "drawn" evenly over identities.
        fmr: the false match rate that the threshold was chosen for; None if it is the one of the
            ROC point nearest to (0, 1).
    """

    verification: VerificationReport
    retrieval: RetrievalReport
    threshold_from: Literal["validation", "test"]
    pairs: Literal["all", "drawn"]
    fmr: float | None

    def to_json(self) -> dict[str, Any]:
        """The results, ready for ``json.dumps``."""
        return {
            "verification": self.verification.to_json(),
            "retrieval": self.retrieval.to_json(),
            "threshold_from": self.threshold_from,
            "pairs": self.pairs,
            "fmr": self.fmr,
        }

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        which = "all pairs" if self.pairs == "all" else "pairs drawn evenly over identities"
        chosen = f"chosen on validation{for_rate(self.fmr)}"
        if self.threshold_from == "test":
            chosen = (
                f"chosen on these pairs themselves{for_rate(self.fmr)}, as there is no validation: "
                "accuracy, FMR and FNMR look better than they are"
            )
        return "\n\n".join(
            [
                self.verification._repr_markdown_(),
                f"{which}; threshold {chosen}",
                self.retrieval._repr_markdown_(),
            ]
        )


def evaluate(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    distance: str | DistanceFn = "euclidean",
    fmr: float | None = None,
    count: int = 100_000,
    seed: int = 0,
) -> Evaluation:
    """Verification with intervals, at a threshold chosen on validation, and retrieval.

    With up to 2,896 images (4 million pairs), all pairs are verified, so identities count by their
    number of pairs. With more, `count` pairs are drawn evenly over identities, half of them same
    pairs. The pairs that choose the threshold are selected in the same way.

    Args:
        embeddings: float[n, dim], numpy or jax.
        labels: [n], numbers or text.
        validation: embeddings and labels of other identities, on which the threshold is chosen.
            Without them it is chosen on the reported pairs, and the result says so.
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`.
        fmr: choose the threshold for this false match rate (see :func:`choose_threshold`) instead
            of that of the ROC point nearest to (0, 1).
        count, seed: how many pairs are drawn, fewer if there are not half as many same pairs; and
            their random seed.

    Raises:
        ValueError: shapes that do not fit, embeddings or distances that are not finite, no identity
            with two images, a single identity, or too few different pairs for `fmr`.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> rng = np.random.default_rng(0)
        >>> faces, labels = rng.normal(size=(40, 1, 8)), np.repeat(np.arange(20), 5)
        >>> x = (faces + 0.3 * rng.normal(size=(40, 5, 8))).reshape(-1, 8)
        >>> found = mj.evaluate(x[:100], labels, validation=(x[100:], labels))
        >>> found.threshold_from, found.verification.auc > 0.99, found.retrieval.recall_at[1]
        ('validation', True, 1.0)
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 pairs; got {count}")
    x, y = _checked("", embeddings, labels)
    metric = get_distance(distance)
    others = None
    if validation is not None:
        others = _checked("validation ", *validation)
    threshold = _threshold(*(others or (x, y)), metric, fmr, count, seed)
    all_of_them = _all(y)
    if all_of_them:
        verified = all_pairs_report(x, y, threshold=threshold, distance=metric, intervals=True)
    else:
        pairs = sample_pairs(y, count, seed=seed)
        verified = verification_report(
            pair_distances(x, pairs.rows, metric),
            pairs.same,
            threshold=threshold,
            identities=y[pairs.rows],
        )
    return Evaluation(
        verified,
        retrieval_report(x, y, distance=metric),
        "test" if others is None else "validation",
        "all" if all_of_them else "drawn",
        fmr,
    )


def _checked(
    what: str, embeddings: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and labels from 0 on, of which there are same and different pairs."""
    try:
        x, y = check_embeddings(embeddings, labels)
    except ValueError as error:
        raise ValueError(f"{what}{error}") from None
    _, dense, sizes = np.unique(y, return_inverse=True, return_counts=True)
    if len(sizes) < 2 or np.max(sizes) < 2:
        raise ValueError(
            f"{what}embeddings must be of two identities or more, one of them with two images or "
            f"more; got {len(y):,} images of {len(sizes):,} identities"
        )
    return x, dense


def _all(labels: np.ndarray) -> bool:
    """Whether every pair is looked at."""
    return len(labels) * (len(labels) - 1) // 2 <= EXACT_UP_TO


def _threshold(
    x: np.ndarray, y: np.ndarray, metric: DistanceFn, fmr: float | None, count: int, seed: int
) -> float:
    if _all(y):
        return choose_threshold(*all_distances(x, y, metric), fmr)
    pairs = sample_pairs(y, count, seed=seed)
    if fmr is not None:
        pairs = threshold_pairs(pairs, y, fmr, seed=seed)
    return choose_threshold(pair_distances(x, pairs.rows, metric), pairs.same, fmr)
