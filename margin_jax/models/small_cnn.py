"""A small convolutional network for images of 28 to 112 pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.convolution import conv_general_dilated


class SmallCNN(nn.Module):
    """Blocks of convolution, BatchNorm, ReLU and 2 × 2 maximum; then a linear embedding.

    What is left of the image is averaged in a 2 × 2 grid, so that the embedding still knows where
    in the image a feature was, and its size does not depend on that of the image.

    Attributes:
        embedding_size: length of the L2-normalised embedding.
        features: channels of the blocks.
        dtype: of the computation; parameters, batch statistics and embeddings are float32.
    """

    embedding_size: int = 128
    features: Sequence[int] = (32, 64, 128, 128)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to float[batch, embedding_size] of length 1."""
        x = images
        for features in self.features:
            x = nn.Conv(
                features,
                (3, 3),
                use_bias=False,
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
            )(x)
            x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x)
            x = max_pool(nn.relu(x))
        corners = [x[:, rows, cols] for rows in halves(x.shape[1]) for cols in halves(x.shape[2])]
        x = jnp.concatenate([jnp.mean(corner, axis=(1, 2)) for corner in corners], axis=-1)
        x = nn.Dense(self.embedding_size, dtype=self.dtype)(x)
        return l2_normalise(x.astype(jnp.float32))


def build(embedding_size: int, *, dtype: DTypeLike, width: float) -> SmallCNN:
    """With `width` times 32, 64, 128 and 128 channels."""
    features = tuple(max(round(width * n), 1) for n in SmallCNN.features)
    return SmallCNN(embedding_size, features, dtype)


def max_pool(x: Array) -> Array:
    """The maximum of each 2 × 2 pixels; of fewer at the end of an odd height or width.

    Not ``nn.max_pool``, whose gradient is a search in windows: on a CPU this makes a training step
    of the whole network a quarter shorter.
    """
    height, width = x.shape[1:3]
    ends = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    x = jnp.pad(x, ends, constant_values=-jnp.inf)
    top, bottom = x[:, ::2], x[:, 1::2]
    rows = jnp.maximum(top, bottom)
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def halves(n: int) -> tuple[slice, slice]:
    """Both halves of a length; they share the middle of an odd one."""
    return slice(0, (n + 1) // 2), slice(n // 2, n)


def l2_normalise(x: Array) -> Array:
    """Rows of length 1; the zero vector stays what it is, with a finite gradient."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-12))
