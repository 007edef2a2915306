"""The difficulty-aware balancing margin: more for rare classes and for misclassified rows."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.losses.classifier import Classifier, Compared, plus_angle


@dataclasses.dataclass(frozen=True)
class BalancingMarginLoss(Classifier):
    """Difficulty-aware balancing margin (DBM): ArcFace with a margin for each class and row.

    With n_j the training images of class j, and cosθ_j the cosine to its proxy, a row of class y
    has ::

        m = K · (n_y / min n)^(−τ) · (1 + λ · [some cosθ_j > cosθ_y] · (1 − cosθ_y) / 2)
        z_y = s · cos(θ_y + m),   z_j = s · cosθ_j

    and the loss is the cross-entropy of z, averaged over the rows. The schedule sets K, the margin
    of a correctly classified row of the rarest class; K = 0 gives the cosine softmax. Gradients
    flow through the difficulty (1 − cosθ_y) / 2, but not through the bracket, which is 1 for
    misclassified rows (without any margin) and otherwise 0. Where it changes, m jumps by up to K/2.

    With `balanced` (DBM-BS), log(n_j / Σ n) is added to every z_j. With `reweight_from` (DBM-DRW),
    a row of class y weighs (1 − β) / (1 − β^n_y) from that epoch on, and the loss is the weighted
    mean. Both change the softmax only: triplets are counted by cosines, as for
    :class:`~margin_jax.ArcFaceLoss`, with θ_y + m. Where θ_y + m > π, the row's own logit is that
    of ArcFace, which keeps falling if m is at most 2.3; in the released code it rises again. The
    released code takes min n from the last class, which is the rarest if classes are sorted by
    size; here it is always the rarest class.

    Attributes:
        scale: s.
        tau: τ; at 0 all classes have the margin K.
        instance: λ, the weight of the difficulty of misclassified rows.
        balanced: whether to add log class frequencies to the logits.
        reweight_from: the first epoch, from 1, in which rows are weighted by class; 0 for never.
            Outside :func:`~margin_jax.fit` a loss is that of epoch 1; see :meth:`in_epoch`.
        beta: β.
        counts: the number of training images of each class, at least 1. :func:`~margin_jax.fit`
            fills them in.

    Raises:
        ValueError: values out of range, or a class without images; when called, a number of counts
            other than that of the proxies, or a margin known to be below 0.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> loss = mj.BalancingMarginLoss(counts=(40, 10))
        >>> loss.class_margins(0.2)
        Array([0.05, 0.2 ], dtype=float32)
        >>> x, labels = jnp.array([[1.0, 0.1], [0.2, 1.0], [2.0, 0.0]]), jnp.array([0, 1, 1])
        >>> value, stats = loss(jnp.eye(2), x, labels, 0.2)
        >>> stats.totals()
        {'valid': 3, 'easy': 2, 'semihard': 0, 'hard': 1}

    References:
        Son et al. 2025, "Difficulty-aware Balancing Margin Loss for Long-tailed Recognition",
        `arXiv 2412.15477 <https://arxiv.org/abs/2412.15477>`_. Balanced softmax: Ren et al. 2020,
        `arXiv 2007.10740 <https://arxiv.org/abs/2007.10740>`_. Deferred weights: Cao et al. 2019,
        `arXiv 1906.07413 <https://arxiv.org/abs/1906.07413>`_; by β: Cui et al. 2019, `arXiv
        1901.05555 <https://arxiv.org/abs/1901.05555>`_.
    """

    scale: float = 32.0
    tau: float = 1.0
    instance: float = 1.0
    balanced: bool = False
    reweight_from: int = 0
    beta: float = 0.9999
    counts: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuses a value that could never be called."""
        super().__post_init__()
        for name in ("tau", "instance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; got {getattr(self, name)}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1; got {self.beta}")
        if self.reweight_from < 0:
            raise ValueError(f"reweight_from must be at least 0; got {self.reweight_from}")
        object.__setattr__(self, "counts", check_counts(self.counts))

    def in_epoch(self, epoch: int, counts: Sequence[int]) -> "BalancingMarginLoss":
        """The loss for an epoch, counted from 1, with `counts` training images of each class."""
        begun = 0 < self.reweight_from <= epoch
        return dataclasses.replace(self, reweight_from=int(begun), counts=tuple(counts))

    def class_margins(self, margin: float | Array) -> Array:
        """float32[classes]: ``K · (n_j / min n)^(−τ)`` of each class."""
        return margin * jnp.asarray(relative_margins(self.counts, self.tau), jnp.float32)

    def target(self, compared: Compared, margin: Array) -> Array:
        """``cos(θ_y + m)``."""
        cosine, own, of_own, labels, _ = compared
        if len(self.counts) != cosine.shape[1]:
            raise ValueError(
                f"counts must be the training images of each of {cosine.shape[1]} classes; got "
                f"{len(self.counts)}"
            )
        relative = jnp.asarray(relative_margins(self.counts, self.tau), cosine.dtype)[labels]
        wrong = jnp.max(jnp.where(own, -jnp.inf, cosine), axis=1) > of_own
        # Below its limit by rounding, a difficulty would be negative.
        difficulty = jax.nn.relu(1 - of_own) / 2
        hardness = 1 + jnp.where(wrong, self.instance * difficulty, 0)
        return plus_angle(of_own, margin * relative * hardness)

    def adjust(self, compared: Compared, logits: Array) -> tuple[Array, Array]:
        """With the frequencies of the classes, and their weights."""
        counts: np.ndarray = np.array(self.counts, np.float64)
        weights = compared.real.astype(logits.dtype)
        if self.balanced:
            logits += jnp.asarray(np.log(counts / counts.sum()), logits.dtype)
        if self.reweight_from == 1:
            # In proportion, as they are averaged over: of mean 1 over the classes.
            effective = -np.expm1(counts * np.log(self.beta)) if self.beta else np.ones_like(counts)
            of_class = len(counts) / effective / np.sum(1 / effective)
            weights *= jnp.asarray(of_class, logits.dtype)[compared.labels]
        return logits, weights


def check_counts(counts: Sequence[int]) -> tuple[int, ...]:
    """Counts of images by class, as Python's integers.

    Raises:
        ValueError: for what is no count, or a class without images.
    """
    given: np.ndarray = np.asarray(counts)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"counts must be whole numbers, the training images of each class; got {counts!r}"
        )
    if given.size and given.min() < 1:
        raise ValueError(
            "counts must be at least 1, as a class without training images has no margin; got "
            f"{given.min()} for class {int(np.argmin(given))}"
        )
    return tuple(given.tolist())


def relative_margins(counts: Sequence[int], tau: float) -> np.ndarray:
    """float64[classes]: ``(n_j / min n)^(−τ)``, 1 for the rarest class."""
    if not counts:
        raise ValueError("counts must be given: the training images of each class; got none")
    of_class: np.ndarray = np.array(counts, np.float64)
    relative: np.ndarray = (of_class / of_class.min()) ** -tau
    return relative
