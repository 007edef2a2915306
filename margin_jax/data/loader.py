"""From a plan of batches to arrays on the device, a few batches ahead of the training."""

from collections.abc import Iterator

import jax
import numpy as np
from jax import Array


def load_batches(
    images: np.ndarray, labels: np.ndarray, plan: np.ndarray
) -> Iterator[tuple[Array, Array]]:
    """Yields ``(images uint8[P·K, H, W, C], labels int32[P·K])`` for every row of the plan."""
    import grain

    # The plan is the random-access source, so the order is the plan's whatever the threads do.
    source = grain.MapDataset.source(plan).map(lambda rows: (images[rows], labels[rows]))
    for batch in source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
        yield jax.device_put(batch)
