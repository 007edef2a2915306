"""The shadow loss."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jax import Array
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.losses.base import WithoutParameters
from margin_jax.losses.batch_all import REDUCTIONS, batch_all_triplet_loss, check_kinds
from margin_jax.losses.distances import shadow
from margin_jax.stats import TripletStats


@dataclass(frozen=True)
class ShadowLoss(WithoutParameters):
    """Shadow loss: batch-all triplets with distances measured along the anchor.

    ::

        δ_a(x) = | ‖a‖ − a·x / ‖a‖ |
        loss(a, p, n) = max(0, δ_a(p) − δ_a(n) + μ)

    For embeddings of length 1, as in the paper and from the networks here, δ is 1 − cos: up to
    rounding it *is* the triplet loss with cosine distance (``TripletLoss("cosine")``). It differs
    only for embeddings that are not normalised. There the part of x that is orthogonal to the
    anchor gets no gradient, and longer embeddings satisfy any margin, so a schedule that follows
    the easy share raises the margin without limit.

    After training images are compared by cosine distance, since δ is not symmetric. The gradient is
    0 for anchors of length 0, and large for short ones.

    Attributes:
        reduction, mining, soft: as in :func:`~margin_jax.batch_all_triplet_loss`. There is no swap:
            it would measure negatives along the positive, which the paper does not do.

    Raises:
        ValueError: for values that that function refuses.

    References:
        `arXiv 2311.14012 <https://arxiv.org/abs/2311.14012>`_; we found no code by the authors. The
        formula is taken from audits of the paper.
    """

    reduction: str = "mean_active"
    mining: str = "all"
    soft: bool = False

    distance: ClassVar[str] = "cosine"
    counts_by = staticmethod(shadow)

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_kinds(self.mining, swap=False)

    def __call__(
        self,
        params: Any,
        embeddings: ArrayLike,
        labels: ArrayLike,
        margin: ArrayLike,
        *,
        where: ArrayLike | None = None,
        references: ArrayLike | None = None,
        reference_labels: ArrayLike | None = None,
        reference_where: ArrayLike | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Array, TripletStats]:
        """``(loss, stats)``; arguments as in the function, `params` are not used."""
        return batch_all_triplet_loss(
            embeddings,
            labels,
            margin,
            distance=shadow,
            reduction=self.reduction,
            mining=self.mining,
            where=where,
            references=references,
            reference_labels=reference_labels,
            reference_where=reference_where,
            axis_name=axis_name,
            soft=self.soft,
        )
