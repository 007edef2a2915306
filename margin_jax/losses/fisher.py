"""Fisher discriminant losses: scatter within and between classes, by class means."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.losses.arguments import check_margin, check_rows
from margin_jax.losses.base import WithoutParameters, one_program
from margin_jax.losses.batch_all import batch_all_triplet_loss
from margin_jax.losses.distances import origin, squared_euclidean, unit
from margin_jax.losses.global_batch import rows_of_all
from margin_jax.stats import TripletStats


class Scatter(NamedTuple):
    """Mean squared distances over the pairs of a batch.

    Attributes:
        within: float[], over pairs of one class.
        between: float[], over pairs of two classes.
        triplets: float[], how many rows are anchors of one.
    """

    within: Array
    between: Array
    triplets: Array


@dataclasses.dataclass(frozen=True)
class Fisher(WithoutParameters):
    """What both losses share.

    Attributes:
        lam: λ, in (0, 1].
        unit: whether embeddings are normalised to length 1 first, in the loss and its counts; after
            training they are compared as the network returns them.
    """

    lam: float = 0.01
    unit: bool = False

    distance: ClassVar[str] = "squared_euclidean"
    counts_by: ClassVar[None] = None  # its scatters weigh their distances

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        if not 0 < self.lam <= 1:
            raise ValueError(f"lam must be above 0 and at most 1; got {self.lam}")

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
        """``(loss, stats)``; arguments as for :class:`~margin_jax.Loss`.

        `params` is ``{}``, or ``{"ridge": ε · ‖U‖²}`` with U the last layer's weights, a float[]
        that is added to both scatters.
        """
        x, y, real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
        mu = check_margin(margin, x.dtype)
        where = None if where is None else real
        ridge = params.get("ridge", 0.0) if isinstance(params, Mapping) else 0.0
        return _compute(self, ridge, x, y, where, mu, axis_name)

    def combine(self, within: Array, between: Array, margin: Array) -> Array:
        """The loss of a batch."""
        raise NotImplementedError


@one_program
def _compute(
    loss: Fisher,
    ridge: ArrayLike,
    x: Array,
    y: Array,
    where: Array | None,
    mu: Array,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, TripletStats]:
    x = unit(x) if loss.unit else x
    real = jnp.ones(y.shape, bool) if where is None else where
    everyone = rows_of_all((x, y, real), axis_name)
    found = scatter(*everyone)
    if axis_name is not None:  # the same on every device, which JAX cannot know
        found = jax.lax.pmean(found, axis_name)
    rows = _labelled(x - origin(squared_euclidean, everyone[0], everyone[2]), y, everyone[1])
    _, stats = batch_all_triplet_loss(
        jax.lax.stop_gradient(rows),
        y,
        jax.lax.stop_gradient(mu),
        distance=_Weighted(loss.lam),
        where=where,
        axis_name=axis_name,
    )
    value = loss.combine(found.within + ridge, found.between + ridge, mu)
    return jnp.where(found.triplets > 0, value, 0), stats


@dataclasses.dataclass(frozen=True)
class FisherTripletLoss(Fisher):
    """Fisher discriminant triplet loss (FDT): one hinge for the whole batch.

    With W the mean squared distance over all same-class pairs in the batch, and B that over all
    pairs of different classes::

        loss = max(0, μ + (2 − λ) · W − λ · B)

    It takes O(batch · dim) time, as it is computed from class means, without scatter matrices or
    pairs. A batch without triplets has loss 0. Counting triplets takes as long as for the triplet
    loss.

    In the counts, a triplet is easy if λ · ‖a − n‖² − (2 − λ) · ‖a − p‖² ≥ μ. This is our reading,
    since the paper has a single hinge for the batch. Distances in the statistics include these
    weights, so that for a small λ the record of an epoch may call embeddings collapsed that are
    well apart.

    The authors sum over the b triplets of a batch, so their margin (0.25 with b = 32) and their ε
    (1e-4) are b times those here; with means, λ does not depend on the number of pairs. With U the
    last layer's weights, their hinge also contains (2 − 2λ) · ε · ‖U‖², a weight decay. In your own
    loop, ``{"ridge": eps * jnp.sum(U**2)}`` as `params` adds it; :func:`~margin_jax.fit` leaves it
    out.

    Caution: if embeddings are not normalised, μ only sets their scale, not a difficulty: where λ ·
    B > (2 − λ) · W, longer embeddings satisfy any μ, and otherwise length 0 is best. With `unit`
    (and with the networks here, whose embeddings have length 1), μ is a difficulty. At the
    published λ of 0.01 the loss cannot be 0 unless B is at least 199 times W.

    Attributes:
        lam: λ, in (0, 1].
        unit: whether embeddings are normalised to length 1 first, in the loss and its counts; after
            training they are compared as the network returns them.

    Raises:
        ValueError: values out of range.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x = jnp.array([[0.0], [1.0], [4.0], [5.0]])
        >>> value, stats = mj.FisherTripletLoss(lam=0.5)({}, x, jnp.array([0, 0, 1, 1]), 8.0)
        >>> float(value), stats.totals()["easy"]  # 8 + 1.5 · 1 − 0.5 · 16.5
        (1.25, 2)

    References:
        Ghojogh et al. 2020, `arXiv 2004.04674 <https://arxiv.org/abs/2004.04674>`_, as its released
        code has it.
    """

    def combine(self, within: Array, between: Array, margin: Array) -> Array:
        """The hinge of both."""
        return jax.nn.relu(margin + (2 - self.lam) * within - self.lam * between)


@dataclasses.dataclass(frozen=True)
class FisherContrastiveLoss(Fisher):
    """Fisher discriminant contrastive loss (FDC): a hinge on pairs of different classes only.

    With W and B as in :class:`~margin_jax.FisherTripletLoss`, and everything else as there::

        loss = (2 − λ) · W + max(0, μ − λ · B)

    The ridge term adds (2 − λ) · ε · ‖U‖² outside the hinge and −λ · ε · ‖U‖² inside it.

    Attributes:
        lam: λ, in (0, 1].
        unit: whether embeddings are normalised to length 1 first, in the loss and its counts; after
            training they are compared as the network returns them.

    Raises:
        ValueError: values out of range.

    References:
        Ghojogh et al. 2020, `arXiv 2004.04674 <https://arxiv.org/abs/2004.04674>`_, as its released
        code has it.
    """

    def combine(self, within: Array, between: Array, margin: Array) -> Array:
        """The pull, and the hinge of the push."""
        return (2 - self.lam) * within + jax.nn.relu(margin - self.lam * between)


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """λ or 2 − λ times the squared distance, as the labels in the last column differ or not."""

    lam: float

    def __call__(self, x: Array, y: Array) -> Array:
        same = x[:, -1:] == y[:, -1:].T
        weight = jnp.where(same, 2 - self.lam, self.lam).astype(x.dtype)
        return weight * squared_euclidean(x[:, :-1], y[:, :-1])


def _labelled(x: Array, labels: Array, everyone: Array) -> Array:
    """float[rows, dim + 1]: the rows, and the place of each one's label among all labels.

    So a distance, which sees only rows, knows which are of one class. Places are below 92,682,
    whole numbers in float32.
    """
    place = jnp.searchsorted(jnp.sort(everyone), labels)
    return jnp.concatenate([x, place[:, None].astype(x.dtype)], axis=1)


def scatter(x: Array, labels: Array, real: Array) -> Scatter:
    """The scatter of a batch, by class means: O(batch · dim) time, no pair is listed.

    Over ordered pairs, with n rows, K of them in a class, z̄ its mean and z̿ that of all::

        Σ within  = 2 Σ_i K ‖z_i − z̄‖²
        Σ between = 2 Σ_i (n − K) ‖z_i − z̄‖² + 2 n Σ_i ‖z̄ − z̿‖²

    of which nothing cancels.
    """
    order = jnp.argsort(labels)
    # Padding adds nothing to the class that it stands in.
    x, labels, real = jnp.where(real[:, None], x, 0)[order], labels[order], real[order]
    begins = labels != jnp.roll(labels, 1)
    group = jnp.cumsum(begins.at[0].set(True)) - 1

    def by_class(v: Array) -> Array:
        """Each row's sum over its class."""
        found: Array = jax.ops.segment_sum(v, group, len(x), indices_are_sorted=True)
        return found[group]

    counted = real.astype(x.dtype)
    size, n = by_class(counted), jnp.sum(counted)
    mean = by_class(x) / jnp.maximum(size, 1)[:, None]
    away = jnp.sum(jnp.where(real[:, None], x - mean, 0) ** 2, axis=1)
    apart = mean - jnp.sum(x, axis=0, keepdims=True) / jnp.maximum(n, 1)
    apart = jnp.sum(jnp.where(real[:, None], apart, 0) ** 2, axis=1)
    within, between = jnp.sum(counted * (size - 1)), jnp.sum(counted * (n - size))
    return Scatter(
        2 * jnp.sum(size * away) / jnp.maximum(within, 1),
        2 * jnp.sum((n - size) * away + n * apart) / jnp.maximum(between, 1),
        jnp.sum(jnp.where((size > 1) & (n > size), counted, 0)),
    )
