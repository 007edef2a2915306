"""Identification: whose image is it, of all that are enrolled, if it is anybody's.

A *gallery* holds images of known identities; a *query* is compared with all of them (1:N). A query
is *mated* if its identity is in the gallery, else *unmated*, and then nobody should be named: that
is what makes the set open. Who is named is the identity of the nearest gallery image, if it is at
most a threshold away; of several at one distance that with the lower index counts as nearer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from margin_jax.evaluation.ranking import search
from margin_jax.evaluation.retrieval import check_embeddings, check_ks
from margin_jax.evaluation.verification import check_threshold
from margin_jax.losses.distances import DistanceFn, get_distance, origin

RANKS = (1, 5, 10)
FPIRS = (1e-2, 1e-3)
# A rate measured on fewer false positives than this says little.
_ENOUGH = 10


@dataclass(frozen=True)
class IdentificationReport:
    """How well queries find their identity in a gallery, and how often unknown ones find one.

    Attributes:
        rank_at: for each k the share of mated queries with their identity among the k nearest
            gallery images (the cumulative match characteristic), at any distance.
        tpir_at_fpir: for each of 0.01 and 0.001 the highest TPIR at a threshold with at most that
            FPIR. TPIR (true positive identification rate) is the share of mated queries whose
            nearest image is of their identity and at most the threshold away; FPIR (false positive
            identification rate) is the share of unmated queries with any image at most the
            threshold away. None without unmated queries.
        threshold: a distance chosen on other images, such as that of a run; None if not given.
        tpir, fpir: at that threshold.
        mated, unmated: numbers of queries whose identity is in the gallery, and is not.
        left_out: number of queries whose identity is in the gallery only with images of the query's
            group.
        gallery, identities: numbers of images and of identities in the gallery.
        warnings: results that are based on too few queries.
    """

    rank_at: dict[int, float]
    tpir_at_fpir: dict[float, float | None]
    threshold: float | None
    tpir: float | None
    fpir: float | None
    mated: int
    unmated: int
    left_out: int
    gallery: int
    identities: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The results, ready for ``json.dumps``."""
        return {
            "rank_at": {str(k): share for k, share in self.rank_at.items()},
            "tpir_at_fpir": {f"{fpir:g}": tpir for fpir, tpir in self.tpir_at_fpir.items()},
            "threshold": self.threshold,
            "tpir": self.tpir,
            "fpir": self.fpir,
            "mated": self.mated,
            "unmated": self.unmated,
            "left_out": self.left_out,
            "gallery": self.gallery,
            "identities": self.identities,
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The results as lines of text."""
        ranks = ", ".join(f"rank-{k} {share:.2%}" for k, share in self.rank_at.items())
        found = [
            f"{self.mated:,} mated and {self.unmated:,} unmated queries in {self.gallery:,} images "
            f"of {self.identities:,} identities",
            ranks,
        ]
        if self.unmated:
            rates = self.tpir_at_fpir.items()
            found.append(", ".join(f"TPIR {tpir:.2%} at FPIR {fpir:g}" for fpir, tpir in rates))
        if self.threshold is not None:
            false = "" if self.fpir is None else f", FPIR {self.fpir:.2%}"
            found.append(f"TPIR {self.tpir:.2%}{false} at threshold {self.threshold:.4f}")
        if self.left_out:
            found.append(
                f"{self.left_out:,} queries left out: their identity has images of their own group "
                "alone"
            )
        return found

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        notes = [f"note: {warning}" for warning in self.warnings]
        return "\n\n".join([*self.lines(), *notes])


def identification_report(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    distance: str | DistanceFn = "euclidean",
    threshold: float | None = None,
    gallery_groups: np.ndarray | None = None,
    query_groups: np.ndarray | None = None,
    ranks: tuple[int, ...] = RANKS,
) -> IdentificationReport:
    """Open-set identification of queries in a gallery: rank-k, and TPIR at FPIR.

    Exact, and in bounded memory: distances are computed in blocks of queries.

    With groups, such as cameras, a query is not compared with gallery images of its own identity
    *and* group, as in Market-1501: they may show the same person a moment later. Images of other
    identities in its group are still compared. A query is left out if no image of its identity
    remains.

    Args:
        gallery: float[n, dim].
        gallery_labels: [n], numbers or text.
        queries: float[m, dim]. An image that is also in the gallery finds itself.
        query_labels: [m], of the same type as `gallery_labels`; a query whose label is not in the
            gallery is unmated.
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`, called with queries and gallery
            images.
        threshold: chosen on other images, such as ``run.threshold``; needed for `tpir` and `fpir`.
        gallery_groups, query_groups: [n] and [m], numbers or text; give both or neither.
        ranks: the k of rank-k, each at least 1.

    Raises:
        ValueError: shapes that do not fit, an empty gallery, embeddings or distances that are not
            finite, no mated query, a k below 1, a threshold that is NaN, or groups for one side
            only.
        TypeError: for `ks` that are not several whole numbers, a threshold that is no number.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> gallery, queries = np.array([[0.0], [5.0]]), np.array([[1.0], [3.0], [9.0]])
        >>> report = mj.identification_report(
        ...     gallery, np.array(["al", "bo"]), queries, np.array(["al", "al", "cy"]), threshold=2
        ... )
        >>> report.rank_at[1], report.tpir, report.fpir
        (0.5, 0.5, 0.0)

    References:
        ISO/IEC 19795-1:2021 (FPIR, and TPIR as 1 − FNIR). Zheng et al. 2015, "Scalable person
        re-identification: a benchmark" (Market-1501).
    """
    x, x_labels = check_embeddings(gallery, gallery_labels)
    q, q_labels = check_embeddings(queries, query_labels)
    if len(x) == 0 or x.shape[1:] != q.shape[1:]:
        raise ValueError(
            f"expected a gallery [n, dim], n at least 1, and queries [m, dim]; got shapes "
            f"{x.shape} and {q.shape}"
        )
    check_ks("ranks", ranks)
    if threshold is not None:
        check_threshold(threshold)
    own, other = _groups(gallery_groups, query_groups, len(x), len(q))
    whose, of_query = _alike("labels", x_labels, q_labels)
    enrolled = np.isin(of_query, whose)
    if not enrolled.any():
        raise ValueError(f"no query is of an identity in the gallery; got {len(q):,} queries")

    metric = get_distance(distance)
    start = origin(metric, x)
    nearest, rank, candidates = search(
        metric, (x - start, whose, own), (q - start, of_query, other)
    )
    mated = enrolled & (candidates > 0)
    if not mated.any():
        raise ValueError("each query's identity is in the gallery only in images of its own group")
    found = rank[mated]
    first = nearest[mated & (rank == 0)]
    unknown = np.sort(nearest[~enrolled])
    return IdentificationReport(
        rank_at={k: float(np.mean(found < k)) for k in ranks},
        tpir_at_fpir={fpir: _tpir(first, len(found), unknown, fpir) for fpir in FPIRS},
        threshold=None if threshold is None else float(threshold),
        tpir=None if threshold is None else float(np.sum(first <= threshold) / len(found)),
        fpir=None
        if threshold is None or not len(unknown)
        else float(np.mean(unknown <= threshold)),
        mated=len(found),
        unmated=len(unknown),
        left_out=int(np.sum(enrolled & ~mated)),
        gallery=len(x),
        identities=len(np.unique(whose)),
        warnings=_warnings(len(unknown)),
    )


def _alike(
    what: str, of_gallery: np.ndarray, of_queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both as int32, equal where they were."""
    both = [_as_text(v) for v in (of_gallery, of_queries)]
    kinds = [v.dtype.kind in "UST" for v in both]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"gallery_{what} and query_{what} must both be numbers or both text; got "
            f"{of_gallery.dtype} and {of_queries.dtype}"
        )
    if {v.dtype.kind for v in both} == {"i", "u"}:  # numpy would compare them as rounded floats
        both = [v.astype(object) for v in both]
    _, dense = np.unique(np.concatenate(both), return_inverse=True)
    dense = dense.astype(np.int32)
    return dense[: len(of_gallery)], dense[len(of_gallery) :]


def _as_text(labels: np.ndarray) -> np.ndarray:
    """Objects that all are text, as tables hold them, as text."""
    text = labels.dtype == object and all(isinstance(label, str) for label in labels)
    return labels.astype(str) if text else labels


def _groups(
    of_gallery: np.ndarray | None, of_queries: np.ndarray | None, n: int, m: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups as int32[n] and int32[m]; if there are none, no two are alike."""
    if of_gallery is None and of_queries is None:
        return np.full(n, -1, np.int32), np.full(m, -2, np.int32)
    if of_gallery is None or of_queries is None:
        raise ValueError("gallery_groups and query_groups must be given together")
    own, other = np.asarray(of_gallery), np.asarray(of_queries)
    if own.shape != (n,) or other.shape != (m,):
        raise ValueError(
            f"gallery_groups and query_groups must have shapes {(n,)} and {(m,)}; got {own.shape} "
            f"and {other.shape}"
        )
    return _alike("groups", own, other)


def _tpir(first: np.ndarray, mated: int, unknown: np.ndarray, fpir: float) -> float | None:
    """At the largest threshold at which at most `fpir` of the sorted `unknown` are named.

    Args:
        first: distances of mated queries that are named rightly.
        mated: how many mated queries there are.
        unknown: distances of unmated queries to who is nearest, sorted.
        fpir: a rate.
    """
    if not len(unknown):
        return None
    allowed = int(fpir * len(unknown) * (1 + 1e-12))  # 0.07 · 100 is more than 7
    limit = unknown[allowed] if allowed < len(unknown) else np.inf
    return float(np.sum(first < limit) / mated)


def _warnings(unmated: int) -> tuple[str, ...]:
    if not unmated:
        return ("no query is unmated, so nothing is known of false positives",)
    return tuple(
        f"TPIR at FPIR {rate:g} needs {_ENOUGH / rate:,.0f} unmated queries to say much; "
        f"got {unmated:,}"
        for rate in FPIRS
        if unmated * rate < _ENOUGH
    )
