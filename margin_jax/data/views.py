"""Views: other versions of the same examples, of which training draws one each time."""

import numpy as np

from margin_jax.data.dataset import Dataset, Examples
from margin_jax.data.rows import Versions


def draw_versions(
    dataset: Dataset, plan: np.ndarray, *, seed: int, epoch: int
) -> tuple[Examples | Versions, np.ndarray]:
    """What the batches of an epoch are read from, and which of its rows, int like the plan.

    Of an example with v views each of the 1 + v versions is as likely; the draws are a function of
    seed and epoch alone. Without views it is the dataset's own examples.
    """
    if dataset.views is None:
        return dataset.examples, plan
    versions = Versions(dataset.examples, dataset.views)
    # The sampler draws by [seed, epoch].
    drawn = np.random.default_rng([seed, epoch, 1]).integers(versions.count, size=plan.shape)
    return versions, plan * versions.count + drawn
