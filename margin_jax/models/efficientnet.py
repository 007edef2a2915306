"""EfficientNet-B0."""

import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.heads import Head, Siamese
from margin_jax.models.inverted_residual import (
    PYTORCH,
    Framework,
    InvertedResidual,
    batch_norm,
    convolution,
)


class Stage(NamedTuple):
    """Blocks of one width; the strides are those of the first."""

    blocks: int
    kernel_size: int
    strides: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """What EfficientNet-Lite0 does in another way.

    Attributes:
        act: after all convolutions but a block's last.
        squeezes: blocks have squeeze-excite.
        framework: the one that its weights come from.
    """

    act: Callable[[Array], Array]
    squeezes: bool
    framework: Framework


class EfficientNetB0(nn.Module):
    """EfficientNet-B0 without its classifier: 1,280 features, 4,007,548 parameters.

    Tan and Le, arXiv 1905.11946, table 1; as timm's ``efficientnet_b0``, whose weights fit. Like
    that one by default, it trains without stochastic depth.

    Attributes:
        dtype: of the computation; parameters and batch statistics are float32.
        small_stem: the first convolution keeps the size, for images of 28 to 64 pixels. The
            variables are the same.
    """

    dtype: DTypeLike = jnp.float32
    small_stem: bool = False
    # Decided by the class, as published weights are of one variant.
    variant: ClassVar[Variant] = Variant(jax.nn.silu, True, PYTORCH)

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, channels] to float32[batch, 1280]."""
        act, squeezes, framework = self.variant
        norm = functools.partial(batch_norm, train, framework, dtype=self.dtype)
        strides = 1 if self.small_stem else 2
        stem = convolution(32, 3, strides, framework, dtype=self.dtype, name="conv_stem")
        x = act(norm(name="bn1")(stem(images)))
        for i, stage in enumerate(STAGES):
            for j in range(stage.blocks):
                channels = x.shape[-1]
                x = InvertedResidual(
                    kernel_size=stage.kernel_size,
                    expanded=stage.expansion * channels,
                    squeezed=channels // 4 if squeezes else 0,
                    features=stage.features,
                    strides=stage.strides if j == 0 else 1,
                    act=act,
                    squeeze_act=act,
                    gate=jax.nn.sigmoid,
                    framework=framework,
                    dtype=self.dtype,
                    name=f"blocks_{i}_{j}",
                )(x, train=train)
        x = convolution(1280, 1, dtype=self.dtype, name="conv_head")(x)
        x = act(norm(name="bn2")(x))
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def build(embedding_size: int, *, dtype: DTypeLike, small_stem: bool) -> Siamese:
    """The trunk with the published head."""
    trunk = EfficientNetB0(dtype=dtype, small_stem=small_stem)
    return Siamese(trunk, published_head(embedding_size, dtype))


def published_head(embedding_size: int, dtype: DTypeLike) -> Head:
    """512, 256 and the embedding, "with ReLU and dropout .5/.3" (arXiv 2603.26389).

    Here the dropouts follow both hidden layers.
    """
    return Head(embedding_size, hidden=(512, 256), dropout=(0.0, 0.5, 0.3), dtype=dtype)
