"""Which images are mistaken for each other: of every image with every other, in bounded memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.evaluation.blocks import in_blocks
from margin_jax.evaluation.retrieval import check_embeddings
from margin_jax.evaluation.roc import check_finite
from margin_jax.evaluation.verification import at_most, check_threshold
from margin_jax.losses.distances import DistanceFn, get_distance, origin


class Mistakes(NamedTuple):
    """What each image is mistaken for, at a threshold.

    Attributes:
        nearest: int64[n], the nearest image of another identity; −1 if there is none.
        nearest_distance: float32[n], infinite if there is none.
        farthest: int64[n], the farthest other image of the same identity; −1 if there is none.
        farthest_distance: float32[n], minus infinity if there is none.
        false_matches: int64[n], images of other identities that are at most the threshold away.
        false_non_matches: int64[n], other images of the same identity that are farther.
        threshold: that was asked for.
    """

    nearest: np.ndarray
    nearest_distance: np.ndarray
    farthest: np.ndarray
    farthest_distance: np.ndarray
    false_matches: np.ndarray
    false_non_matches: np.ndarray
    threshold: float

    def worst_false_matches(self, count: int) -> list[tuple[float, int, int]]:
        """``(distance, image, its nearest of another identity)``, the smallest distance first.

        An image is in one of them at most, or a single one could be in all.
        """
        wrong = self.nearest_distance <= at_most(self.threshold)
        return _each_once(wrong, self.nearest_distance, self.nearest, count)

    def worst_false_non_matches(self, count: int) -> list[tuple[float, int, int]]:
        """``(distance, image, its farthest of the same)``, the largest distance first; likewise."""
        wrong = self.farthest_distance > at_most(self.threshold)
        found = _each_once(wrong, -self.farthest_distance, self.farthest, count)
        return [(-distance, first, second) for distance, first, second in found]


def find_mistakes(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    threshold: float,
    distance: str | DistanceFn = "euclidean",
) -> Mistakes:
    """Compares every image with every other: n² distances, a block of images at a time.

    Args:
        embeddings: float[n, dim].
        labels: int[n].
        threshold: at most it is called the same.
        distance: symmetric, as in :func:`~margin_jax.batch_all_triplet_loss`.

    Raises:
        ValueError: shapes that do not fit, fewer than two images, embeddings or distances that are
            not finite, or a threshold that is NaN.
        TypeError: for a threshold that is no number.
    """
    check_threshold(threshold)
    x, y = check_embeddings(embeddings, labels)
    if len(x) < 2:
        raise ValueError(f"mistakes need two images; got {len(x)}")
    metric = get_distance(distance)
    _, dense = np.unique(y, return_inverse=True)
    vectors, names = x - origin(metric, x), jnp.asarray(dense)
    parts = []
    for block, padded in in_blocks(np.arange(len(x)), len(x)):
        *found, bad = (
            np.asarray(part)[: len(block)]
            for part in _compare(metric, vectors, names, padded, at_most(threshold))
        )
        check_finite(int(np.sum(bad)), len(block) * (len(x) - 1))
        parts.append(found)
    near, at, far, to, matched, missed = (np.concatenate(p) for p in zip(*parts, strict=True))
    at, to = np.where(np.isinf(near), -1, at), np.where(np.isinf(far), -1, to)
    at, to, matched, missed = (part.astype(np.int64) for part in (at, to, matched, missed))
    return Mistakes(at, near, to, far, matched, missed, threshold)


@functools.partial(jax.jit, static_argnums=0)
def _compare(
    metric: DistanceFn, x: Array, labels: Array, rows: Array, threshold: Array
) -> tuple[Array, ...]:
    tile = metric(x[rows], x)
    other = jnp.arange(len(x)) != rows[:, None]
    same = labels[rows][:, None] == labels
    different, same = ~same, same & other
    near = jnp.where(different, tile, jnp.inf)
    far = jnp.where(same, tile, -jnp.inf)
    return (
        jnp.min(near, axis=1),
        jnp.argmin(near, axis=1),
        jnp.max(far, axis=1),
        jnp.argmax(far, axis=1),
        jnp.sum(different & (tile <= threshold), axis=1),
        jnp.sum(same & (tile > threshold), axis=1),
        jnp.sum(other & ~jnp.isfinite(tile), axis=1),
    )


def _each_once(
    wrong: np.ndarray, order: np.ndarray, with_whom: np.ndarray, count: int
) -> list[tuple[float, int, int]]:
    """The first pairs in an order, but for those with an image that was in one before."""
    found, seen = list[tuple[float, int, int]](), set[int]()
    for first in np.argsort(order, kind="stable").tolist():
        second = int(with_whom[first])
        if len(found) == count or not wrong[first]:
            break
        if not seen & {first, second}:
            seen |= {first, second}
            found.append((float(order[first]), min(first, second), max(first, second)))
    return found
