"""ResNet-50."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.efficientnet import published_head
from margin_jax.models.heads import Siamese
from margin_jax.models.inverted_residual import batch_norm, convolution

# Blocks of each stage; a stage has twice the channels of the one before, and half its size.
STAGES = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1 × 1 convolution to few channels, 3 × 3, 1 × 1 to four times as many; the input is added.

    He et al., arXiv 1512.03385, figure 5. The stride is that of the 3 × 3 convolution. Where shapes
    differ, the input passes a 1 × 1 convolution with BatchNorm.

    Attributes:
        features: channels of the first two convolutions.
        strides: of the second.
        dtype: of the computation; parameters and batch statistics are float32.
    """

    features: int
    strides: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, H, W, C] to [batch, ⌈H / strides⌉, ⌈W / strides⌉, 4 · features]."""
        convolve = functools.partial(convolution, dtype=self.dtype)
        norm = functools.partial(batch_norm, train, dtype=self.dtype)
        out = 4 * self.features
        y = nn.relu(norm(name="bn1")(convolve(self.features, 1, name="conv1")(x)))
        y = convolve(self.features, 3, self.strides, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = norm(name="bn3")(convolve(out, 1, name="conv3")(y))
        if self.strides > 1 or x.shape[-1] != out:
            x = convolve(out, 1, self.strides, name="downsample_0")(x)
            x = norm(name="downsample_1")(x)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """ResNet-50 without its classifier: 2,048 features, 23,508,032 parameters.

    He et al., arXiv 1512.03385, table 1; as timm's ``resnet50``, whose weights fit.

    Attributes:
        dtype: of the computation; parameters and batch statistics are float32.
        small_stem: the first convolution keeps the size and no pooling follows it, for images of 28
            to 64 pixels. The variables are the same.
    """

    dtype: DTypeLike = jnp.float32
    small_stem: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, channels] to float32[batch, 2048]."""
        strides = 1 if self.small_stem else 2
        x = convolution(64, 7, strides, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(x))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, blocks in enumerate(STAGES):
            for j in range(blocks):
                strides = 2 if i > 0 and j == 0 else 1
                block = Bottleneck(64 * 2**i, strides, self.dtype, name=f"layer{i + 1}_{j}")
                x = block(x, train=train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def build(embedding_size: int, *, dtype: DTypeLike, small_stem: bool) -> Siamese:
    """The trunk with the published head of EfficientNet-B0."""
    trunk = ResNet50(dtype=dtype, small_stem=small_stem)
    return Siamese(trunk, published_head(embedding_size, dtype))
