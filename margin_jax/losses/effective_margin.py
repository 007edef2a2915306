"""The distribution of effective margins d(a,n) − d(a,p), from a seeded sample of triplets.

Their mean and spread come for free with the loss, of all triplets
(:class:`~margin_jax.TripletStats`); their quantiles need the triplets themselves, of which a sample
will do.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.devices.meshes import gathered
from margin_jax.losses.distances import DistanceFn, get_distance, origin, paired
from margin_jax.stats import EFFECTIVE_EDGES, TripletStats

SAMPLES = 512


def effective_margin_histogram(
    embeddings: ArrayLike,
    labels: ArrayLike,
    stats: TripletStats,
    key: Array,
    *,
    distance: str | DistanceFn = "euclidean",
    where: ArrayLike | None = None,
    samples: int = SAMPLES,
) -> Array:
    """Histogram of d(a,n) − d(a,p) over valid triplets drawn uniformly, with replacement.

    Pure, and has no effect on gradients. Bin k counts the values from edge k − 1 to just below edge
    k of ``margin_jax.stats.EFFECTIVE_EDGES``, float32[1024] from about −1,000 to 1,000; the last
    bin counts all larger values. The standard error of a share x is ``√(x (1 − x) / samples)``, and
    over the steps of an epoch it falls with the square root of their number. Takes O(samples ·
    batch) time and memory.

    Args:
        embeddings: float[batch, dim], as given to :func:`~margin_jax.batch_all_triplet_loss`.
        labels: int[batch].
        stats: what the loss returned for this batch, called without references and `axis_name`.
        key: the same key draws the same triplets.
        distance, where: as given to the loss.
        samples: triplets drawn, at least 1.

    Returns:
        int32[1024] that sum to `samples`; all 0 if there is no valid triplet. A triplet whose
        distances are not finite is not counted.

    Raises:
        ValueError: fewer than one sample, or an unknown distance.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    x, y = (gathered(jnp.asarray(v)) for v in (embeddings, labels))
    stats = jax.tree.map(gathered, stats)
    x = jax.lax.stop_gradient(x)
    x = x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
    real = jnp.ones(y.shape, bool) if where is None else gathered(jnp.asarray(where))
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)

    weights = stats.positives.astype(jnp.float32) * stats.negatives.astype(jnp.float32)
    total = jnp.sum(weights)
    a = jax.random.choice(anchor_key, len(y), (samples,), p=weights / jnp.where(total, total, 1))
    same = y[a][:, None] == y[None, :]
    itself = a[:, None] == jnp.arange(len(y))[None, :]

    def pick(key: Array, eligible: Array) -> Array:
        """int32[samples]: a random one of the eligible columns of each row."""
        return jnp.argmax(jnp.where(eligible, jax.random.uniform(key, eligible.shape), -1.0), 1)

    positive, negative = same & ~itself & real, ~same & real
    p, n = pick(positive_key, positive), pick(negative_key, negative)
    metric = get_distance(distance)
    x = x - origin(metric, x, real)
    effective = paired(metric, x[a], x[n]) - paired(metric, x[a], x[p])
    is_triplet = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    counted = (total > 0) & is_triplet & jnp.isfinite(effective)
    bins = jnp.searchsorted(jnp.asarray(EFFECTIVE_EDGES), effective, side="right")
    bins = jnp.minimum(bins, len(EFFECTIVE_EDGES) - 1)
    empty = jnp.zeros(len(EFFECTIVE_EDGES), jnp.int32)
    return empty.at[bins].add(counted.astype(jnp.int32))
