"""The public triplet loss: what a triplet is, which ones train, and what the mean is over."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.devices.meshes import gathered
from margin_jax.losses.arguments import check_margin, check_rows, of_one_type
from margin_jax.losses.blocks import IMPLEMENTATIONS, batch_all, block_size
from margin_jax.losses.distances import PRODUCTS, DistanceFn, get_distance, origin
from margin_jax.losses.global_batch import first_row, rows_of_all, summed
from margin_jax.losses.tile import MININGS, Terms
from margin_jax.losses.windows import by_label, inverse, windows_of
from margin_jax.stats import TripletStats

REDUCTIONS = ("mean_active", "mean", "sum")
# An anchor with p positives and n negatives among N rows has p · n <= N² / 4 triplets.
_MOST_ROWS = 92_681


def batch_all_triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    margin: ArrayLike,
    *,
    distance: str | DistanceFn = "euclidean",
    reduction: str = "mean_active",
    mining: str = "all",
    where: ArrayLike | None = None,
    references: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    reference_where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    swap: bool = False,
    soft: bool = False,
    implementation: str = "auto",
) -> tuple[Array, TripletStats]:
    """Triplet loss over **all** valid triplets of a batch, with their counts.

    For every anchor a, positive p (same label, another row) and negative n (another label)::

        loss(a, p, n) = max(0, d(a,p) − d(a,n) + μ)

    A triplet is *easy* when its loss is 0 (a tie counts as easy), else *active*: *semihard* if
    d(a,n) > d(a,p), *hard* if not. Counts are exact integers and never depend on `mining`.

    Pure, and compiled wherever you call it; works under ``jit``, ``vmap``, ``shard_map`` and
    ``grad`` (once, reverse mode). Only shapes and options are static: a new margin or other labels
    never recompile. Memory grows with batch × block, not with the number of triplets.

    Args:
        embeddings: float[batch, dim], any float type; types narrower than float32 are computed in
            float32. They are *not* normalised for you. Arrays sharded over mesh axes of the type
            Explicit are gathered, and every device does all the work; to share it, use `axis_name`.
        labels: int[batch], of any value: −1 is a label like others; `where` leaves rows out.
        margin: μ, a number or float[]; it may be traced and differentiated. Any finite value. Or
            float[batch]: one margin for each anchor, used for all triplets of that anchor.
        distance: "euclidean", "squared_euclidean", "cosine" (1 − cos), "manhattan", "chebyshev", or
            a pure function ``f(x[B, D], y[N, D]) -> [B, N]``, whose derivative must be finite even
            where two rows are equal (an anchor is also compared with itself). On an accelerator a
            function gets blocks D times smaller, as it may hold the differences of all coordinates.
            Define it once: each new function is compiled anew. It has no parameters to learn; apply
            those to the embeddings, as in ``embeddings @ m``.
        reduction: "mean_active", the mean over the active triplets of the selected kind; "mean",
            over all valid triplets; or "sum". Without triplets a mean is 0, with gradient 0.
        mining: which active triplets train the network: "all", "semihard" or "hard". The released
            code of the paper calls these "hard", "semihard" and "superhard", each as a mean over
            the selected triplets; its "none" is (reduction="mean", mining="all"). Or "batch_hard":
            for each anchor, only the triplet of its farthest positive and nearest negative (of
            equals that of the lowest label, then the first). A mean is then over anchors:
            "mean_active" over those with a loss above 0, "mean" over those with a triplet. Counts
            are still those of all triplets.
        where: bool[batch], True for real rows, False for padding. Default: all real.
        references: float[refs, dim], other rows to draw positives and negatives from, instead of
            the batch. None of them counts as the anchor itself.
        reference_labels: int[refs], required with `references`.
        reference_where: bool[refs].
        axis_name: name or names of the mesh axes over which the batch is sharded, inside
            ``jax.shard_map``. Triplets are then those of the global batch, as if it were on one
            device: every device gathers all rows (and all references, of which each passes its
            share), computes the triplets of its own anchors, and returns the global loss and the
            statistics of its own rows. See *Gradients over devices*.
        swap: measure the negative from the nearer of anchor and positive, min(d(a,n), d(p,n)), in
            the loss and in the kinds of triplet. `sum_an` of the statistics stays that of d(a,n).
            In a tie the gradient goes to d(a,n). It takes several times as long as the plain loss,
            as each positive needs its own block of distances (``experiments/results/loss.md``).
        soft: replace the hinge by ``log(1 + exp(d(a,p) − d(a,n) + μ))``. Every valid triplet then
            has a loss, so mining="all" selects all of them; the counts are still defined by the
            margin. It computes an exponential for every triplet and takes about twice as long.
        implementation: "loop" or "sorted", for tests and benchmarks: how positives are compared
            with negatives. Both give the same counts; losses differ by rounding. "auto" chooses the
            faster one for each block at run time, by its largest class. Swap and soft always use
            the loop.

    Returns:
        ``(loss, stats)``: the loss, a float32 scalar (float64 for float64 embeddings), and a
        :class:`~margin_jax.TripletStats` of per-anchor int32 counts in the order of the batch.

    Gradients over devices:
        Outside ``shard_map`` the gradient is that of the global loss; nothing has to be done. The
        same holds inside with ``check_vma=True``, the default, for embeddings and for parameters
        that are the same on every device: ``shard_map`` has already summed their gradient (a
        ``pmean`` then does no harm, a ``psum`` would multiply it).

        With ``check_vma=False``, and under ``pmap``, JAX does not know which values are the same on
        every device, and a gradient taken inside is the device's part times the number of devices.
        Apply ``pmean`` to a gradient with respect to parameters; divide one with respect to
        embeddings by the number of devices.

    Raises:
        ValueError: wrong shapes, also of a distance of your own, an unknown option, swap with
            batch_hard, a margin known to be NaN or infinite, labels known not to fit int32, or more
            than 92,681 rows to draw from (one anchor's triplets could then exceed an int32).
        TypeError: embeddings or distances that are not floating point, a distance that cannot be
            hashed, labels that are not integers, labels and reference labels without a common
            integer type, a mask that is not boolean; or when the loss is differentiated twice or in
            forward mode.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x = jnp.array([[0.0], [1.0], [1.5], [9.0]])
        >>> loss, stats = mj.batch_all_triplet_loss(x, jnp.array([0, 0, 1, 1]), 0.2)
        >>> stats.totals()
        {'valid': 8, 'easy': 5, 'semihard': 0, 'hard': 3}

    References:
        Batch-all and batch-hard: Hermans et al. 2017, `arXiv 1703.07737 <https://arxiv.org/abs/1703.07737>`_.
        Swap: Balntas et al. 2016, "Learning local feature descriptors with triplets and shallow
        convolutional neural networks".
        Easy triplets as the signal for the margin: `arXiv 2603.26389
        <https://arxiv.org/abs/2603.26389>`_.
    """
    x, x_labels, x_real = check_rows("embeddings", "labels", "where", embeddings, labels, where)
    mu = check_margin(margin, x.dtype, len(x))
    check_choice("reduction", reduction, REDUCTIONS)
    check_kinds(mining, swap=swap)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    distance_fn = get_distance(distance)

    others = None
    if references is None:
        if reference_labels is not None or reference_where is not None:
            raise ValueError("reference_labels and reference_where need references")
    else:
        if reference_labels is None:
            raise ValueError("references need reference_labels")
        y, y_labels, y_real = check_rows(
            "references",
            "reference_labels",
            "reference_where",
            references,
            reference_labels,
            reference_where,
        )
        y = y.astype(x.dtype)
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"references must have as many columns as embeddings, {x.shape[1]}; "
                f"got shape {y.shape}"
            )
        x_labels, y_labels = of_one_type(x_labels, y_labels)
        others = Rows(y, y_labels, None if reference_where is None else y_real)

    drawn_from = len(x if others is None else others.x)
    if axis_name is not None:
        drawn_from *= jax.lax.axis_size(axis_name)
    if drawn_from > _MOST_ROWS:
        raise ValueError(
            f"positives and negatives must be drawn from at most {_MOST_ROWS:,} rows, or counts "
            f"could exceed an int32; got {drawn_from:,}"
        )
    computed: tuple[Array, TripletStats] = _loss(
        Rows(x, x_labels, None if where is None else x_real),
        others,
        gathered(mu),
        Terms(distance_fn, mining, swap, soft, implementation),
        reduction,
        axis_name,
        block_size(len(x), drawn_from, 1 if distance_fn in PRODUCTS else x.shape[1]),
    )
    return computed


class Rows(NamedTuple):
    """Embeddings, their labels, and which of them are real: None if all are."""

    x: Array
    labels: Array
    real: Array | None


# Compiled once also where nobody has put the loss under `jit`; under it, it is as if not there.
@functools.partial(
    jax.jit, static_argnames=("terms", "reduction", "axis_name", "size"), inline=True
)
def _loss(
    rows: Rows,
    others: Rows | None,
    mu: Array,
    terms: Terms,
    reduction: str,
    axis_name: str | tuple[str, ...] | None,
    size: int,
) -> tuple[Array, TripletStats]:
    """What :func:`batch_all_triplet_loss` returns, of what it has checked."""
    drawn = rows_of_all(rows if others is None else others, axis_name)
    # The same computation when these are the same rows.
    x_order, y_order = by_label(rows.labels, rows.real), by_label(drawn.labels, drawn.real)
    (x, x_labels, x_real), (y, y_labels, y_real) = (
        (v.x, v.labels, jnp.ones(v.labels.shape, bool) if v.real is None else v.real)
        for v in (rows, drawn)
    )
    common = origin(terms.distance, y, y_real)  # of the global batch, so the same on every device
    x, y = x - common, y - common

    windows = windows_of(x_labels[x_order], x_real[x_order], y_labels[y_order], y_real[y_order])
    if others is None:
        windows = windows._replace(
            itself=inverse(y_order)[first_row(rows.x, axis_name) + x_order.astype(jnp.int32)]
        )
    if mu.ndim:  # not even NaN may come out of the padding
        mu = jnp.where(x_real, mu, 0)[x_order]
    total, stats = batch_all(x[x_order], y[y_order], mu, windows, terms, size)
    batch_order = inverse(x_order)
    stats = jax.tree.map(lambda v: v[batch_order], stats)

    total = summed(total, axis_name)
    if reduction == "sum":
        return total, stats
    valid = stats.valid
    everything = valid if terms.soft else stats.active  # what has a loss
    if terms.mining == "batch_hard":  # one of each anchor, active if any of its triplets is
        valid, everything = valid > 0, everything > 0
    selected = {"semihard": stats.semihard, "hard": stats.hard}.get(terms.mining, everything)
    averaged = selected if reduction == "mean_active" else valid
    # Summed as floats: only the last bit of the mean can differ, and int32 could overflow.
    count = summed(jnp.sum(averaged.astype(total.dtype)), axis_name)
    return total / jnp.where(count > 0, count, 1), stats


def triplet_stats(
    embeddings: ArrayLike,
    labels: ArrayLike,
    margin: ArrayLike,
    *,
    distance: str | DistanceFn = "euclidean",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> TripletStats:
    """Statistics of all triplets of a batch, for losses without triplets; has no gradient.

    They let a margin schedule follow any loss: they say which triplets would be easy at the current
    margin.

    Args:
        embeddings, labels, margin, distance, where, axis_name: as for
            :func:`~margin_jax.batch_all_triplet_loss`.

    Raises:
        ValueError, TypeError: as that function.

    Example:
        >>> import jax.numpy as jnp, margin_jax as mj
        >>> x = jnp.array([[0.0], [1.0], [1.5], [9.0]])
        >>> mj.triplet_stats(x, jnp.array([0, 0, 1, 1]), 0.2).totals()
        {'valid': 8, 'easy': 5, 'semihard': 0, 'hard': 3}
    """
    x = jnp.asarray(embeddings)
    mu = check_margin(
        margin, jnp.promote_types(x.dtype, jnp.float32), x.shape[0] if x.ndim else None
    )
    _, stats = batch_all_triplet_loss(
        jax.lax.stop_gradient(x),
        labels,
        jax.lax.stop_gradient(mu),
        distance=distance,
        where=where,
        axis_name=axis_name,
    )
    return stats


def check_kinds(mining: str, *, swap: bool) -> None:
    """Checks which triplets are to train.

    Raises:
        ValueError: an unknown kind, or one that has no swap.
    """
    check_choice("mining", mining, MININGS)
    if swap and mining == "batch_hard":
        raise ValueError("swap is for mining all, semihard or hard; got it with batch_hard")
