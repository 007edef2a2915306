"""EfficientNet-Lite0."""

import jax
from jax.typing import DTypeLike

from margin_jax.models.efficientnet import EfficientNetB0, Variant, published_head
from margin_jax.models.heads import Siamese
from margin_jax.models.inverted_residual import TENSORFLOW


class EfficientNetLite0(EfficientNetB0):
    """EfficientNet-B0 for phones, without its classifier: 1,280 features, 3,371,008 parameters.

    B0's convolutions without squeeze-excite, which accelerators of phones may lack, and with ReLU6,
    which bears 8-bit numbers better than swish. From github.com/tensorflow/tpu, models/official/
    efficientnet/lite; as timm's ``tf_efficientnet_lite0``, whose weights fit. Like that one by
    default, it trains without stochastic depth.

    Attributes:
        dtype: of the computation; parameters and batch statistics are float32.
        small_stem: the first convolution keeps the size, for images of 28 to 64 pixels. The
            variables are the same.
    """

    variant = Variant(jax.nn.relu6, False, TENSORFLOW)


def build(embedding_size: int, *, dtype: DTypeLike, small_stem: bool) -> Siamese:
    """The trunk with the published head of EfficientNet-B0."""
    trunk = EfficientNetLite0(dtype=dtype, small_stem=small_stem)
    return Siamese(trunk, published_head(embedding_size, dtype))
