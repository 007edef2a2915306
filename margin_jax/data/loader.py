"""From a plan of batches to arrays on the device, a few batches ahead of the training."""

from collections.abc import Iterator

import numpy as np
from jax import Array
from jax.sharding import Mesh

from margin_jax.sharding import place_copies, place_rows


def load_batches(
    images: np.ndarray, labels: np.ndarray, plan: np.ndarray, mesh: Mesh
) -> Iterator[tuple[Array, Array]]:
    """Yields ``(images uint8[P·K, H, W, C], labels int32[P·K])`` for every row of the plan.

    The images are shared out over the mesh, the labels are on all of it.
    """
    import grain

    # The plan is the random-access source, so the order is the plan's whatever the threads do.
    source = grain.MapDataset.source(plan).map(lambda rows: (images[rows], labels[rows]))
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    for batch_images, batch_labels in source.to_iter_dataset(options):
        yield place_rows(batch_images, mesh), place_copies(batch_labels, mesh)
