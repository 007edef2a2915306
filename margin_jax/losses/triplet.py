"""The batch-all triplet loss as a value."""

from dataclasses import dataclass
from typing import Any

from jax import Array

from margin_jax.choices import check_choice
from margin_jax.losses.base import WithoutParameters
from margin_jax.losses.batch_all import REDUCTIONS, batch_all_triplet_loss, check_kinds
from margin_jax.losses.distances import DistanceFn, get_distance
from margin_jax.stats import TripletStats


@dataclass(frozen=True)
class TripletLoss(WithoutParameters):
    """:func:`~margin_jax.batch_all_triplet_loss` as a :class:`~margin_jax.Loss`; no parameters.

    Attributes:
        distance, reduction, mining, swap, soft: as in that function.

    Raises:
        ValueError: for values that that function refuses.

    Example:
        >>> import margin_jax as mj
        >>> mj.TripletLoss(reduction="mean", soft=True)
        TripletLoss(distance='euclidean', reduction='mean', mining='all', swap=False, soft=True)
    """

    distance: str | DistanceFn = "euclidean"
    reduction: str = "mean_active"
    mining: str = "all"
    swap: bool = False
    soft: bool = False

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        get_distance(self.distance)
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_kinds(self.mining, swap=self.swap)

    def __call__(
        self,
        params: Any,
        embeddings: Array,
        labels: Array,
        margin: Array,
        *,
        where: Array | None = None,
        references: Array | None = None,
        reference_labels: Array | None = None,
        reference_where: Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[Array, TripletStats]:
        """``(loss, stats)``; arguments as in the function, `params` are not used."""
        return batch_all_triplet_loss(
            embeddings,
            labels,
            margin,
            distance=self.distance,
            reduction=self.reduction,
            mining=self.mining,
            where=where,
            references=references,
            reference_labels=reference_labels,
            reference_where=reference_where,
            axis_name=axis_name,
            swap=self.swap,
            soft=self.soft,
        )
