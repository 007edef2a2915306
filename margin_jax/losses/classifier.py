"""Classifiers over the training identities, whose own class bears a margin: ArcFace and CosFace.

Each class has a *proxy*, a row of the loss's parameters; an embedding is compared with all of them
by the cosine. To a schedule, that is a triplet loss: of a row x of class y, the proxy W_y is the
positive, and each other one, W_j, a negative.
"""

import dataclasses
import math
import numbers
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from margin_jax.devices.meshes import gathered
from margin_jax.losses.arguments import check_margin, check_rows, known_labels
from margin_jax.losses.base import one_program
from margin_jax.losses.distances import dot, unit
from margin_jax.losses.global_batch import summed
from margin_jax.stats import TripletStats


class Compared(NamedTuple):
    """Rows of a batch against the proxies of all classes.

    Attributes:
        cosine: float[batch, classes].
        own: bool[batch, classes], whether the class is that of the row.
        target: float[batch], the cosine of the own class.
        labels: int32[batch], 0 for padding and -1 for what is no class.
        real: bool[batch].
    """

    cosine: Array
    own: Array
    target: Array
    labels: Array
    real: Array


@dataclasses.dataclass(frozen=True)
class Classifier:
    """What ArcFace, CosFace and the balancing margin share: a softmax over cosines.

    Attributes:
        scale: s, the inverse temperature of the softmax.
    """

    scale: float = 64.0

    distance: ClassVar[str] = "cosine"
    counts_by: ClassVar[None] = None  # rows and proxies

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite; got {self.scale}")

    def init(self, key: Array, embedding_size: int, classes: int) -> Array:
        """float32[classes, embedding_size]: a proxy for each class, of length about 1.

        Only their directions count.

        Raises:
            ValueError: fewer than two classes.
        """
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 identities to train on; got {classes}")
        drawn = jax.random.normal(key, (classes, embedding_size), jnp.float32)
        return drawn / math.sqrt(embedding_size)

    def __call__(
        self,
        params: ArrayLike,
        embeddings: ArrayLike,
        labels: ArrayLike,
        margin: ArrayLike,
        *,
        where: ArrayLike | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[Array, TripletStats]:
        """``(loss, stats)`` of a batch.

        Args:
            params: float[classes, dim], the proxies; the same on every device.
            embeddings: float[batch, dim]; they need not be of length 1.
            labels: int[batch], from 0 to classes − 1. A label outside makes the loss NaN.
            margin: float[], at least 0, in the unit that the class names; traced.
            where, axis_name: as for :class:`~margin_jax.Loss`.

        Raises:
            ValueError, TypeError: for other shapes or types, fewer than two proxies, labels known
                to be out of range, or a margin known to be below 0.
        """
        x, y, real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
        proxies = check_proxies(params, x)
        if where is None and isinstance(known := known_labels(labels), np.ndarray):
            check_labels(known, len(proxies))
        if isinstance(margin, numbers.Real | np.ndarray) and np.any(np.asarray(margin) < 0):
            raise ValueError(f"the margin of a classifier must be at least 0; got {margin}")
        return _compute(self, proxies, x, y, real, check_margin(margin, x.dtype), axis_name)

    def target(self, compared: Compared, margin: Array) -> Array:
        """float[batch], what stands for the cosine of the own class."""
        raise NotImplementedError

    def adjust(self, compared: Compared, logits: Array) -> tuple[Array, Array]:
        """The logits as the softmax sees them, and the weight of each row."""
        return logits, compared.real.astype(logits.dtype)

    def reduce(
        self,
        compared: Compared,
        logits: Array,
        weights: Array,
        axis_name: str | tuple[str, ...] | None,
    ) -> Array:
        """The weighted mean of the cross-entropies of the global batch; 0 of nothing."""
        chosen = jnp.sum(jnp.where(compared.own, logits, 0), axis=1)
        entropies = jax.nn.logsumexp(logits, axis=1) - chosen
        # What lies beyond the classes has no proxy, which must not pass for an easy row.
        known = jnp.any(compared.own, axis=1)
        entropies = jnp.where(known, entropies, jnp.nan)
        sums = jnp.sum(jnp.where(compared.real, entropies * weights, 0)), jnp.sum(weights)
        total, count = summed(sums, axis_name)
        return total / jnp.where(count > 0, count, 1)


@dataclasses.dataclass(frozen=True)
class ArcFaceLoss(Classifier):
    """Additive angular margin: softmax cross-entropy with μ added to the angle of the own class.

    With cosθ_j the cosine between an embedding and proxy j, and y the class of the embedding::

        loss = −log( e^{s·cos(θ_y + μ)} / (e^{s·cos(θ_y + μ)} + Σ_{j≠y} e^{s·cosθ_j}) )

    averaged over the rows. Where θ_y + μ > π, cos(θ_y + μ) is replaced by cosθ_y − μ·sinμ, as in
    the authors' code, so that it keeps falling as θ_y grows; with a μ above 2.3 it jumps up there,
    and a larger one is no harder. Angles are never computed, so gradients are finite at cosθ = ±1.

    Each (x, W_y, W_j) counts as a triplet: easy if cos(θ_y + μ) ≥ cosθ_j, hard if cosθ_j ≥ cosθ_y
    and it is not easy, else semihard. Distances in the statistics are 1 − cosθ. A softmax is never
    0, so easy triplets also have a (small) gradient.

    A :class:`~margin_jax.Loss`; alone it is a pure function: ``ArcFaceLoss()(proxies, embeddings,
    labels, margin)``.

    The margin is in radians and is clipped to [0, π]. Published runs use 0.5.

    Attributes:
        scale: s.

    Raises:
        ValueError: a scale that is not above 0 and finite.

    Example:
        >>> import jax, jax.numpy as jnp, margin_jax as mj
        >>> loss = mj.ArcFaceLoss(scale=16.0)
        >>> x, labels = jnp.array([[1.0, 0.1], [0.2, 1.0], [2.0, 0.0]]), jnp.array([0, 1, 1])
        >>> value, stats = loss(jnp.eye(2), x, labels, 0.5)
        >>> stats.totals()
        {'valid': 3, 'easy': 2, 'semihard': 0, 'hard': 1}

    References:
        Deng et al. 2019, `arXiv 1801.07698 <https://arxiv.org/abs/1801.07698>`_.
    """

    def target(self, compared: Compared, margin: Array) -> Array:
        """``cos(θ_y + μ)``."""
        return plus_angle(compared.target, margin)


@dataclasses.dataclass(frozen=True)
class CosFaceLoss(Classifier):
    """Additive cosine margin: :class:`~margin_jax.ArcFaceLoss` with cosθ_y − μ for the own class.

    ::

        loss = −log( e^{s·(cosθ_y − μ)} / (e^{s·(cosθ_y − μ)} + Σ_{j≠y} e^{s·cosθ_j}) )

    averaged over the rows. A triplet (x, W_y, W_j) is easy if cosθ_y − μ ≥ cosθ_j, as in a triplet
    loss with distances 1 − cosθ.

    The margin is a difference of cosines. Published runs use 0.35.

    Attributes:
        scale: s.

    Raises:
        ValueError: a scale that is not above 0 and finite.

    References:
        Wang et al. 2018, `arXiv 1801.09414 <https://arxiv.org/abs/1801.09414>`_.
    """

    def target(self, compared: Compared, margin: Array) -> Array:
        """``cosθ_y − μ``."""
        return compared.target - margin


@one_program
def _compute(
    loss: Classifier,
    proxies: Array,
    x: Array,
    y: Array,
    real: Array,
    mu: Array,
    axis_name: str | tuple[str, ...] | None,
) -> tuple[Array, TripletStats]:
    compared = compare(proxies, x, y, real)
    target = loss.target(compared, mu)
    logits = loss.scale * jnp.where(compared.own, target[:, None], compared.cosine)
    value = loss.reduce(compared, *loss.adjust(compared, logits), axis_name)
    return value, jax.lax.stop_gradient(proxy_triplets(compared, target))


def check_proxies(proxies: ArrayLike, x: Array) -> Array:
    """The parameters of a classifier of rows such as `x`.

    Raises:
        ValueError: for another shape.
        TypeError: for what is no array of floating point.
    """
    try:
        weights = gathered(jnp.asarray(proxies))
    except (TypeError, ValueError):
        raise TypeError(f"proxies must be an array; got {type(proxies).__name__}") from None
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(f"proxies must be floating point; got {weights.dtype}")
    if weights.ndim != 2 or weights.shape[0] < 2 or weights.shape[1] != x.shape[1]:
        raise ValueError(
            f"proxies must have shape [classes, {x.shape[1]}], of at least 2 classes and as many "
            f"columns as embeddings; got {weights.shape}"
        )
    return weights


def check_labels(known: np.ndarray, classes: int) -> None:
    """Raises ValueError for labels without a proxy."""
    if known.min() < 0 or known.max() >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, a class each for {classes} proxies; got "
            f"{known.min()} to {known.max()}"
        )


def compare(proxies: Array, x: Array, y: Array, real: Array) -> Compared:
    """The cosines between all rows and all proxies, one matrix product."""
    classes = len(proxies)
    y = y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)
    y = jnp.where((y >= 0) & (y < classes), y, -1).astype(jnp.int32)
    y = jnp.where(real, y, 0)
    cosine = dot(unit(x), unit(proxies.astype(x.dtype)))
    own = y[:, None] == jnp.arange(classes, dtype=jnp.int32)[None, :]
    return Compared(cosine, own, jnp.sum(jnp.where(own, cosine, 0), axis=1), y, real)


def plus_angle(cosine: Array, margin: Array) -> Array:
    """``cos(θ + m)`` of cosθ, or ``cosθ − m·sin m`` beyond π, with m cut to [0, π]."""
    m = jnp.clip(margin, 0, math.pi)
    # The slope of the sine is infinite at ±1, where that of the cosine is 0.
    inside = jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6)
    turned = cosine * jnp.cos(m) - jnp.sqrt(1 - inside * inside) * jnp.sin(m)
    return jnp.where(cosine >= -jnp.cos(m), turned, cosine - m * jnp.sin(m))


def proxy_triplets(compared: Compared, target: Array) -> TripletStats:
    """Counts of the triplets (x, W_y, W_j), of which each real row has classes − 1."""
    cosine, own, of_own, _, real = compared
    other = ~own & real[:, None]
    active = other & (cosine > target[:, None])
    hard = active & (cosine >= of_own[:, None])
    away = jax.nn.relu(1 - cosine)

    def count(mask: Array) -> Array:
        return jnp.sum(mask, axis=1, dtype=jnp.int32)

    def total(mask: Array, values: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0), axis=1)

    own = own & real[:, None]
    return TripletStats(
        semihard=count(active & ~hard),
        hard=count(hard),
        positives=count(own),
        negatives=count(other),
        sum_ap=total(own, away),
        sum_an=total(other, away),
        sum_ap_squared=total(own, away * away),
        sum_an_squared=total(other, away * away),
    )
