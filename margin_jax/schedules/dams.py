"""DAMS: the margin rises after each epoch with too many easy triplets."""

import math

import jax.numpy as jnp
import numpy as np

from margin_jax.schedules.base import (
    Schedule,
    ScheduleState,
    at_least,
    first_state,
    next_state,
    number,
    of_epochs,
    share,
    unless_silent,
)
from margin_jax.stats import EpochStats


def dams(
    margin: float = 0.2,
    threshold: float = 0.95,
    increase: float = 0.05,
    *,
    cap: float = math.inf,
    decrease: float = 0.0,
    lower_threshold: float = 0.0,
) -> Schedule:
    """DAMS, the Difficulty Adaptive Margin Scheduler: raises the margin when triplets are too easy.

    After each epoch::

        if easy_fraction >= threshold:        μ ← min(μ + increase, cap)
        elif easy_fraction < lower_threshold: μ ← max(μ − decrease, margin)

    where `easy_fraction` is the share of the epoch's valid triplets whose loss was exactly 0. As
    published, and by default, only the first rule applies, without a cap: the margin never
    decreases. Unit embeddings are at most 2 apart, so with them no triplet is easy once μ exceeds
    2, and μ rises no further. An epoch without triplets, or with distances that are not finite
    (they would count as easy), leaves μ as it is. Shares are compared in float32.

    Args:
        margin: μ of epoch 0, at least 0.
        threshold: μ is raised when at least this share of triplets is easy, in [0, 1].
        increase: how much is added to μ, at least 0.
        cap: the highest margin, at least `margin`.
        decrease: how much is subtracted after an epoch that was too hard, at least 0.
        lower_threshold: an epoch is too hard when a smaller share than this is easy, in [0,
            threshold]. `decrease` and `lower_threshold` must be given together.

    Raises:
        ValueError: for values outside those ranges.
        TypeError: for an argument that is not a number; `update` raises it for statistics that are
            not :class:`EpochStats`.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x, labels = jnp.array([[0.0], [0.5], [5.0], [6.0]]), jnp.array([0, 0, 1, 1])
        >>> _, stats = mj.batch_all_triplet_loss(x, labels, 0.2)
        >>> epoch = mj.EpochTotals().add(stats).stats()
        >>> schedule = mj.dams(margin=0.2, threshold=0.95, increase=0.05)
        >>> state = schedule.update(schedule.init(), epoch)
        >>> float(epoch.easy_fraction), round(float(state.margin), 4)
        (1.0, 0.25)

    References:
        "Maintaining Difficulty: A Margin Scheduler for Triplet Loss in Siamese Networks Training",
        `arXiv 2603.26389 <https://arxiv.org/abs/2603.26389>`_; the defaults are those of its
        released code.
    """
    start = np.float32(at_least("margin", margin, 0))
    high = np.float32(share("threshold", threshold))
    low = np.float32(share("lower_threshold", lower_threshold))
    up = np.float32(at_least("increase", increase, 0))
    down = np.float32(at_least("decrease", decrease, 0))
    if lower_threshold > threshold:
        raise ValueError(
            f"lower_threshold must be between 0 and threshold, {threshold}; got {lower_threshold}"
        )
    if (decrease > 0) != (lower_threshold > 0):
        raise ValueError(
            f"decrease and lower_threshold go together; got {decrease} and {lower_threshold}"
        )
    if not number("cap", cap) >= margin:
        raise ValueError(f"cap must be at least margin, {margin}; got {cap}")

    def init() -> ScheduleState:
        return first_state(start)

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        easy = stats.easy_fraction
        raised = jnp.minimum(state.margin + up, np.float32(cap))
        lowered = jnp.maximum(state.margin - down, start)
        unless_hard = jnp.where(easy < low, lowered, state.margin)
        after = next_state(state, jnp.where(easy >= high, raised, unless_hard))
        return unless_silent(after, state, stats)

    return Schedule(init, of_epochs(update), easy_share=threshold)
