"""Encoders by name: pictures to L2-normalised embeddings. The only rooms that import Flax."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from margin_jax.choices import check_choice
from margin_jax.models.efficientnet import EfficientNetB0
from margin_jax.models.efficientnet_lite import EfficientNetLite0
from margin_jax.models.encoder import Encoder
from margin_jax.models.heads import HEADS, Siamese
from margin_jax.models.mlp import MLP
from margin_jax.models.mobilenet import MobileNetV3Small
from margin_jax.models.nn2 import NN2
from margin_jax.models.small_cnn import SmallCNN

# By name, what is before the head; small_cnn is one piece.
TRUNKS: dict[str, type[nn.Module]] = {
    "efficientnet_b0": EfficientNetB0,
    "efficientnet_lite0": EfficientNetLite0,
    "mobilenet_v3_small": MobileNetV3Small,
    "nn2": NN2,
    "mlp": MLP,
}
ENCODERS = ("small_cnn", *TRUNKS)
DTYPES = ("float32", "bfloat16")
_SMALL_STEMS = ("efficientnet_b0", "efficientnet_lite0", "mobilenet_v3_small", "nn2")


@functools.cache
def make_encoder(
    name: str,
    embedding_size: int,
    *,
    width: float = 1.0,
    dtype: str = "float32",
    small_stem: bool = False,
    colour: bool = False,
) -> Encoder:
    """The encoder of that name; the same object each time, so that its compilations are shared.

    Args:
        name: one of ENCODERS.
        embedding_size: length of an embedding.
        width: small_cnn: its channels are this many times 32, 64, 128 and 128.
        dtype: of the computation, "float32" or "bfloat16"; parameters, batch statistics and
            embeddings are float32 whatever it is.
        small_stem: the first layer keeps the size of the image, for images of 28 to 64 pixels.
        colour: the network has three channels even if images are grey, as pretrained ones do.

    Raises:
        ValueError: for an unknown name, or a stem that it does not have.
    """
    check_choice("encoder", name, ENCODERS)
    check_choice("dtype", dtype, DTYPES)
    if small_stem and name not in _SMALL_STEMS:
        raise ValueError(f"small_stem is for {', '.join(_SMALL_STEMS)}; got it with {name}")
    if name == "small_cnn":
        features = tuple(max(round(width * n), 1) for n in SmallCNN.features)
        return Encoder(SmallCNN(embedding_size, features, jnp.dtype(dtype)))
    stem = {"small_stem": True} if small_stem else {}
    trunk = TRUNKS[name](dtype=jnp.dtype(dtype), **stem)
    head = HEADS[name](embedding_size=embedding_size, dtype=jnp.dtype(dtype))
    return Encoder(Siamese(trunk, head), colour)
