"""MobileNetV3-Small."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.heads import Head, Siamese
from margin_jax.models.inverted_residual import InvertedResidual, batch_norm, convolution


class Block(NamedTuple):
    """Arguments of an :class:`~margin_jax.models.inverted_residual.InvertedResidual`."""

    kernel_size: int
    expanded: int
    squeezed: int
    features: int
    strides: int
    act: Callable[[Array], Array]


RELU, SWISH = jax.nn.relu, jax.nn.hard_swish
STAGES = (
    (Block(3, 16, 8, 16, 2, RELU),),
    (Block(3, 72, 0, 24, 2, RELU), Block(3, 88, 0, 24, 1, RELU)),
    (
        Block(5, 96, 24, 40, 2, SWISH),
        Block(5, 240, 64, 40, 1, SWISH),
        Block(5, 240, 64, 40, 1, SWISH),
    ),
    (Block(5, 120, 32, 48, 1, SWISH), Block(5, 144, 40, 48, 1, SWISH)),
    (
        Block(5, 288, 72, 96, 2, SWISH),
        Block(5, 576, 144, 96, 1, SWISH),
        Block(5, 576, 144, 96, 1, SWISH),
    ),
)


class MobileNetV3Small(nn.Module):
    """MobileNetV3-Small without its classifier: 1,024 features, 1,517,856 parameters.

    Howard et al., arXiv 1905.02244, table 2; as timm's ``mobilenetv3_small_100``, whose weights
    fit: the last convolution comes after the average over the image. Like that one by default, it
    trains without stochastic depth.

    Attributes:
        dtype: of the computation; parameters and batch statistics are float32.
        small_stem: the first convolution keeps the size, for images of 28 to 64 pixels. The
            variables are the same.
    """

    dtype: DTypeLike = jnp.float32
    small_stem: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, channels] to float32[batch, 1024]."""
        strides = 1 if self.small_stem else 2
        x = convolution(16, 3, strides, dtype=self.dtype, name="conv_stem")(images)
        x = SWISH(batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for i, blocks in enumerate(STAGES):
            for j, block in enumerate(blocks):
                x = InvertedResidual(
                    **block._asdict(),
                    squeeze_act=jax.nn.relu,
                    gate=jax.nn.hard_sigmoid,
                    dtype=self.dtype,
                    name=f"blocks_{i}_{j}",
                )(x, train=train)
        x = LastBlock(self.dtype, name=f"blocks_{len(STAGES)}_0")(x, train=train)
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        x = convolution(1024, 1, use_bias=True, dtype=self.dtype, name="conv_head")(x)
        return SWISH(x)[:, 0, 0].astype(jnp.float32)


class LastBlock(nn.Module):
    """The 1 × 1 convolution before the average, with BatchNorm."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, H, W, 96] to [batch, H, W, 576]."""
        x = convolution(576, 1, dtype=self.dtype, name="conv")(x)
        return SWISH(batch_norm(train, dtype=self.dtype, name="bn1")(x))


def build(embedding_size: int, *, dtype: DTypeLike, small_stem: bool) -> Siamese:
    """The trunk with one linear layer behind a dropout of .2."""
    trunk = MobileNetV3Small(dtype=dtype, small_stem=small_stem)
    return Siamese(trunk, Head(embedding_size, dropout=(0.2,), dtype=dtype))
