"""The balancing margin's idea in a triplet loss, which is ours and not published."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.losses.arguments import check_margin, check_rows
from margin_jax.losses.balancing_margin import check_counts, relative_margins
from margin_jax.losses.base import WithoutParameters, one_program
from margin_jax.losses.batch_all import (
    REDUCTIONS,
    batch_all_triplet_loss,
    check_kinds,
    triplet_stats,
)
from margin_jax.stats import TripletStats


@dataclasses.dataclass(frozen=True)
class TransplantLoss(WithoutParameters):
    """Triplet transplant: batch-all with a margin per anchor, by class frequency and difficulty.

    Our own variant of the balancing margin (:class:`~margin_jax.BalancingMarginLoss`); unpublished.
    With n_j the number of training images of class j and d the cosine distance, an anchor of class
    y has the margin ::

        μ_a = K · (n_y / min n)^(−τ) · (1 + λ · h_a · mean_p d(a,p) / 2)

    where h_a is the share of the anchor's triplets with d(a,n) < d(a,p). No gradient flows through
    the last factor. Rare classes and hard anchors get larger margins; the schedule sets K, the
    margin of an anchor of the rarest class with h_a = 0. Each anchor's triplets are easy, semihard
    or hard by its own margin. If all classes have the same size, only the difficulty is left.
    Batches with equally many images of each class, as the sampler draws them, already correct for
    class frequency.

    It takes as long as :class:`~margin_jax.TripletLoss` plus a second count of its triplets.

    Attributes:
        reduction, mining: as in :func:`~margin_jax.batch_all_triplet_loss`.
        tau: τ; at 0 all classes have the margin K.
        instance: λ; at 0 difficulty has no effect.
        counts: the number of training images of each class, at least 1. :func:`~margin_jax.fit`
            fills them in.

    Raises:
        ValueError: values out of range, or a class without images; when called, if there are no
            counts. A label without a count makes the loss NaN.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> loss = mj.TransplantLoss(counts=(40, 10), instance=0.0)
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.5, 1.0]])
        >>> loss({}, x, jnp.array([0, 0, 1, 1]), 0.8)[1].active  # margins .2, .2, .8 and .8
        Array([0, 1, 1, 2], dtype=int32)
    """

    reduction: str = "mean_active"
    mining: str = "all"
    tau: float = 1.0
    instance: float = 1.0
    counts: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    distance: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_kinds(self.mining, swap=False)
        for name in ("tau", "instance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; got {getattr(self, name)}")
        object.__setattr__(self, "counts", check_counts(self.counts))

    def in_epoch(self, epoch: int, counts: Sequence[int]) -> "TransplantLoss":
        """The loss on so many images of each class."""
        return dataclasses.replace(self, counts=tuple(counts))

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
        """``(loss, stats)``; arguments as for :class:`~margin_jax.Loss`, `params` are not used.

        Labels are from 0 to the number of counts − 1.
        """
        x, y, real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
        mu = check_margin(margin, x.dtype)
        return _compute(self, x, y, None if where is None else real, mu, axis_name)


@one_program
def _compute(
    loss: TransplantLoss,
    x: Array,
    y: Array,
    where: Array | None,
    mu: Array,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, TripletStats]:
    relative = jnp.asarray(relative_margins(loss.counts, loss.tau), x.dtype)
    y = y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)
    known = (y >= 0) & (y < len(loss.counts))
    own = jnp.where(known, relative[jnp.where(known, y, 0)], jnp.nan)

    options: dict[str, Any] = {"distance": loss.distance, "where": where, "axis_name": axis_name}
    at_0 = triplet_stats(x, y, 0.0, **options)
    hard = at_0.hard.astype(x.dtype) / jnp.maximum(at_0.valid, 1).astype(x.dtype)
    mean = at_0.sum_ap / jnp.maximum(at_0.positives, 1).astype(x.dtype)
    hardness = jax.lax.stop_gradient(1 + loss.instance * hard * mean / 2)
    return batch_all_triplet_loss(
        x,
        y,
        mu * own * hardness,
        reduction=loss.reduction,
        mining=loss.mining,
        **options,
    )
