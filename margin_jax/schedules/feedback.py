"""Schedules that respond to the statistics of the epoch."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from margin_jax.schedules.base import (
    Schedule,
    ScheduleState,
    at_least,
    finite,
    first_state,
    next_state,
    number,
    of_epochs,
    share,
    times,
    unless_silent,
)
from margin_jax.stats import EFFECTIVE_EDGES, EpochStats


def automargin(
    margin: float = 0.2, k: float = 2.0, deviations: float = 0.0, smoothing: float = 0.0
) -> Schedule:
    """AutoMargin: a fixed share of the mean effective margin.

    After each epoch, from the mean and the standard deviation of the effective margins d(a,n) −
    d(a,p) over all its valid triplets::

        m ← m + (1 − smoothing) · (mean_effective − m),  s likewise of std_effective
        μ ← max(0, m / k + deviations · s)

    With ``smoothing = 0``, m and s are those of the last epoch alone, up to rounding, and with
    ``deviations = 0`` the spread is not used: these defaults are the released code. The first epoch
    with usable statistics sets m and s; an epoch without any leaves everything as it is. The
    released code measures cosine similarity; here it is the distance of the loss. At μ = 0 a
    network that maps everything to one point has no loss, so it stays there;
    :func:`~margin_jax.clip_schedule` keeps μ above 0. Factors are rounded to 12 bits, so that every
    machine computes the same margins to the last bit; each product is therefore up to 0.05 % off
    the formula.

    Args:
        margin: μ of epoch 0, at least 0.
        k: the divisor of the mean, above 1e-6: a larger k gives a smaller margin. At k = 1 half of
            the triplets are easy if the effective margins are symmetric about their mean.
        deviations: any finite number. If the effective margins are normally distributed, −1.28 at
            k = 1 makes 90 % of the triplets easy.
        smoothing: the weight of the past, in [0, 1).

    Raises:
        ValueError: for values outside those ranges.
        TypeError: for an argument that is not a number; `update` raises it for statistics that are
            not :class:`EpochStats`.

    References:
        Nguyen et al. 2022, "AdaTriplet: Adaptive Gradient Triplet Loss with Automatic Margin
        Learning for Forensic Medical Image Matching", `arXiv 2205.02849
        <https://arxiv.org/abs/2205.02849>`_.
    """
    start = at_least("margin", margin, 0)
    if not 1e-6 < number("k", k) < 1e38:
        raise ValueError(f"k must be above 1e-6 and below 1e38; got {k}")
    part, spread = 1 / k, finite("deviations", deviations)
    if not 0 <= number("smoothing", smoothing) < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1; got {smoothing}")

    def init() -> ScheduleState:
        mean, std = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)  # each can be donated
        return first_state(start, mean=mean, std=std, measured=jnp.zeros((), jnp.int32))

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        memory = state.memory
        first = memory["measured"] == 0

        def follow(old: Array, new: Array | np.float32) -> Array:
            moved = old + times(new - old, 1 - smoothing)
            if smoothing == 0:  # of a past many times as large, rounding would leave a part
                moved = jnp.where(jnp.abs(new - old) > 4 * jnp.abs(new), new, moved)
            return jnp.where(first, new, moved)

        m = follow(memory["mean"], stats.mean_effective)
        s = follow(memory["std"], stats.std_effective)
        after = next_state(
            state,
            jnp.maximum(times(m, part) + times(s, spread), 0),
            mean=m,
            std=s,
            measured=memory["measured"] + 1,
        )
        return unless_silent(after, state, stats)

    return Schedule(init, of_epochs(update))


def quantile_margin(margin: float = 0.2, quantile: float = 0.1, low: float = 0.05) -> Schedule:
    """The margin at a quantile of the epoch's effective margins: about 1 − `quantile` are easy.

    After each epoch ``μ ← max(low, q)``, where a share `quantile` of the effective margins d(a,n) −
    d(a,p) lay below q. They come from a histogram of a sample of triplets in each step
    (:func:`~margin_jax.effective_margin_histogram`), interpolated linearly inside a bin. A sample
    of n triplets gives q a standard error of ``√(quantile · (1 − quantile) / n)`` over the density
    of effective margins there. Factors are rounded as in :func:`~margin_jax.automargin`.

    Args:
        margin: μ of epoch 0, at least 0.
        quantile: in [0, 1]; 0.1 makes about 90 % easy, if the next epoch is like this one.
        low: the lowest margin. At 0 or less a network that maps everything to one point has no
            loss, so it stays there.

    Raises:
        ValueError: for values outside those ranges; `update` raises it for statistics without a
            histogram.
        TypeError: for an argument that is not a number; `update` raises it for statistics that are
            not :class:`EpochStats`.
    """
    start, lowest = at_least("margin", margin, 0), np.float32(finite("low", low))
    wanted = np.float32(share("quantile", quantile))

    def init() -> ScheduleState:
        return first_state(start)

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        if stats.effective_cdf is None:
            raise ValueError(
                "quantile_margin needs the histogram of effective margins: "
                "make_train_step(..., histogram=True), or EpochTotals.add(stats, histogram)"
            )
        edges, cdf = jnp.asarray(EFFECTIVE_EDGES), jnp.asarray(stats.effective_cdf)
        upper = jnp.clip(jnp.sum(cdf < wanted), 1, len(EFFECTIVE_EDGES) - 1)
        lower = upper - 1
        inside = cdf[upper] - cdf[lower]
        part = jnp.where(inside > 0, (wanted - cdf[lower]) / inside, 0)
        reached = edges[lower] + times(edges[upper] - edges[lower], jnp.clip(part, 0, 1))
        after = next_state(state, jnp.maximum(reached, lowest))
        return unless_silent(after, state, stats, cdf[-1])

    return Schedule(init, of_epochs(update), needs_histogram=True)


def target_easy_fraction(
    margin: float = 0.2,
    target: float = 0.9,
    integral_gain: float = 3.0,
    proportional_gain: float = 0.5,
    *,
    low: float = 0.05,
    high: float = 2.0,
) -> Schedule:
    """Holds the share of easy triplets at a set point: a proportional-integral controller.

    DAMS only raises the margin, in fixed steps. This schedule also lowers it. After each epoch,
    with ``e = easy_fraction − target`` and σ the standard deviation of the epoch's effective
    margins d(a,n) − d(a,p)::

        I ← clip(I + integral_gain · σ · e, low, high)
        μ ← clip(I + proportional_gain · σ · e, low, high)

    I starts at `margin`. The factor σ makes the gains independent of the scale of the embeddings.
    I is itself clipped to the bounds, so there is no integral windup: when the share crosses the
    target, μ turns at once. Factors are rounded as in :func:`~margin_jax.automargin`.

    Stability: suppose the network does not change, and let p be the density of effective margins at
    μ. Raising μ by δ then lowers the share of easy triplets by pδ, so near the target the margin's
    error obeys ``x(t+1) = (1 − L) x(t) − P (x(t) − x(t−1))`` with ``L = pσ · integral_gain`` and
    ``P = pσ · proportional_gain``. By Jury's criterion it vanishes if and only if ``L > 0`` and
    ``L + 2P < 2``. The default gains allow pσ up to 0.5. At any scale, pσ is at most 0.40 for
    normally and 0.29 for uniformly distributed effective margins. At the default target it is 0.18
    for a normal and 0.14 for a Laplace distribution, so an error halves in one or two epochs.
    Larger gains follow a changing network faster, but oscillate more easily. Where many effective
    margins lie close together within a wide spread, as at the peak of a Laplace distribution (0.71)
    or in one of two distant clusters, the default gains oscillate without end: lower them, or move
    the target away from that peak.

    Args:
        margin: μ of epoch 0, at least 0. The bounds apply from epoch 1 on.
        target: the share of easy triplets to hold, in [0, 1]. At 0 (or 1) μ only rises (or falls),
            until no triplet (or every one) is easy or a bound is reached.
        integral_gain, proportional_gain: at least 0, below 4,096.
        low, high: bounds of μ. At μ = 0 or less a network that maps everything to one point has no
            loss, so it stays there; on unit embeddings a margin above 2 makes every triplet active.

    Raises:
        ValueError: for values outside those ranges.
        TypeError: for an argument that is not a number; `update` raises it for statistics that are
            not :class:`EpochStats`.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x, labels = jnp.array([[0.0], [0.5], [5.0], [6.0]]), jnp.array([0, 0, 1, 1])
        >>> _, stats = mj.batch_all_triplet_loss(x, labels, 0.2)
        >>> epoch = mj.EpochTotals().add(stats).stats()  # all easy: 0.1 more than the target
        >>> schedule = mj.target_easy_fraction(margin=0.2, target=0.9)
        >>> state = schedule.update(schedule.init(), epoch)
        >>> round(float(epoch.std_effective), 3), round(float(state.margin), 3)
        (0.612, 0.414)
    """
    start = at_least("margin", margin, 0)
    wanted = np.float32(share("target", target))
    for name, gain in (
        ("integral_gain", integral_gain),
        ("proportional_gain", proportional_gain),
    ):
        if not 0 <= number(name, gain) < 4096:
            raise ValueError(f"{name} must be at least 0 and below 4096; got {gain}")
    if not finite("low", low) <= finite("high", high):
        raise ValueError(f"low must be at most high; got {low} and {high}")
    limits = np.float32(low), np.float32(high)

    def init() -> ScheduleState:
        return first_state(start, integral=jnp.asarray(start, jnp.float32))

    def update(state: ScheduleState, stats: EpochStats) -> ScheduleState:
        error = times(stats.easy_fraction - wanted, stats.std_effective)
        integral = jnp.clip(state.memory["integral"] + times(error, integral_gain), *limits)
        margin = jnp.clip(integral + times(error, proportional_gain), *limits)
        return unless_silent(next_state(state, margin, integral=integral), state, stats)

    return Schedule(init, of_epochs(update), easy_share=target)
