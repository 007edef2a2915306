"""The dynamic soft margin: triplets weighted by how common their difference of distances is."""

import dataclasses
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.losses.arguments import check_margin, check_rows
from margin_jax.losses.base import WithoutParameters, one_program
from margin_jax.losses.batch_all import triplet_stats
from margin_jax.losses.distances import between_directions, euclidean, unit
from margin_jax.losses.global_batch import first_row, rows_of_all, summed
from margin_jax.losses.windows import by_label, inverse, kth_positive, negatives, windows_of
from margin_jax.stats import TripletStats

_MOST = 2.0  # between vectors of length 1
_SHARES = 2**18


@dataclasses.dataclass(frozen=True)
class DynamicSoftMarginLoss(WithoutParameters):
    """Dynamic soft margin: a running distribution in place of margin and hinge.

    Embeddings are normalised to length 1, and d is Euclidean. Over all T valid triplets of a batch
    ::

        loss = (1 / T) Σ F(d(a,p) − d(a,n)) · (d(a,p) − d(a,n))

    where F is the cumulative distribution of those differences. It comes from a histogram over [−2,
    2], in which each triplet is split between the two nearest bins. Before each use it is updated
    to ``(1 − momentum) · before + momentum · batch``; the first batch with a triplet replaces it.
    No gradient flows through F. The hardest triplets have weight 1, the easiest almost 0.

    The margin has no effect on the loss; triplets are only counted with it, as
    :func:`~margin_jax.triplet_stats` does.

    Only the loss and what it counts normalise embeddings: after training they are compared as the
    network returns them. Let it return length 1, as those here do.

    The histogram is the loss's *state*: :func:`~margin_jax.make_train_step` keeps it in the train
    state, where no optimiser changes it, and it is saved and restored. Alone the loss is the pure
    function ``loss({}, embeddings, labels, margin, state=state) -> (loss, stats, state)``.

    It takes O(batch · global batch) memory on each device, and visits every triplet twice. The
    paper uses only the hardest negative of each pair; here all negatives are used, as in PyTorch
    Metric Learning. That library weights a batch in the histogram by its number of triplets and
    lets gradients flow through F; here both are as in the authors' code.

    Attributes:
        bins: the number of histogram bins from −2 to 2, both included.
        momentum: the weight of a batch, in (0, 1].

    Raises:
        ValueError: values out of range; when called, a state of another shape.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> loss = mj.DynamicSoftMarginLoss()
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.5, 1.0]])
        >>> value, stats, state = loss({}, x, jnp.array([0, 0, 1, 1]), 0.2, state=loss.init_state())
        >>> round(float(value), 4), round(float(state.sum()), 4)
        (-0.1586, 1.0)

    References:
        Zhang & Rusinkiewicz 2019, "Learning Local Descriptors with a CDF-Based Dynamic Soft
        Margin", ICCV.
    """

    bins: int = 512
    momentum: float = 0.01

    distance: ClassVar[str] = "euclidean"
    counts_by = staticmethod(between_directions)

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        if not isinstance(self.bins, numbers.Integral) or not 2 <= self.bins <= 2**16:
            raise ValueError(f"bins must be a whole number from 2 to 65,536; got {self.bins}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1; got {self.momentum}")

    def init_state(self) -> Array:
        """float32[bins], the histogram before the first batch: all 0."""
        return jnp.zeros(self.bins, jnp.float32)

    def __call__(
        self,
        params: Any,
        embeddings: ArrayLike,
        labels: ArrayLike,
        margin: ArrayLike,
        *,
        state: Array,
        where: ArrayLike | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Array, TripletStats, Array]:
        """``(loss, stats, state)``; arguments as for :class:`~margin_jax.Loss`, and `state`."""
        if getattr(state, "shape", None) != (self.bins,):
            got = getattr(state, "shape", type(state).__name__)
            raise ValueError(
                f"state must have shape ({self.bins},), as init_state() gives it; create_state "
                f"takes it as loss_state; got {got}"
            )
        x, y, real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
        mu = check_margin(margin, x.dtype, len(x))
        return _compute(self, x, y, None if where is None else real, mu, state, axis_name)


@one_program
def _compute(
    loss: DynamicSoftMarginLoss,
    x: Array,
    y: Array,
    where: Array | None,
    mu: Array,
    state: Array,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, TripletStats, Array]:
    rows = unit(x)
    stats = triplet_stats(
        rows,
        y,
        mu,
        distance=loss.distance,
        where=where,
        axis_name=axis_name,
    )

    real = jnp.ones(y.shape, bool) if where is None else where
    everyone, labels_of_all, all_real = rows_of_all((rows, y, real), axis_name)
    order = by_label(labels_of_all, None if where is None else all_real)
    window = windows_of(y, real, labels_of_all[order], all_real[order])
    row = jnp.arange(len(rows), dtype=jnp.int32)
    window = window._replace(itself=inverse(order)[first_row(rows, axis_name) + row])
    tile = euclidean(rows, everyone[order])
    constant, negative = jax.lax.stop_gradient(tile), negatives(window, len(order))
    most = jnp.max(window.stop - window.start)

    def triplets(k: Array) -> tuple[Array, Array, Array, Array]:
        """Of each anchor's k-th positive: column, what is a triplet, bin, how far in it."""
        p, exists = kth_positive(window, k, len(order))
        place = (constant[row, p][:, None] - constant + _MOST) * (loss.bins - 1) / (2 * _MOST)
        low = jnp.clip(jnp.floor(place), 0, loss.bins - 2)
        within = jnp.clip(place - low, 0, 1)
        return p, exists[:, None] & negative, low.astype(jnp.int32), within

    def add_counts(k: Array, counts: Array) -> Array:
        _, valid, low, within = triplets(k)
        shares = jnp.where(valid[..., None], jnp.stack([1 - within, within], axis=-1), 0)
        if parts == 1:
            return counts + jnp.zeros_like(counts).at[low].add(shares)
        apart = jnp.zeros_like(counts, shape=(parts, *counts.shape))
        return counts + jnp.sum(apart.at[part[:, None], low].add(shares), axis=0)

    # A float32 that counts shares one by one loses them when it is large.
    parts = -(-constant.size // _SHARES)
    part = row * parts // len(rows)
    # Each bin's share of what lies above it, and of what lies below the next one.
    counts = jnp.zeros_like(constant, shape=(loss.bins, 2))
    counts = summed(jax.lax.fori_loop(0, most, add_counts, counts), axis_name)
    batch = counts[:, 0] + jnp.roll(counts[:, 1], 1)
    total = jnp.sum(batch)
    batch = batch / jnp.where(total > 0, total, 1)
    momentum = jnp.where(jnp.sum(state) > 0, loss.momentum, 1)
    after = (1 - momentum) * state + momentum * batch
    after = jnp.where(total > 0, after, state)
    below = jnp.cumsum(after)

    def add_weights(k: Array, weights: Array) -> Array:
        p, valid, low, _ = triplets(k)
        weight = jnp.where(valid, below[low], 0)
        return (weights - weight).at[row, p].add(jnp.sum(weight, axis=1))

    # The loss is linear in the distances once its weights are known.
    weights = jax.lax.fori_loop(0, most, add_weights, jnp.zeros_like(constant))
    triplets_of_all = summed(jnp.sum(stats.valid.astype(x.dtype)), axis_name)
    value = summed(jnp.sum(jax.lax.stop_gradient(weights) * tile), axis_name)
    value = value / jnp.where(triplets_of_all > 0, triplets_of_all, 1)
    return value, stats, jax.lax.stop_gradient(after).astype(state.dtype)
