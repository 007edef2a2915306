"""What a run trains and tests on: dataset, split, verification pairs and batches."""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.data import default_split, load_dataset
from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import Reading, one_line
from margin_jax.data.pairs import Pairs, hard_pairs, sample_pairs
from margin_jax.data.sampler import IDENTITIES, Coverage, choose_batch, pk_batches
from margin_jax.data.splits import Split, make_split, split_by_parts
from margin_jax.evaluation.threshold import threshold_pairs

if TYPE_CHECKING:  # it loads Flax, which data do not need
    from margin_jax.runs.own import Own

PUBLISHED_PAIRS = 1_000
PAIRS = 100_000
# What helps if validation has too few pairs for a false match rate.
MORE_IDENTITIES = "more validation identities (--split)"


class RunData(NamedTuple):
    """What a run trains and tests on, all of it decided by the configuration and the files.

    Attributes:
        dataset: all examples.
        split: identities of each part.
        train, validation: rows of `dataset`.
        pairs: "validation", "test", "published", "hard" if there are any, and "threshold" if it is
            chosen for a false match rate; rows of `dataset`.
        described: what goes into ``data.json``; by it a run is known when it goes on.
    """

    dataset: Dataset
    split: Split
    train: np.ndarray
    validation: np.ndarray
    pairs: dict[str, Pairs]
    described: dict[str, Any]

    def classes(self) -> np.ndarray:
        """int32[rows of the dataset]: the training identities from 0 on, -1 for all others."""
        trained, classes = np.unique(self.dataset.labels[self.train], return_inverse=True)
        found = np.full(len(self.dataset.labels), -1, np.int32)
        found[self.train] = classes
        assert len(trained) == len(self.split.train)
        return found


def load(config: TrainConfig) -> Dataset:
    """The dataset that a configuration names.

    Raises:
        ValueError: saying what was expected and what came.
    """
    return load_dataset(**loading(config))


def loading(config: TrainConfig) -> dict[str, Any]:
    """What is loaded for a configuration; where it is the same, so are the images."""
    return {
        "name": config.dataset,
        "data_dir": config.data_dir,
        "image_size": config.image_size,
        "strict": config.strict,
        "manual_dir": config.manual_dir,
        "label_key": config.label_key,
        "memory_limit": config.memory_limit * 2**30,
        **reading_of(config)._asdict(),
        "repeated_names": config.repeated_names,
    }


def reading_of(config: TrainConfig) -> Reading:
    """What is done to pictures on the way: to those of a run, and to others that it is used on."""
    return Reading(config.fit, config.transparency, config.bits)


def check_identities(dataset: Dataset) -> None:
    """Refuses names of identities that no file of text can hold.

    Raises:
        ValueError: for the first of them.
    """
    for name in dataset.identities:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"names of identities must be text; {one_line(Path(name))} has bytes that are not "
                "text: rename the folder"
            ) from None


def split_dataset(config: TrainConfig, dataset: Dataset) -> tuple[Split, dict[str, np.ndarray]]:
    """The identities of "train", "validation" and "test", and the rows of their examples.

    Raises:
        ValueError: for too few identities, or lists that do not fit.
    """
    if config.split is None and dataset.parts is not None:
        split = split_by_parts(dataset.parts, dataset.labels, dataset.identities)
    else:
        split = make_split(
            config.split or default_split(config.dataset),
            dataset.labels,
            dataset.groups,
            dataset.identities,
            seed=config.seed,
        )
    parts = split._asdict().items()
    return split, {part: np.flatnonzero(np.isin(dataset.labels, own)) for part, own in parts}


def settle_batches(
    config: TrainConfig, dataset: Dataset | None
) -> tuple[TrainConfig, Dataset | None]:
    """The configuration with P and K, and the dataset, loaded if they have to follow it.

    Warns:
        UserWarning: saying what they are, if there are too few identities for the usual P.
    """
    given = config.identities_per_batch, config.images_per_identity
    if None not in given:
        return config, dataset
    dataset = load(config) if dataset is None else dataset
    _, rows = split_dataset(config, used := _used(config, dataset))
    p, k = _batch(config, train := used.labels[rows["train"]])
    settled = config.replace(identities_per_batch=p, images_per_identity=k)
    _, sizes = np.unique(train, return_counts=True)
    enough = config.small_identities == "repeat" or np.count_nonzero(sizes >= k) >= p
    if given[0] is None and p < IDENTITIES and enough:  # too few are refused with the batches
        warnings.warn(
            f"a batch has {p} identities of {k} images, as there are {len(sizes)} to "
            "train on; identities_per_batch and images_per_identity set something else",
            stacklevel=2,
        )
    return settled, dataset


def _used(config: TrainConfig, dataset: Dataset) -> Dataset:
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise TypeError(
            f"dataset must be a mj.Dataset, as Dataset.from_arrays makes it; got {kind}"
        )
    if dataset.source == OWN and config.dataset != OWN:
        raise ValueError(
            f"examples of your own need dataset={OWN!r} in the configuration; it says "
            f"{config.dataset!r}"
        )
    return dataset if config.max_identities is None else dataset.first(config.max_identities)


def _batch(config: TrainConfig, labels: np.ndarray) -> tuple[int, int]:
    """P and K for the training images of these labels."""
    return choose_batch(
        labels, config.identities_per_batch, config.images_per_identity, config.small_identities
    )


def plan_epoch(
    config: TrainConfig, dataset: Dataset, train: np.ndarray, epoch: int
) -> tuple[np.ndarray, Coverage]:
    """The batches of an epoch, counted from 0: int[steps, batch], rows of the dataset.

    Raises:
        ValueError: if not even one batch can be made.
    """
    plan, coverage = pk_batches(
        dataset.labels[train],
        *_batch(config, dataset.labels[train]),
        seed=config.seed,
        epoch=epoch,
        small_identities=config.small_identities,
        sampler=config.sampler,
        fillers=config.fillers,
    )
    return train[plan], coverage


def prepare_data(
    config: TrainConfig,
    dataset: Dataset | None = None,
    own: "Own | None" = None,
) -> RunData:
    """Loads, splits and draws pairs: all that can go wrong with the data goes wrong here.

    Args:
        config: what to load and how to split it.
        dataset: the examples, if they are loaded already.
        own: what else is given as an object.

    Raises:
        ValueError: saying what was expected and what came.
    """
    dataset = _used(config, load(config) if dataset is None else dataset)
    labels = dataset.labels
    check_identities(dataset)
    shape = dataset.examples.shape[1:]
    if len(shape) != 3 and config.encoder_name not in (OWN, "head", "linear", "mlp"):
        raise ValueError(
            f"encoder {config.encoder_name} takes examples of shape (height, width, channels); got "
            f"{shape}: --encoder head, linear and mlp take any, and so can one of your own"
        )
    if config.begins_with_weights and not dataset.pictures:
        raise ValueError(
            f"published weights are for pictures, uint8; got examples of {dataset.examples.dtype}"
        )
    split, rows = split_dataset(config, dataset)

    def draw(part: str, count: int, seed: int) -> Pairs:
        pairs = sample_pairs(labels[rows[part]], count, seed=seed)
        return Pairs(rows[part][pairs.rows], pairs.same)

    pairs = {
        "validation": draw("validation", PAIRS, config.seed),
        "test": draw("test", PAIRS, config.seed),
        "published": draw("test", PUBLISHED_PAIRS, config.seed),
    }
    if config.fmr is not None:
        held = rows["validation"]
        saved = Pairs(np.searchsorted(held, pairs["validation"].rows), pairs["validation"].same)
        chosen = threshold_pairs(
            saved, labels[held], config.fmr, seed=config.seed, advice=MORE_IDENTITIES
        )
        pairs["threshold"] = Pairs(held[chosen.rows], chosen.same)
    groups = dataset.groups[labels[rows["test"]]]
    hard = hard_pairs(labels[rows["test"]], groups, PAIRS, seed=config.seed)
    if hard is not None:
        pairs["hard"] = Pairs(rows["test"][hard.rows], hard.same)

    _, coverage = plan_epoch(config, dataset, rows["train"], 0)
    described = {
        "examples": len(labels),
        "example_shape": list(shape),
        "example_dtype": str(dataset.examples.dtype),
        "skipped": list(dataset.skipped),
        "left_out": list(dataset.left_out),
        "notes": list(dataset.notes),
        "identities": {
            part: [dataset.identities[i] for i in getattr(split, part)] for part in split._fields
        },
        "coverage": dataclasses.asdict(coverage),
    }
    # No name in the configuration, nor of a file, says what these are.
    if config.dataset in (OWN, "vectors"):
        described["sha256"] = dataset.digest()
    if own is not None:
        described |= own.described(shape)
    return RunData(dataset, split, rows["train"], rows["validation"], pairs, described)
