"""PK samplers: batches of P identities with K images each.

The batches of an epoch are a pure function of seed and epoch. So (seed, epoch, step) is all there
is of a sampler's position: nothing has to be saved to go on from any step.
"""

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from margin_jax.choices import check_choice

SAMPLERS = ("pk", "balanced")
SMALL_IDENTITIES = ("drop", "repeat", "error")
# What a batch has where nothing else is asked for and there are enough identities: P and K.
IDENTITIES, _IMAGES = 32, 2


@dataclass(frozen=True)
class Coverage:
    """How much of a split one epoch sees: images = used + small + left.

    Attributes:
        images: images of the split.
        used: different images in the epoch's batches.
        small: images left out because their identity has fewer than K of them.
        left: images left over when fewer than P identities had K images left.
        repeated: rows of the batches beyond the first of each image.
    """

    images: int
    used: int
    small: int
    left: int
    repeated: int


def choose_batch(
    labels: np.ndarray,
    identities_per_batch: int | None = None,
    images_per_identity: int | None = None,
    small_identities: str = "drop",
) -> tuple[int, int]:
    """P and K that suit some images, where they are not given.

    32 and 2, as far as there are 32 identities. Of fewer, the largest P whose epochs still see half
    of the images: one identity with few images would end them early. K is then as large as P
    identities and the usual 64 rows of a batch allow.

    Args:
        labels: int[images] of the training.
        identities_per_batch, images_per_identity: P and K, if they are given.
        small_identities: what :func:`pk_batches` does with identities of fewer than K images.
    """
    sizes = -np.sort(-np.unique(labels, return_counts=True)[1])
    if small_identities == "repeat":
        sizes = np.maximum(sizes, images_per_identity or _IMAGES)
    able = sizes[sizes >= (images_per_identity or _IMAGES)]
    most = min(len(able), IDENTITIES)
    if identities_per_batch is not None:
        return identities_per_batch, images_per_identity or _IMAGES
    if images_per_identity is not None or most == IDENTITIES or most < 2:
        return max(most, 2), images_per_identity or _IMAGES  # too few are refused with the batches

    def choice(p: int) -> tuple[int, int]:
        return p, int(min(IDENTITIES * _IMAGES // p, able[p - 1]))

    def seen(p: int, k: int) -> float:
        """The share of the images that an epoch of "pk" can see: t batches of P different ones."""
        groups = able[able >= k] // k
        t = np.arange(groups.sum() // p + 1)
        return float(p * k * t[np.minimum(groups[:, None], t).sum(0) >= p * t].max() / able.sum())

    choices = [choice(p) for p in range(most, 1, -1)]
    return next((pk for pk in choices if seen(*pk) >= 0.5), max(choices, key=lambda pk: seen(*pk)))


def pk_batches(
    labels: np.ndarray,
    identities_per_batch: int,
    images_per_identity: int,
    *,
    seed: int,
    epoch: int,
    small_identities: str = "drop",
    sampler: str = "pk",
    fillers: int = 0,
) -> tuple[np.ndarray, Coverage]:
    """The batches of one epoch.

    "pk" draws without replacement: an image is used at most once. Each batch takes P identities at
    random among those with at least K unused images, and K random images of each. The epoch ends
    when fewer than P such identities remain, as in the code released with arXiv 2603.26389. On
    long-tailed data many images are left out of an epoch (different ones in each); the
    :class:`~margin_jax.data.sampler.Coverage` says how many.

    "balanced" uses every image of each identity that has at least K. The images of an identity are
    divided at random into groups of K; the last group is filled up with images of the one before.
    The groups of all identities are spread evenly over ``ceil(groups / P)`` batches: an identity
    with g groups is in each batch ``g / steps`` times, rounded up or down. An identity with many
    images can therefore be in a batch several times, with 2K images or more; one with nearly all
    groups can fill some batches alone. If the groups do not fill the last places, some are repeated
    in batches without their identity. No image is in a batch twice, unless its identity has fewer
    than K images and small_identities is "repeat".

    Args:
        labels: int[images].
        identities_per_batch: P, at least 2.
        images_per_identity: K, at least 2.
        seed, epoch: the same pair gives the same batches.
        small_identities: what to do with identities of fewer than K images: "drop" them, "repeat"
            their images (they then appear once an epoch), or raise an "error".
        sampler: one of SAMPLERS.
        fillers: how many images of dropped identities to add at the end of each batch, as more
            negatives (two of the same identity also form a positive pair). They are different
            within a batch, and in an epoch each is used equally often, give or take one. The rest
            of each batch is the same as without fillers.

    Returns:
        ``(batches, coverage)``: int[steps, P·K + fillers], rows of `labels`, K of one identity in a
        row, the fillers last.

    Raises:
        ValueError: if there are too few identities for a batch, more fillers than images of dropped
            identities, or small identities with "error"; labels that are no list of labels, or a
            negative seed or epoch.
        TypeError: for P, K, a seed or an epoch that is no whole number.

    Example:
        >>> import numpy as np, margin_jax as mj
        >>> labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4])
        >>> batches, coverage = mj.pk_batches(labels, 2, 2, seed=0, epoch=0)
        >>> batches.shape
        (2, 4)
        >>> coverage
        Coverage(images=9, used=8, small=1, left=0, repeated=0)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape (images,); got {labels.shape}")
    p = _whole("identities_per_batch", identities_per_batch)
    k = _whole("images_per_identity", images_per_identity)
    check_choice("small_identities", small_identities, SMALL_IDENTITIES)
    check_choice("sampler", sampler, SAMPLERS)
    if p < 2 or k < 2:
        raise ValueError(
            f"triplets need at least 2 identities of 2 images in a batch; "
            f"got identities_per_batch {p}, images_per_identity {k}"
        )
    of_both = [_whole("seed", seed), _whole("epoch", epoch)]
    if min(of_both) < 0:
        raise ValueError(f"seed and epoch must be at least 0; got {seed} and {epoch}")
    rng = np.random.default_rng(of_both)
    queues, small = _sorted_out(_shuffled(labels, rng), k, small_identities)
    if len(queues.sizes) < p:
        raise ValueError(
            f"a batch needs {p} identities with at least {k} images; "
            f"got {len(queues.sizes)} of {len(np.unique(labels))} identities: "
            + (
                f"set identities_per_batch to at most {len(queues.sizes)}"
                if len(queues.sizes) >= 2
                else "lower images_per_identity, or set small_identities to repeat"
            )
        )
    if not 0 <= fillers <= len(small):
        raise ValueError(
            f"fillers must be between 0 and {len(small)}, as small_identities {small_identities!r} "
            f"leaves out {len(small)} images of identities with fewer than {k}; got {fillers}"
        )
    plan = (_balanced if sampler == "balanced" else _drawn)(queues, p, k, rng)
    if fillers:
        plan = np.hstack([plan, _filled(small, len(plan), fillers, rng)])
    used = len(np.unique(plan))
    unused = len(small) - len(np.unique(plan[:, p * k :]))
    return plan, Coverage(len(labels), used, unused, len(labels) - used - unused, plan.size - used)


def _whole(name: str, value: Any) -> int:
    """The value as an int, also of an array such as the epoch of a schedule's state."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {value!r:.80}") from None


class _Queues(NamedTuple):
    """Images by identity, one after another.

    Attributes:
        rows: int[images], those of an identity in the order in which they are used.
        sizes: int[identities], how many each has.
    """

    rows: np.ndarray
    sizes: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int[identities], where each begins."""
        starts: np.ndarray = np.cumsum(self.sizes) - self.sizes
        return starts


def _shuffled(labels: np.ndarray, rng: np.random.Generator) -> _Queues:
    """The images of each identity in random order."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return _Queues(order, np.unique(labels, return_counts=True)[1])


def _sorted_out(queues: _Queues, k: int, policy: str) -> tuple[_Queues, np.ndarray]:
    """Queues of at least K images, and the images of the others, int[small], as the policy is."""
    rows, sizes = queues
    small = sizes < k
    if small.any() and policy == "error":
        raise ValueError(
            f"{small.sum()} of {len(sizes)} identities have fewer than {k} images (the smallest "
            f"has {sizes.min()}): set small_identities to drop or repeat"
        )
    if policy == "repeat":
        enough = np.maximum(sizes, k)
        again = _counted(enough) % np.repeat(sizes, enough)
        return _Queues(rows[np.repeat(queues.starts, enough) + again], enough), np.empty(0, int)
    dropped = np.repeat(small, sizes)
    return _Queues(rows[~dropped], sizes[~small]), rows[dropped]


def _counted(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... of each size, one after another: 0, 1, 2, 0, 1 for 3 and 2."""
    counted: np.ndarray = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return counted


def _drawn(queues: _Queues, p: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The "pk" batches, int[steps, P·K]."""
    # Cut into groups of K beforehand: what is drawn from an identity is then its next group.
    starts, remaining = queues.starts, queues.sizes // k
    groups = []
    while np.count_nonzero(remaining) >= p:
        chosen = rng.choice(np.flatnonzero(remaining), p, replace=False)
        remaining[chosen] -= 1
        groups.append(starts[chosen] + k * remaining[chosen])
    places = np.stack(groups)[:, :, None] + np.arange(k)
    return queues.rows[places.reshape(len(groups), p * k)]


def _balanced(queues: _Queues, p: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The "balanced" batches, int[steps, P·K]."""
    groups = -(-queues.sizes // k)
    steps, missing = -(-int(groups.sum()) // p), -int(groups.sum()) % p
    # An identity with fewer groups than batches can fill in for what is missing, one in each of
    # the other batches; P identities always have room enough.
    count = groups + rng.multivariate_hypergeometric(np.clip(steps - groups, 0, missing), missing)
    order = rng.permutation(len(groups))
    of = np.repeat(order, count[order])
    group = _counted(count[order]) % groups[of]
    # A last group that is not whole begins earlier, in the one before.
    first = queues.starts[of] + np.minimum(group * k, queues.sizes[of] - k)
    row = queues.rows[first[:, None] + np.arange(k)]
    # The groups of an identity are neighbours in the row, so the j-th goes to batch j % steps.
    return rng.permutation(row.reshape(p, steps, k).swapaxes(0, 1).reshape(steps, p * k))


def _filled(small: np.ndarray, steps: int, fillers: int, rng: np.random.Generator) -> np.ndarray:
    """int[steps, fillers]: all of `small` in random order, again and again, no batch with two."""
    deck = small[:0]
    rows = []
    for _ in range(steps):
        if len(deck) < fillers:  # the rest of a batch that has begun must not repeat its images
            fresh = rng.permutation(small)
            rest = fresh[~np.isin(fresh, deck)][: fillers - len(deck)]
            deck = np.concatenate([deck, rest, fresh[~np.isin(fresh, rest)]])
        rows.append(deck[:fillers])
        deck = deck[fillers:]
    return np.stack(rows)
