"""From a trunk's features to an embedding: the published heads, and the whole of both."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.small_cnn import l2_normalise


class Head(nn.Module):
    """Linear layers with ReLU between them, each behind a dropout.

    Attributes:
        embedding_size: of the last layer.
        hidden: sizes of the layers before it.
        dropout: for each layer, the share of its inputs that training drops at random.
        dtype: what it computes in; parameters are float32.
    """

    embedding_size: int = 128
    hidden: tuple[int, ...] = ()
    dropout: tuple[float, ...] = (0.0,)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array, *, train: bool) -> Array:
        """float[batch, features] to dtype[batch, embedding_size], of any length.

        Training draws from the "dropout" key, if a rate is above 0.

        Raises:
            ValueError: unless each layer has a rate.
        """
        layers = len(self.hidden) + 1
        if len(self.dropout) != layers:
            raise ValueError(
                f"dropout must have a rate for each of {layers} layers; got {self.dropout}"
            )
        x = features
        for size, rate in zip(self.hidden, self.dropout[:-1], strict=True):
            x = nn.Dropout(rate, deterministic=not train)(x)
            x = nn.relu(nn.Dense(size, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout[-1], deterministic=not train)(x)
        return nn.Dense(self.embedding_size, dtype=self.dtype)(x)


class Siamese(nn.Module):
    """Trunk and head: ``l2_normalise(head(trunk(images)))``.

    The parameters (and the batch statistics) of both are apart, under "trunk" and "head", so that a
    trunk can be loaded or held still.

    Attributes:
        trunk: images float[batch, H, W, C] to features [batch, n], called with ``train=``.
        head: features to [batch, embedding_size], called with ``train=``.
    """

    trunk: nn.Module
    head: nn.Module

    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to float32[batch, embedding_size] of length 1."""
        x = self.head(self.trunk(images, train=train), train=train)
        return l2_normalise(x.astype(jnp.float32))
