"""A multilayer perceptron, for toy problems."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.heads import Head, Siamese


class MLP(nn.Module):
    """A trunk of linear layers, each followed by ReLU. It is made for one size of image.

    Attributes:
        hidden: sizes of the layers; the last one is the number of features.
        dtype: what it computes in; parameters are float32.
    """

    hidden: Sequence[int] = (512, 256)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to dtype[batch, hidden[-1]]; the same in training."""
        x = images.reshape(images.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(x))
        return x


def build(embedding_size: int, *, dtype: DTypeLike) -> Siamese:
    """The trunk with one linear layer."""
    return Siamese(MLP(dtype=dtype), Head(embedding_size, dtype=dtype))
