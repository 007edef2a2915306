"""What a dataset is like, in lines of text: sizes of identities, split, coverage of an epoch."""

import warnings
from collections.abc import Iterator

import numpy as np

from margin_jax.config import TrainConfig
from margin_jax.data import default_split
from margin_jax.data.dataset import Dataset, Examples, read_rows, remarks
from margin_jax.data.images import StreamedImages
from margin_jax.data.rows import PickedRows, is_mapped
from margin_jax.data.sampler import SAMPLERS
from margin_jax.runs.run_data import plan_epoch, settle_batches, split_dataset

_SOME = 10_000  # examples that are measured


def describe(config: TrainConfig, dataset: Dataset) -> Iterator[str]:
    """Lines on a dataset as a run of this configuration would use it."""
    sizes = np.bincount(dataset.labels, minlength=len(dataset.identities))
    shape, dtype = dataset.examples.shape[1:], dataset.examples.dtype
    what, kind = "examples", f"{' x '.join(map(str, shape))} numbers of {dtype}"
    if dataset.pictures:
        what, kind = "images", f"{shape[0]} x {shape[1]} in {'grey' if shape[2] == 1 else 'colour'}"
    memory = np.prod(dataset.examples.shape) * dtype.itemsize / 2**30
    yield (
        f"{config.dataset}: {len(dataset.labels):,} {what} of {len(sizes):,} identities, {kind}: "
        f"{memory:.2f} GiB, " + _where(dataset.examples)
    )
    if not dataset.pictures:
        yield _norms(dataset.examples)
    if dataset.views is not None:
        yield f"{dataset.views.shape[1]} more versions of each, for training alone"
    if dataset.skipped:
        yield f"{len(dataset.skipped)} unreadable, skipped; first {dataset.skipped[0]}"
    yield from remarks(dataset.left_out, dataset.notes)
    least, most, median = np.min(sizes), np.max(sizes), np.median(sizes)
    yield f"{what} of an identity: {least:,} to {most:,}, median {median:g}"
    yield f"{what:>13}  identities{what + ' in all':>17}"
    power = np.log2(sizes).astype(int)
    for p in np.unique(power):
        least, most = 2**p, 2 ** (p + 1) - 1
        within = sizes[power == p]
        name = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"{name:>13}{len(within):12,}{within.sum():17,}"

    split, rows = split_dataset(config, dataset)
    examples = " / ".join(f"{len(rows[part]):,}" for part in split._fields)
    identities = " / ".join(f"{len(part):,}" for part in split)
    yield (
        f"split {_split(config, dataset)}: {identities} "
        f"identities with {examples} {what} in training / validation / test"
    )
    with warnings.catch_warnings(action="ignore"):  # it is said below
        config, _ = settle_batches(config, dataset)
    for sampler in SAMPLERS:
        coverage = _coverage(config.replace(sampler=sampler), dataset, rows["train"])
        yield f"an epoch, sampler {sampler}: {coverage}"


def _where(examples: Examples) -> str:
    if isinstance(examples, StreamedImages):
        return "decoded when asked for"
    mapped = isinstance(examples, PickedRows) or is_mapped(examples)
    return "mapped from the file" if mapped else "in memory"


def _split(config: TrainConfig, dataset: Dataset) -> str:
    if config.split is None and dataset.parts is not None:
        return "as the data say"
    return f"{config.split or default_split(config.dataset)}, seed {config.seed}"


def _norms(examples: Examples) -> str:
    """Lengths of some vectors, evenly spread."""
    some = np.linspace(0, len(examples) - 1, min(len(examples), _SOME)).astype(int)
    norms = np.linalg.norm(read_rows(examples, some).reshape(len(some), -1), axis=1)
    low, middle, high = np.quantile(norms, (0.01, 0.5, 0.99))
    return f"length of an example: median {middle:.4g}, 98 % from {low:.4g} to {high:.4g}"


def _coverage(config: TrainConfig, dataset: Dataset, train: np.ndarray) -> str:
    try:
        plan, coverage = plan_epoch(config, dataset, train, 0)
    except ValueError as error:
        return str(error)
    more = f" and {config.fillers} fillers" if config.fillers else ""
    return (
        f"{len(plan):,} batches of {config.identities_per_batch} x {config.images_per_identity}"
        f"{more}, {coverage.used / coverage.images:.1%} of those to train on; {coverage.small:,} "
        f"belong to identities with too few, {coverage.left:,} are left over, "
        f"{coverage.repeated:,} rows repeat one"
    )
