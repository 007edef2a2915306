"""The block of MobileNetV3 and EfficientNet: expand, look around, weigh the channels, project.

Padding and epsilon are those of the framework that the published weights come from, the momentum is
PyTorch's, and submodules are named as in timm, so that the map of those weights (``pretrained.py``)
is a rule and no table.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.convolution import conv_general_dilated
from margin_jax.models.depthwise import DepthwiseConv, Padding


class Framework(NamedTuple):
    """What a network must do as the framework did that trained its weights.

    Attributes:
        even_padding: as much on each side; else "SAME", which puts more at the end if strides meet
            an even size.
        epsilon: of BatchNorm.
    """

    even_padding: bool
    epsilon: float


PYTORCH = Framework(even_padding=True, epsilon=1e-5)
TENSORFLOW = Framework(even_padding=False, epsilon=1e-3)


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
        framework: the one that its weights come from.
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
    framework: Framework = PYTORCH
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, H, W, C] to [batch, ⌈H / strides⌉, ⌈W / strides⌉, features]."""
        norm = functools.partial(batch_norm, train, self.framework, dtype=self.dtype)
        y = x
        expands = self.expanded != x.shape[-1]
        if expands:
            y = convolution(self.expanded, 1, dtype=self.dtype, name="conv_pw")(y)
            y = self.act(norm(name="bn1")(y))
        y = DepthwiseConv(
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=same_padding(self.kernel_size, self.framework),
            dtype=self.dtype,
            name="conv_dw",
        )(y)
        y = self.act(norm(name="bn2" if expands else "bn1")(y))
        if self.squeezed:
            y = SqueezeExcite(self.squeezed, self.squeeze_act, self.gate, self.dtype, name="se")(y)
        project = "conv_pwl" if expands else "conv_pw"
        y = convolution(self.features, 1, dtype=self.dtype, name=project)(y)
        change: Array = norm(name="bn3" if expands else "bn2")(y)
        return x + change if self.strides == 1 and self.features == x.shape[-1] else change


def same_padding(kernel_size: int, framework: Framework) -> Padding | Literal["SAME"]:
    """What keeps the size, divided by the strides, of an image."""
    return ((kernel_size // 2, kernel_size // 2),) * 2 if framework.even_padding else "SAME"


def convolution(
    features: int,
    kernel_size: int,
    strides: int = 1,
    framework: Framework = PYTORCH,
    *,
    use_bias: bool = False,
    dtype: DTypeLike,
    name: str,
) -> nn.Conv:
    """A square convolution that keeps the size, divided by the strides."""
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides,
        padding=same_padding(kernel_size, framework),
        use_bias=use_bias,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def batch_norm(
    train: bool, framework: Framework = PYTORCH, *, dtype: DTypeLike, name: str
) -> nn.BatchNorm:
    """BatchNorm with the framework's epsilon and PyTorch's momentum 0.1, the new value's weight.

    PyTorch keeps n/(n − 1) of the variance of a batch of n = batch · H · W values, Flax the
    variance itself: the running variances of the same training differ by about that factor.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=framework.epsilon,
        dtype=dtype,
        name=name,
    )
