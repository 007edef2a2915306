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
    """Shadow loss: batch-all triplets, positive and negative measured on the anchor's own axis.

    ::

        δ_a(x) = | ‖a‖ − a·x / ‖a‖ |
        loss(a, p, n) = max(0, δ_a(p) − δ_a(n) + μ)

    Of embeddings of length 1, as the networks here give them and as the paper normalises them, δ is
    1 − cos: it *is* the triplet loss with cosine distance (``TripletLoss("cosine")``), to rounding.
    It is another loss only for embeddings of any length. There what of x is orthogonal to the
    anchor gets no gradient, and growing lengths satisfy any margin, so that a schedule which
    follows the easy share raises it without limit.

    After training, images are compared by the cosine, since δ is not symmetric. Its gradient is 0
    for anchors of length 0, and large for short ones.

    Attributes:
        reduction, mining, soft: as in :func:`~margin_jax.batch_all_triplet_loss`. Its swap would
            measure the negative on the positive's axis, which the paper does not.

    Raises:
        ValueError: for what that function refuses of them.

    References:
        `arXiv 2311.14012 <https://arxiv.org/abs/2311.14012>`_; no code of the authors' was found.
        The formula is as audits of the paper give it.
    """

    reduction: str = "mean_active"
    mining: str = "all"
    soft: bool = False

    distance: ClassVar[str] = "cosine"

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
        """``(loss, stats)``; arguments as in the function, `params` of no effect."""
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
