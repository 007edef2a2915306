"""Encoders by name: pictures to L2-normalised embeddings. The only rooms that import Flax."""

import functools
import importlib
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from margin_jax.choices import check_choice
from margin_jax.models import DTYPES, ENCODERS
from margin_jax.models.encoder import Encoder


@functools.cache
def make_encoder(
    name: str,
    embedding_size: int,
    *,
    dtype: str = "float32",
    colour: bool = False,
    **parameters: Any,
) -> Encoder:
    """The encoder of that name; the same object each time, so that its compilations are shared.

    Args:
        name: one of ENCODERS.
        embedding_size: length of an embedding.
        dtype: of the computation, "float32" or "bfloat16"; parameters, batch statistics and
            embeddings are float32 whatever it is.
        colour: the network has three channels even if images are grey, as pretrained ones do.
        parameters: `width` of small_cnn, whose channels are this many times 32, 64, 128 and 128;
            `small_stem` of others: the first layer keeps the size of the image, for images of 28
            to 64 pixels; `hidden` and `dropout` of head, :func:`margin_jax.models.head.build`.

    Raises:
        ValueError: for an unknown name, or a parameter that it does not have.
    """
    return Encoder(make_module(name, embedding_size, dtype=dtype, **parameters), colour)


def make_module(
    name: str, embedding_size: int, *, dtype: str = "float32", **parameters: Any
) -> nn.Module:
    """The Linen module of the encoder of that name; arguments as of :func:`make_encoder`."""
    named = ENCODERS[check_choice("encoder", name, ENCODERS)]
    check_choice("dtype", dtype, DTYPES)
    for parameter in parameters:
        check_choice(f"a parameter of {name}", parameter, named.parameters)
    build = importlib.import_module(f"margin_jax.models.{named.module}").build
    module: nn.Module = build(
        embedding_size, dtype=jnp.dtype(dtype), **{**named.parameters, **parameters}
    )
    return module
