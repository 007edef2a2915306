"""The supervised contrastive loss."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.losses.arguments import check_margin, check_rows
from margin_jax.losses.base import WithoutParameters, one_program
from margin_jax.losses.batch_all import triplet_stats
from margin_jax.losses.distances import dot, unit
from margin_jax.losses.global_batch import is_itself, rows_of_all, summed
from margin_jax.stats import TripletStats


@dataclasses.dataclass(frozen=True)
class SupConLoss(WithoutParameters):
    """Supervised contrastive loss: a softmax over all other rows that favours those of the label.

    With s_ik the cosine of rows i and k, and P(i) the other rows with the label of i::

        loss(i) = −(1 / |P(i)|) Σ_{p ∈ P(i)} log( e^{s_ip / T} / Σ_{k ≠ i} e^{s_ik / T} )

    averaged over the rows that have a positive and a negative (L_out of the paper). It does not use
    the margin; triplets are only counted with it, by cosine distances, as
    :func:`~margin_jax.triplet_stats` does. It takes O(batch · global batch) memory on each device.

    A :class:`~margin_jax.Loss`; alone it is a pure function: ``SupConLoss()({}, embeddings, labels,
    margin)``.

    Attributes:
        temperature: T, above 0.

    Raises:
        ValueError: a temperature that is not above 0 and finite.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> value, stats = mj.SupConLoss()({}, x, jnp.array([0, 0, 1, 1]), 0.2)
        >>> round(float(value), 4), stats.totals()["easy"]
        (0.0003, 8)

    References:
        Khosla et al. 2020, `arXiv 2004.11362 <https://arxiv.org/abs/2004.11362>`_.
    """

    temperature: float = 0.1

    distance: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite; got {self.temperature}")

    def __call__(
        self,
        params: Any,
        embeddings: ArrayLike,
        labels: ArrayLike,
        margin: ArrayLike,
        *,
        where: ArrayLike | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Array, TripletStats]:
        """``(loss, stats)``; arguments as for :class:`~margin_jax.Loss`, `params` are not used."""
        x, y, real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
        mu = check_margin(margin, x.dtype, len(x))
        return _compute(self, x, y, None if where is None else real, mu, axis_name)


@one_program
def _compute(
    loss: SupConLoss,
    x: Array,
    y: Array,
    where: Array | None,
    mu: Array,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, TripletStats]:
    stats = triplet_stats(x, y, mu, distance=loss.distance, where=where, axis_name=axis_name)
    counted = stats.valid > 0
    real = jnp.ones(y.shape, bool) if where is None else where

    rows = unit(x)
    everyone, everyone_labels, everyone_real = rows_of_all((rows, y, real), axis_name)
    other = ~is_itself(rows, everyone, axis_name) & everyone_real[None, :]
    positive = other & (y[:, None] == everyone_labels[None, :])
    cosines = dot(rows, everyone) / loss.temperature
    # Of a row that does not count all columns stand in, as a sum over none has no logarithm.
    taken = jnp.where(other | ~counted[:, None], cosines, -jnp.inf)
    positives = jnp.maximum(stats.positives, 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(positive, cosines, 0), axis=1) / positives
    losses = jnp.where(counted, jax.nn.logsumexp(taken, axis=1) - mean, 0)
    sums = jnp.sum(losses), jnp.sum(counted.astype(losses.dtype))
    total, count = summed(sums, axis_name)
    return total / jnp.where(count > 0, count, 1), stats
