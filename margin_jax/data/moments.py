"""The mean and the spread of examples, by which a network's input is normalised."""

import numpy as np

from margin_jax.data.dataset import Dataset, Examples, read_rows
from margin_jax.data.rows import PickedRows

# Pictures that are measured, at most, and values of other examples at a time.
_PICTURES, _VALUES = 10_000, 2**22


def moments(dataset: Dataset, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the training examples: what the network's input has taken off.

    Args:
        dataset: all examples.
        train: int[rows], those to measure.

    Returns:
        float64[features] each, over all but the last axis: of pictures the channels, for values 0
        to 1. Of a feature that never changes the deviation is 1, of a channel .001.

    Raises:
        ValueError: for an example, or one of its views, that is not finite, of whatever part of the
            split.
    """
    if dataset.pictures:
        return _of_pictures(dataset.examples, train)
    found = _of_floats(dataset.examples, train)
    if dataset.views is not None:
        _look_at(dataset.views)
    return found


def _look_at(views: np.ndarray | PickedRows) -> None:
    """Refuses views that are not finite; they have no part in the moments."""
    size = max(1, _VALUES // int(np.prod(views.shape[1:])))
    for start in range(0, len(views), size):
        block = views[start : start + size]
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32, copy=False)).reshape(len(block), -1)
        if not finite.all():
            row = start + int(np.argmin(finite.all(axis=1)))
            raise ValueError(
                f"the array views must be finite numbers of float32; one of example {row} is not"
            )


def _of_pictures(examples: Examples, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of more than ten thousand pictures, so many are measured, evenly spread."""
    some = np.linspace(0, len(train) - 1, min(len(train), _PICTURES)).astype(int)
    counts = np.zeros((examples.shape[-1], 256), int)
    for rows in np.array_split(train[some], -(-len(some) // 256)):
        pixels = examples[rows].reshape(-1, len(counts))
        counts += np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    value, total = np.arange(256) / 255, counts[0].sum()  # exact, with no float copy
    mean = counts @ value / total
    variance = np.maximum(counts @ value**2 / total - mean**2, 0)
    return mean, np.maximum(np.sqrt(variance), 1e-3)  # a channel that never changes is only shifted


def _of_floats(examples: Examples, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of all training examples; the others are only looked at, as a run should not fail late."""
    features = examples.shape[-1]
    origin = read_rows(examples, train[:1]).reshape(-1, features)[0].astype(np.float64)
    count, mean, squares = 0, np.zeros(features), np.zeros(features)
    size = max(1, _VALUES // int(np.prod(examples.shape[1:])))
    for start in range(0, len(examples), size):
        block = read_rows(examples, np.arange(start, min(start + size, len(examples))))
        own = train[slice(*np.searchsorted(train, [start, start + size]))] - start
        # From an origin among them, so that what never changes is 0 exactly.
        values = block[own].reshape(-1, features).astype(np.float64) - origin
        if len(values) == 0:
            continue
        # Chan, Golub and LeVeque 1979: moments of the union from those of the parts.
        share = len(values) / (count + len(values))
        apart = values.mean(axis=0) - mean
        squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + apart**2 * count * share
        mean += apart * share
        count += len(values)
    deviation = np.sqrt(squares / count)
    return origin + mean, np.where(deviation > np.finfo(np.float32).tiny, deviation, 1.0)
