"""What is counted: triplet statistics of one batch, their exact totals, and an epoch's shares.

Words, for a triplet (a, p, n) and margin μ:

- *easy*: d(a,n) ≥ d(a,p) + μ, so its loss is exactly 0 (a tie is easy);
- *active*: not easy. *Hard* is active with d(a,n) ≤ d(a,p); *semihard* is active with
  d(a,n) > d(a,p);
- *valid* = easy + semihard + hard: every (a, p, n) with label a = label p ≠ label n and a ≠ p;
- *effective margin*: d(a,n) − d(a,p) (arXiv 2603.26389).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Upper edges of the bins of a histogram of effective margins. They rise like a hyperbolic sine:
# 0.002 apart near 0, by 2 % farther out, to ±1,000, so that embeddings need not be of length 1.
_half = 0.1 * np.sinh(np.arange(1, 513) * math.asinh(1e4) / 512)
EFFECTIVE_EDGES = np.concatenate([-_half[510::-1], [0.0], _half]).astype(np.float32)
# Of the sample of effective margins that a record keeps.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TripletStats:
    """Statistics of one batch, kept per anchor so that int32 counts do not overflow.

    The count of one anchor can overflow only in a batch of more than 92,681 rows (46,341² > 2^31).

    Each positive of an anchor forms a triplet with each of its negatives, so the mean and the
    spread of the effective margin follow in closed form from sums over pairs.

    Attributes:
        semihard, hard: int32[batch], active triplets of each kind.
        positives, negatives: int32[batch], the number of positives and negatives of each anchor.
        sum_ap, sum_an: float32[batch], sums of d(a,p) and of d(a,n); like the next two, float64 for
            float64 embeddings.
        sum_ap_squared, sum_an_squared: float32[batch], sums of their squares.
    """

    semihard: Array
    hard: Array
    positives: Array
    negatives: Array
    sum_ap: Array
    sum_an: Array
    sum_ap_squared: Array
    sum_an_squared: Array

    @property
    def valid(self) -> Array:
        """int32[batch]: triplets of each anchor."""
        return self.positives * self.negatives

    @property
    def active(self) -> Array:
        """int32[batch]: triplets with a positive loss."""
        return self.semihard + self.hard

    @property
    def easy(self) -> Array:
        """int32[batch]: triplets whose loss is exactly 0."""
        return self.valid - self.active

    @property
    def easy_fraction(self) -> Array:
        """float32[]: easy / valid of the batch, to float32 rounding; NaN without any triplet.

        For decisions use :meth:`totals`, which is exact.
        """
        # Summed as floats: the int32 total of a large batch could overflow.
        valid = jnp.sum(self.valid.astype(jnp.float32))
        return jnp.sum(self.easy.astype(jnp.float32)) / valid

    def totals(self) -> dict[str, int]:
        """Exact Python ints over the batch: valid, easy, semihard, hard. Fetches to the host.

        For a batch that is sharded over several hosts, the totals are those of the global batch, on
        every host, and all hosts must call this method.
        """
        return EpochTotals().add(self).counts()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EpochStats:
    """The statistics of an epoch that schedules see: float32 shares and means, never raw counts.

    :meth:`EpochTotals.stats` computes each from exact totals on the host and rounds it to float32
    once, so that the same epoch gives the same decision everywhere. After an epoch without triplets
    they are NaN; `mean_ap` and `mean_an` are NaN only without such pairs.

    Attributes:
        easy_fraction, semihard_fraction, hard_fraction: shares of the valid triplets, in [0, 1].
        mean_ap, mean_an: mean distance over positive and over negative pairs.
        mean_effective, std_effective: mean and standard deviation of d(a,n) − d(a,p) over all
            valid triplets.
        effective_cdf: float32[1024], the share of a sample of triplets whose d(a,n) − d(a,p) lies
            below each of ``margin_jax.stats.EFFECTIVE_EDGES``, float32[1024], or None without a
            histogram.
    """

    easy_fraction: Array | np.float32
    semihard_fraction: Array | np.float32
    hard_fraction: Array | np.float32
    mean_ap: Array | np.float32
    mean_an: Array | np.float32
    mean_effective: Array | np.float32
    std_effective: Array | np.float32
    effective_cdf: Array | np.ndarray | None = None

    @classmethod
    def of(
        cls,
        stats: TripletStats,
        histogram: Array | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> "EpochStats":
        """The same from statistics on the device, for a schedule inside ``jit`` or ``lax.scan``.

        Sums are computed in float32, so shares are rounded; those of :class:`EpochTotals`, on the
        host, are exact.

        Args:
            stats: statistics of one batch, or of several, stacked along leading axes as by
                ``scan``.
            histogram: int32[..., 1024], of :func:`~margin_jax.effective_margin_histogram`.
            axis_name: inside ``shard_map``, the mesh axis that the loss was told, whose statistics
                are then those of the device's rows. The histogram is of the whole batch.

        Raises:
            TypeError: for what is no :class:`TripletStats`.
        """

        def total(v: Array) -> Array:
            floats = v.astype(jnp.float32) if jnp.issubdtype(v.dtype, jnp.integer) else v
            summed = jnp.sum(floats)
            return summed if axis_name is None else jax.lax.psum(summed, axis_name)

        stats = _checked(stats)
        npos, nneg = (n.astype(jnp.float32) for n in (stats.positives, stats.negatives))
        valid = total(npos * nneg)
        mean = total(npos * stats.sum_an - nneg * stats.sum_ap) / valid
        squares = npos * stats.sum_an_squared + nneg * stats.sum_ap_squared
        square = total(squares - 2.0 * stats.sum_ap * stats.sum_an) / valid
        cdf = None
        if histogram is not None:
            counts = jnp.cumsum(jnp.sum(histogram.reshape(-1, histogram.shape[-1]), axis=0))
            cdf = counts / counts[-1]
        found = cls(
            easy_fraction=total(stats.easy) / valid,
            semihard_fraction=total(stats.semihard) / valid,
            hard_fraction=total(stats.hard) / valid,
            mean_ap=total(stats.sum_ap) / total(npos),
            mean_an=total(stats.sum_an) / total(nneg),
            mean_effective=mean,
            std_effective=jnp.sqrt(jnp.maximum(square - mean * mean, 0)),
            effective_cdf=cdf,
        )
        # The same types whatever the embeddings', so that a schedule's state keeps its own.
        narrowed: EpochStats = jax.tree.map(lambda v: v.astype(jnp.float32), found)
        return narrowed


@dataclass(frozen=True)
class EpochTotals:
    """Running totals on the host: exact Python ints, and float64 sums of distances.

    Attributes:
        valid, semihard, hard: triplets; the others are easy.
        positives, negatives, sum_ap, sum_an: pairs of both kinds, and sums of their distances.
        sum_effective, sum_effective_squared: of d(a,n) − d(a,p) over the triplets.
        histogram: int64[1024], of sampled effective margins, if any were added.
    """

    valid: int = 0
    semihard: int = 0
    hard: int = 0
    positives: int = 0
    negatives: int = 0
    sum_ap: float = 0.0
    sum_an: float = 0.0
    sum_effective: float = 0.0
    sum_effective_squared: float = 0.0
    histogram: np.ndarray | None = None

    def add(self, stats: TripletStats, histogram: Array | None = None) -> "EpochTotals":
        """These totals and those of one more batch, wherever it is (:meth:`TripletStats.totals`).

        Args:
            stats: of the batch.
            histogram: int32[..., 1024], of :func:`~margin_jax.effective_margin_histogram`; stacked
                histograms are summed, and so are stacked statistics.

        Raises:
            TypeError: for what is no :class:`TripletStats`.
        """
        host = _fetch(_checked(stats))
        npos, nneg = (np.asarray(n, np.int64) for n in (host.positives, host.negatives))
        ap, an, ap2, an2 = (
            np.asarray(v, np.float64)
            for v in (host.sum_ap, host.sum_an, host.sum_ap_squared, host.sum_an_squared)
        )
        batch = EpochTotals(
            valid=int(np.sum(npos * nneg)),
            semihard=int(np.sum(host.semihard, dtype=np.int64)),
            hard=int(np.sum(host.hard, dtype=np.int64)),
            positives=int(np.sum(npos)),
            negatives=int(np.sum(nneg)),
            sum_ap=float(np.sum(ap)),
            sum_an=float(np.sum(an)),
            # Σ over the anchor's positives p and negatives n of (d_n − d_p), and of its square.
            sum_effective=float(np.sum(npos * an - nneg * ap)),
            sum_effective_squared=float(np.sum(npos * an2 + nneg * ap2 - 2.0 * ap * an)),
        )
        added = [f.name for f in fields(self) if f.name != "histogram"]
        summed = {name: getattr(self, name) + getattr(batch, name) for name in added}
        if histogram is None:
            return EpochTotals(**summed, histogram=self.histogram)
        bins = np.asarray(jax.device_get(histogram), np.int64)
        so_far = 0 if self.histogram is None else self.histogram
        bins = bins.reshape(-1, bins.shape[-1]).sum(axis=0) + so_far
        return EpochTotals(**summed, histogram=bins)

    def counts(self) -> dict[str, int]:
        """Exact counts of triplets: valid, easy, semihard, hard."""
        easy = self.valid - self.semihard - self.hard
        return {"valid": self.valid, "easy": easy, "semihard": self.semihard, "hard": self.hard}

    def stats(self) -> EpochStats:
        """The shares and means of these totals, rounded to float32 once."""
        counts = self.counts()
        mean = _ratio(self.sum_effective, self.valid)
        variance = _ratio(self.sum_effective_squared, self.valid) - mean * mean
        return EpochStats(
            easy_fraction=np.float32(_ratio(counts["easy"], self.valid)),
            semihard_fraction=np.float32(_ratio(self.semihard, self.valid)),
            hard_fraction=np.float32(_ratio(self.hard, self.valid)),
            mean_ap=np.float32(_ratio(self.sum_ap, self.positives)),
            mean_an=np.float32(_ratio(self.sum_an, self.negatives)),
            mean_effective=np.float32(mean),
            std_effective=np.float32(math.sqrt(max(variance, 0.0))),
            effective_cdf=None if self.histogram is None else self._cdf().astype(np.float32),
        )

    def effective_quantiles(self, shares: Sequence[float]) -> list[float] | None:
        """The effective margins at these quantiles of the sample; None without a histogram."""
        if self.histogram is None:
            return None
        quantiles: list[float] = np.interp(shares, self._cdf(), EFFECTIVE_EDGES).tolist()
        return quantiles

    def to_json(self) -> dict[str, Any]:
        """The totals as JSON values; exact, as Python writes integers and floats without loss."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "histogram": None if self.histogram is None else self.histogram.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EpochTotals":
        """The inverse of :meth:`to_json`."""
        bins = values["histogram"]
        return cls(**{**values, "histogram": None if bins is None else np.array(bins, np.int64)})

    def _cdf(self) -> np.ndarray:
        assert self.histogram is not None
        below = np.cumsum(self.histogram)
        return below / below[-1] if below[-1] else np.full(len(below), np.nan)


def _fetch(stats: TripletStats) -> TripletStats:
    """The statistics as NumPy arrays, gathered first if other hosts have a part of them."""
    arrays = [v for v in jax.tree.leaves(stats) if isinstance(v, jax.Array)]
    if all(v.is_fully_addressable or v.is_fully_replicated for v in arrays):
        fetched: TripletStats = jax.device_get(stats)
        return fetched
    from jax.experimental import multihost_utils

    # A few numbers for each anchor, and added up on the host, where integers do not overflow.
    gathered: TripletStats = multihost_utils.process_allgather(stats, tiled=True)
    return gathered


def _checked(stats: Any) -> TripletStats:
    if isinstance(stats, TripletStats):
        return stats
    of = f" of {len(stats)}" if isinstance(stats, tuple) else ""
    raise TypeError(f"stats must be TripletStats, as of a loss; got {type(stats).__name__}{of}")


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan
