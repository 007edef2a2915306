"""Retrieval: whether an image finds others of its identity among all the rest.

Every image is a query against all others. Neighbours at one distance are ranked by their index, the
lower first. An image that is alone of its identity is no query, but others may find it.
"""

import functools
import numbers
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.evaluation.blocks import in_blocks
from margin_jax.evaluation.roc import check_finite
from margin_jax.losses.distances import DistanceFn, get_distance, origin

KS = (1, 2, 4, 8)


@dataclass(frozen=True)
class RetrievalReport:
    """How often nearest neighbours have the identity of the query.

    Attributes:
        recall_at: for each k, the share of queries with an image of their identity among the k
            nearest.
        map_at_r: mean over queries of ``1/R · Σ_{i ≤ R} precision(i) · [i-th nearest is right]``,
            R the number of other images of the query's identity.
        r_precision: mean share of the R nearest images that have the query's identity.
        queries: number of images with at least one other image of their identity.
        images: number of all images.
    """

    recall_at: dict[int, float]
    map_at_r: float
    r_precision: float
    queries: int
    images: int

    def to_json(self) -> dict[str, Any]:
        """The results, ready for ``json.dumps``."""
        return {
            "recall_at": {str(k): recall for k, recall in self.recall_at.items()},
            "map_at_r": self.map_at_r,
            "r_precision": self.r_precision,
            "queries": self.queries,
            "images": self.images,
        }

    def _repr_markdown_(self) -> str:
        """What a notebook shows of it."""
        shares = {f"Recall@{k}": recall for k, recall in self.recall_at.items()}
        shares |= {"MAP@R": self.map_at_r, "R-precision": self.r_precision}
        cells = {name: f"{share:.2%}" for name, share in shares.items()}
        cells |= {"queries": f"{self.queries:,}", "images": f"{self.images:,}"}
        rows = [" | ".join(cells), "|".join(["---:"] * len(cells)), " | ".join(cells.values())]
        return "\n".join(f"| {row} |" for row in rows)


def retrieval_report(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    distance: str | DistanceFn = "euclidean",
    ks: tuple[int, ...] = KS,
) -> RetrievalReport:
    """Recall@k, MAP@R and R-precision of every image against all others.

    Exact, and in bounded memory: the N × N distances are computed in blocks of queries.

    Args:
        embeddings: float[n, dim].
        labels: int[n].
        distance: as in :func:`~margin_jax.batch_all_triplet_loss`.
        ks: the k of Recall@k, each at least 1; values above n − 1 give the same as n − 1.

    Raises:
        ValueError: shapes that do not fit, embeddings or distances that are not finite, no two
            images of one identity, or a k below 1.
        TypeError: for `ks` that are not several whole numbers.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> x = np.array([[0.0], [1.0], [5.0], [7.0]])
        >>> mj.retrieval_report(x, np.array([0, 0, 1, 0]), ks=(1, 2)).recall_at
        {1: 0.6666666666666666, 2: 1.0}

    References:
        MAP@R: Musgrave et al. 2020, "A Metric Learning Reality Check",
        `arXiv 2003.08505 <https://arxiv.org/abs/2003.08505>`_.
    """
    x, y = check_embeddings(embeddings, labels)
    check_ks("ks", ks)
    _, dense, sizes = np.unique(y, return_inverse=True, return_counts=True)
    others = sizes[dense] - 1
    if not others.any():
        raise ValueError(f"retrieval needs two images of one identity; got none in {len(y)} images")

    metric = get_distance(distance)
    vectors = x - origin(metric, x)
    depth = min(len(y) - 1, max(*ks, int(np.max(others))))
    queries = np.flatnonzero(others)
    rank = np.arange(depth)
    found = dict.fromkeys(ks, 0)
    map_at_r, r_precision = 0.0, 0.0
    for block, padded in in_blocks(queries, len(y)):
        right, bad = _right(metric, vectors, dense, padded, depth)
        check_finite(int(np.sum(bad[: len(block)])), len(block) * (len(y) - 1))
        right = np.asarray(right)[: len(block)]
        for k in found:
            found[k] += int(np.count_nonzero(right[:, :k].any(axis=1)))
        r = others[block][:, None]
        within = right & (rank < r)
        precision = np.cumsum(right, axis=1) / (rank + 1)
        map_at_r += float(np.sum(np.where(within, precision, 0.0) / r))
        r_precision += float(np.sum(within / r))
    n = len(queries)
    return RetrievalReport(
        recall_at={k: count / n for k, count in found.items()},
        map_at_r=map_at_r / n,
        r_precision=r_precision / n,
        queries=n,
        images=len(y),
    )


def check_ks(name: str, ks: tuple[int, ...]) -> None:
    """Raises ValueError unless all are at least 1, TypeError unless they are whole numbers."""
    if np.ndim(ks) != 1 or not all(isinstance(k, numbers.Integral) for k in ks):
        raise TypeError(f"{name} must be several whole numbers, such as (1, 5); got {ks!r:.80}")
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"{name} must be at least 1; got {ks}")


def check_embeddings(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(float32[n, dim], labels[n])``; ValueError for other shapes, or if not all is finite."""
    x, y = np.asarray(embeddings, np.float32), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] == 0:
        raise ValueError(
            f"expected embeddings [n, dim], dim at least 1, and labels [n]; got shapes {x.shape} "
            f"and {y.shape}"
        )
    if not np.all(np.isfinite(x)):
        raise ValueError("embeddings must be finite")
    return x, y


@functools.partial(jax.jit, static_argnums=(0, 4))
def _right(
    metric: DistanceFn, x: Array, labels: Array, rows: Array, depth: int
) -> tuple[Array, Array]:
    """Whether the nearest, second nearest, … has the label of the query: bool[rows, depth].

    Also how many of a query's distances to others are not finite: int32[rows].
    """
    tile = metric(x[rows], x)
    tile = tile.at[jnp.arange(len(rows)), rows].set(jnp.inf)
    bad = jnp.sum(~jnp.isfinite(tile), axis=1) - 1  # but for itself
    _, nearest = jax.lax.top_k(-tile, depth)  # ties: the lower index first
    return labels[nearest] == labels[rows][:, None], bad
