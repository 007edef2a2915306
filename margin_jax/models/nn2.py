"""NN2, the inception network of FaceNet."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.convolution import conv_general_dilated
from margin_jax.models.heads import Head, Siamese


class Block(NamedTuple):
    """A row of the paper's table: numbers of channels, and how the block pools.

    Attributes:
        one: of the 1 × 1 convolution; 0 if there is none.
        three, five: of the 1 × 1 convolution before the 3 × 3 (5 × 5) one, and of that one.
        pool: "max" or "l2", over 3 × 3.
        project: of the 1 × 1 convolution after pooling; 0 if what is pooled passes as it is.
        stride: of the 3 × 3 and the 5 × 5 convolution and of pooling.
    """

    one: int
    three: tuple[int, int]
    five: tuple[int, int]
    pool: str
    project: int
    stride: int = 1


BLOCKS = {
    "inception3a": Block(64, (96, 128), (16, 32), "max", 32),
    "inception3b": Block(64, (96, 128), (32, 64), "l2", 64),
    "inception3c": Block(0, (128, 256), (32, 64), "max", 0, stride=2),
    "inception4a": Block(256, (96, 192), (32, 64), "l2", 128),
    "inception4b": Block(224, (112, 224), (32, 64), "l2", 128),
    "inception4c": Block(192, (128, 256), (32, 64), "l2", 128),
    "inception4d": Block(160, (144, 288), (32, 64), "l2", 128),
    "inception4e": Block(0, (160, 256), (64, 128), "max", 0, stride=2),
    "inception5a": Block(384, (192, 384), (48, 128), "l2", 128),
    "inception5b": Block(384, (192, 384), (48, 128), "max", 128),
}


class NN2(nn.Module):
    """A trunk of ten inception blocks: images to 1,024 features, 7.3 million parameters.

    As in table 2 of the paper, where the paper is silent as usual: convolutions and pooling keep
    the size up to their stride, and ReLU follows every convolution. One thing is another: the
    paper has local response normalisation twice, before the blocks; here BatchNorm follows every
    convolution, in place of its bias. What the code of arXiv 2603.26389 does is not known.

    Attributes:
        small_stem: for images of 28 to 64 pixels: the first convolution has stride 1 and no
            pooling follows it, so that four times as many pixels a side reach the blocks.
        dtype: what it computes in; parameters and batch statistics are float32.

    References:
        Schroff et al. 2015, `arXiv 1503.03832 <https://arxiv.org/abs/1503.03832>`_; the blocks are
        those of Szegedy et al. 2014, `arXiv 1409.4842 <https://arxiv.org/abs/1409.4842>`_;
        BatchNorm: Ioffe & Szegedy 2015, `arXiv 1502.03167 <https://arxiv.org/abs/1502.03167>`_.
    """

    small_stem: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to dtype[batch, 1024], the mean over the last block's pixels.

        Published for 220 to 224 pixels a side; any size will do.
        """
        convolve = functools.partial(Convolution, dtype=self.dtype)
        x = convolve(64, 7, 1 if self.small_stem else 2, name="conv1")(images, train=train)
        if not self.small_stem:
            x = max_pool(x, 2)
        x = convolve(64, 1, name="conv2_reduce")(x, train=train)
        x = convolve(192, 3, name="conv2")(x, train=train)
        x = max_pool(x, 2)
        for name, block in BLOCKS.items():
            x = Inception(block, self.dtype, name=name)(x, train=train)
        return jnp.mean(x, axis=(1, 2))


class Inception(nn.Module):
    """Convolutions of three sizes and pooling side by side; their channels are joined."""

    block: Block
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to dtype[batch, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        block = self.block
        convolve = functools.partial(Convolution, dtype=self.dtype)
        branches = []
        if block.one:
            branches.append(convolve(block.one, 1, name="one")(x, train=train))
        for name, size, (reduce, features) in (("three", 3, block.three), ("five", 5, block.five)):
            y = convolve(reduce, 1, name=f"{name}_reduce")(x, train=train)
            branches.append(convolve(features, size, block.stride, name=name)(y, train=train))
        pooled = {"max": max_pool, "l2": l2_pool}[block.pool](x, block.stride)
        if block.project:
            pooled = convolve(block.project, 1, name="project")(pooled, train=train)
        return jnp.concatenate([*branches, pooled], axis=-1)


class Convolution(nn.Module):
    """A square convolution, BatchNorm and ReLU."""

    features: int
    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """float[batch, H, W, C] to dtype[batch, ⌈H / stride⌉, ⌈W / stride⌉, features]."""
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            (self.stride, self.stride),
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        norm = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, name="norm"
        )
        return nn.relu(norm(x))


def max_pool(x: Array, stride: int = 1) -> Array:
    """The maximum of 3 × 3 pixels, fewer at the edge."""
    pooled: Array = nn.max_pool(x, (3, 3), (stride, stride), "SAME")
    return pooled


def l2_pool(x: Array, stride: int = 1) -> Array:
    """The root of the mean square of 3 × 3 pixels, fewer at the edge: ``√mean(x²)``.

    Computed in float32 and returned in the dtype of `x`. Zeros become 1e-6, where the gradient is
    0. The paper does not say whether it is the mean or the sum; a factor of 3 between them means
    nothing to the BatchNorm that follows.
    """
    squares = jnp.square(x.astype(jnp.float32))
    mean = nn.avg_pool(squares, (3, 3), (stride, stride), "SAME", count_include_pad=False)
    return jnp.sqrt(jnp.maximum(mean, 1e-12)).astype(x.dtype)


def build(embedding_size: int, *, dtype: DTypeLike, small_stem: bool) -> Siamese:
    """The trunk with one linear layer."""
    trunk = NN2(dtype=dtype, small_stem=small_stem)
    return Siamese(trunk, Head(embedding_size, dtype=dtype))
