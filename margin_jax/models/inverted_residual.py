"""The block of MobileNetV3 and EfficientNet: expand, look around, weigh the channels, project.

Padding, epsilon and momentum are PyTorch's, and submodules are named as in timm, so that the map of
published weights (``pretrained.py``) is a rule and no table.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.depthwise import DepthwiseConv, Padding


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image holds: x · gate(W₂ act(W₁ mean(x))).

    Squeeze-and-Excitation, arXiv 1709.01507.

    Attributes:
        squeezed: channels between W₁ and W₂.
        act, gate: functions of an array, elementwise.
        dtype: of the computation.
    """

    squeezed: int
    act: Callable[[Array], Array]
    gate: Callable[[Array], Array]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, H, W, C] to the same."""
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = convolution(self.squeezed, 1, use_bias=True, dtype=self.dtype, name="conv_reduce")(y)
        y = self.act(y)
        y = convolution(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name="conv_expand")(y)
        return x * self.gate(y)


class InvertedResidual(nn.Module):
    """1 × 1 convolution to many channels, depthwise k × k, squeeze-excite, 1 × 1 to few.

    BatchNorm follows each convolution, and `act` the first two; the output is linear, and the input
    is added to it where both have one shape. A block that does not expand has no first convolution.
    MobileNetV2, arXiv 1801.04381; with squeeze-excite, MobileNetV3, arXiv 1905.02244.

    Attributes:
        kernel_size, strides: of the depthwise convolution.
        expanded: channels that it sees.
        squeezed: channels within squeeze-excite; 0: without.
        features: channels of the output.
        act: after the expansion and the depthwise convolution.
        squeeze_act, gate: those of squeeze-excite.
        dtype: of the computation; parameters and batch statistics are float32.
    """

    kernel_size: int
    expanded: int
    squeezed: int
    features: int
    strides: int
    act: Callable[[Array], Array]
    squeeze_act: Callable[[Array], Array]
    gate: Callable[[Array], Array]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, H, W, C] to [batch, ⌈H / strides⌉, ⌈W / strides⌉, features]."""
        y = x
        expands = self.expanded != x.shape[-1]
        if expands:
            y = convolution(self.expanded, 1, dtype=self.dtype, name="conv_pw")(y)
            y = self.act(batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = DepthwiseConv(
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=same_padding(self.kernel_size),
            dtype=self.dtype,
            name="conv_dw",
        )(y)
        y = self.act(batch_norm(train, dtype=self.dtype, name="bn2" if expands else "bn1")(y))
        if self.squeezed:
            y = SqueezeExcite(self.squeezed, self.squeeze_act, self.gate, self.dtype, name="se")(y)
        project = "conv_pwl" if expands else "conv_pw"
        y = convolution(self.features, 1, dtype=self.dtype, name=project)(y)
        norm = batch_norm(train, dtype=self.dtype, name="bn3" if expands else "bn2")
        change: Array = norm(y)
        return x + change if self.strides == 1 and self.features == x.shape[-1] else change


def same_padding(kernel_size: int) -> Padding:
    """As much on each side, where "SAME" puts more at the end if strides meet an even size."""
    return ((kernel_size // 2, kernel_size // 2),) * 2


def convolution(
    features: int,
    kernel_size: int,
    strides: int = 1,
    *,
    use_bias: bool = False,
    dtype: DTypeLike,
    name: str,
) -> nn.Conv:
    """A square convolution that is padded alike on each side."""
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides,
        padding=same_padding(kernel_size),
        use_bias=use_bias,
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, *, dtype: DTypeLike, name: str) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants; its momentum 0.1 is the weight of the new value.

    PyTorch keeps n/(n − 1) of the variance of a batch of n = batch · H · W values, Flax the
    variance itself: the running variances of the same training differ by about that factor.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )
