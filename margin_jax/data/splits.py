"""Identity-disjoint splits: nobody who is tested was seen in training."""

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from margin_jax.data.split_files import read_lists

FRACTIONS = (0.4, 0.1, 0.5)
HALVES = "halves"
_TRAIN_AND_VALIDATION = (0.8, 0.2)  # of the first half
_BLOCK = 10


class Split(NamedTuple):
    """Sorted indices of identities, int[...] each, disjoint, complete but for explicit lists."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make_split(
    text: str, labels: np.ndarray, groups: np.ndarray, identities: Sequence[str], *, seed: int
) -> Split:
    """The split that a text describes.

    - "40/10/50", percentages of training, validation and test: :func:`split_identities`.
    - "halves": the first half of the identities trains, the second is the test, as is usual for
      CUB-200-2011 (100 / 100) and Cars196 (98 / 98) since Oh Song et al. 2016, arXiv 1511.06452.
      To choose a model without the test, a seeded and stratified fifth of the first half is the
      validation: 80 / 20 / 100. Of an odd number the first half is the smaller one. Groups
      (identities that must stay together) go in the order of their first identities, as many as
      the first half holds whole.
    - The path of a ".json" file: ``{"train": [...], "validation": [...], "test": [...]}``, names of
      identities, or a run's ``data.json``, which holds these under "identities". Who is in no list
      is left out. Lists may part a group.

    Args:
        text: one of these.
        labels: int[images], in ``[0, identities)``.
        groups: int[identities].
        identities: their names, in order.
        seed: another seed, another split; lists need none.

    Raises:
        ValueError: for another text, for a part of fewer than two identities, and for a file that
            does not hold three disjoint lists of names of `identities`.
    """
    check_split(text)
    if text == HALVES:
        return _halves(labels, groups, seed)
    if text.endswith(".json"):
        return _listed(Path(text), identities)
    return split_identities(labels, groups, seed=seed, fractions=_fractions(text))


def split_by_parts(parts: np.ndarray, labels: np.ndarray, identities: Sequence[str]) -> Split:
    """The split that a source of examples says itself.

    Args:
        parts: int[rows], of each an index into the fields of :class:`Split`.
        labels: int[rows], in ``[0, identities)``.
        identities: their names, in order.

    Raises:
        ValueError: for an identity in two parts, or a part of fewer than two identities.
    """
    part_of = np.empty(len(identities), int)
    part_of[labels] = parts
    if len(wrong := np.flatnonzero(part_of[labels] != parts)):
        identity = labels[wrong[0]]
        names = [Split._fields[part] for part in sorted({part_of[identity], parts[wrong[0]]})]
        raise ValueError(
            f"an identity must be in one part of the split; {identities[identity]!r} is in "
            f"{' and '.join(names)}: choose another split, such as --split 40/10/50"
        )
    split = Split(*(np.flatnonzero(part_of == part) for part in range(3)))
    if min(map(len, split)) < 2:
        raise ValueError(
            "each part of the split needs at least two identities; the data have "
            f"{_counts([len(part) for part in split])}: choose another, such as --split 40/10/50"
        )
    return split


def check_split(text: str) -> None:
    """What can be checked of a split's text without the data; no file is opened.

    Raises:
        ValueError: if it has none of the forms that :func:`make_split` knows.
    """
    if text != HALVES and not text.endswith(".json"):
        _fractions(text)


def _fractions(text: str) -> tuple[float, float, float]:
    """Fractions from percentages of up to three decimals."""
    if re.fullmatch(r"\d{1,2}(\.\d{1,3})?(/\d{1,2}(\.\d{1,3})?){2}", text, re.ASCII):
        train, validation, test = map(float, text.split("/"))
        if min(train, validation, test) > 0 and abs(train + validation + test - 100) < 1e-6:
            return train / 100, validation / 100, test / 100
    raise ValueError(
        "split must be percentages of training, validation and test that sum to 100, such as "
        f"40/10/50; or {HALVES}; or the path of a .json file with lists of identities; got {text!r}"
    )


def split_identities(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Split:
    """A seeded 40 / 10 / 50 % split of the identities, stratified by their number of images.

    Groups (identities that must stay together) are sorted by images per identity, the largest
    first, those of one size in random order, and dealt out in runs of ten: in each run four go to
    training, one to validation and five to the test, at random. So every part gets its share of
    large and of small identities (the protocol released with arXiv 2603.26389).

    Args:
        labels: int[images], in ``[0, identities)``.
        groups: int[identities].
        seed: another seed, another split.
        fractions: of the identities in training, validation and test; they sum to 1.

    Raises:
        ValueError: if a part would have fewer than two identities, or `fractions` do not sum to 1.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be positive and sum to 1; got {fractions}")
    images = np.bincount(labels, minlength=len(groups))
    part_of = _stratify(images, groups, fractions, np.random.default_rng(seed))
    split = Split(*(np.flatnonzero(part_of == part) for part in range(3)))
    if min(map(len, split)) < 2:
        dealt = [len(np.unique(groups[part])) for part in split]
        units = "identities" if sum(dealt) == len(groups) else "groups of identities"
        raise ValueError(
            f"a {_percentages(fractions)} split needs at least {_least(fractions)} {units} for two "
            f"in each part; got {_counts(dealt)}{_advice(fractions, sum(dealt))}"
        )
    return split


def _halves(labels: np.ndarray, groups: np.ndarray, seed: int) -> Split:
    images = np.bincount(labels, minlength=len(groups))
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[group_of]  # of each identity's group, by appearance
    in_first = (np.cumsum(np.bincount(place)) <= len(groups) // 2)[place]
    own = np.flatnonzero(in_first)
    part_of = _stratify(
        images[own], groups[own], _TRAIN_AND_VALIDATION, np.random.default_rng(seed)
    )
    split = Split(own[part_of == 0], own[part_of == 1], np.flatnonzero(~in_first))
    if min(map(len, split)) < 2:
        raise ValueError(
            f"{HALVES} needs at least two identities in each part, which "
            f"{2 * _least(_TRAIN_AND_VALIDATION)} without groups have; "
            f"got {_counts([len(part) for part in split])}"
        )
    return split


def _listed(path: Path, identities: Sequence[str]) -> Split:
    lists = read_lists(path)
    index = {name: i for i, name in enumerate(identities)}
    if len(index) < len(identities):
        twice = [name for name, times in Counter(identities).items() if times > 1]
        raise ValueError(
            f"{path} lists identities by name, but several have the same: {_some(twice)}"
        )
    listed = Counter(itertools.chain(*lists))
    unknown = [name for name in listed if name not in index]
    if unknown:
        near = difflib.get_close_matches(unknown[0], identities, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{path}: {len(unknown)} of {len(listed)} names are not among the dataset's "
            f"{len(index)} identities: {_some(unknown)}.{hint}"
        )
    twice = [name for name, times in listed.items() if times > 1]
    if twice:
        parts = [part for part in Split._fields for name in getattr(lists, part) if name in twice]
        raise ValueError(
            f"{path} must list an identity once; got more of {_some(twice)}, "
            f"in {' and '.join(dict.fromkeys(parts))}"
        )
    if min(map(len, lists)) < 2:
        raise ValueError(
            f"{path}: each part needs at least two identities; got {_counts([*map(len, lists)])}"
        )
    return Split(*(np.array(sorted(index[name] for name in names)) for names in lists))


def _stratify(
    images: np.ndarray, groups: np.ndarray, fractions: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
    """int[identities]: the part of each, dealt as :func:`split_identities` says."""
    names, group_of = np.unique(groups, return_inverse=True)
    identities = np.bincount(group_of)
    mean_images = np.bincount(group_of, weights=images) / identities
    order = rng.permutation(len(names))
    order = order[np.lexsort((-identities[order], -mean_images[order]))]
    part_of = np.empty(len(names), int)
    part_of[order] = _deal(len(names), fractions, rng)
    return part_of[group_of]


def _deal(n: int, fractions: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """int[n]: parts in proportion, over all and in each run of ten, in random order in a run."""
    parts = np.fromiter(_proportional(fractions), int, n)
    for start in range(0, n, _BLOCK):
        run = slice(start, start + _BLOCK)
        parts[run] = rng.permutation(parts[run])
    return parts


def _proportional(fractions: tuple[float, ...]) -> Iterator[int]:
    """Parts without end, always the one that is furthest behind its share."""
    dealt = [0] * len(fractions)
    for n in itertools.count(1):
        behind = [share * n - own for share, own in zip(fractions, dealt, strict=True)]
        part = behind.index(max(behind))
        dealt[part] += 1
        yield part


def _least(fractions: tuple[float, ...]) -> int:
    """How many have to be dealt until every part has two."""
    parts = _proportional(fractions)
    dealt = [0] * len(fractions)
    while min(dealt) < 2:
        dealt[next(parts)] += 1
    return sum(dealt)


def _advice(fractions: tuple[float, ...], n: int) -> str:
    """The nearest percentages in tens that can split `n`, as the end of a message."""
    able = [
        shares
        for a, b in itertools.product(range(1, 9), repeat=2)
        if a + b < 10 and _least(shares := (a / 10, b / 10, (10 - a - b) / 10)) <= n
    ]
    if not able:
        return "; two identities for each part are six at least: add some"

    def distance(shares: tuple[float, ...]) -> tuple[float, float]:
        apart = sum(abs(a - b) for a, b in zip(shares, fractions, strict=True))
        return round(apart, 6), -shares[0]

    return f"; --split {_percentages(min(able, key=distance))} would do with {n}"


def _percentages(fractions: tuple[float, ...]) -> str:
    return "/".join(f"{100 * fraction:g}" for fraction in fractions)


def _counts(parts: list[int]) -> str:
    return f"{sum(parts)} ({parts[0]}, {parts[1]} and {parts[2]})"


def _some(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
