"""Some images of some identities of a dataset, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from margin_jax.data.decode import one_line

if TYPE_CHECKING:
    from margin_jax.data.dataset import Dataset
    from margin_jax.plots.figure import Figure


def plot_contact_sheet(dataset: "Dataset", identities: int = 10, images: int = 10) -> "Figure":
    """A row of images for each of some identities, from the largest to the smallest.

    Args:
        dataset: of pictures.
        identities: rows at most, evenly spread over the images by the size of their identities.
        images: columns at most, evenly spread over the images of an identity.

    Raises:
        ValueError: for examples that are no pictures.
    """
    from margin_jax.plots.figure import Figure  # slow to import

    if not dataset.pictures:
        examples = dataset.examples
        raise ValueError(
            f"a contact sheet is of pictures, uint8; got {examples.dtype} of shape {examples.shape}"
        )
    sizes = np.bincount(dataset.labels, minlength=len(dataset.identities))
    by_size = np.argsort(-sizes, kind="stable")
    spread = (np.arange(identities) + 0.5) / identities * len(dataset.labels)
    shown = by_size[np.unique(np.searchsorted(np.cumsum(sizes[by_size]), spread))]
    height, width, channels = dataset.examples.shape[1:]
    gap = 1 + max(height, width) // 24
    step_down, step_right = height + gap, width + gap
    sheet = np.full((len(shown) * step_down, images * step_right, channels), 255, np.uint8)
    for row, identity in enumerate(shown):
        own = np.flatnonzero(dataset.labels == identity)
        own = own[np.linspace(0, len(own) - 1, min(images, len(own))).astype(int)]
        for column, image in enumerate(dataset.examples[own]):
            top, left = row * step_down, column * step_right
            sheet[top : top + height, left : left + width] = image
    figure = Figure(
        figsize=(2.0 + 0.7 * images, 0.6 + 0.7 * len(shown) * height / width),
        dpi=150,
        layout="compressed",  # which makes room for the names beside a picture of fixed shape
    )
    axes = figure.subplots()
    axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks(
        np.arange(len(shown)) * step_down + height / 2,
        [f"{one_line(Path(dataset.identities[i])):.24} ({sizes[i]:,})" for i in shown],
        parse_math=False,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Identities, and how many images each has", fontsize="medium")
    return figure
