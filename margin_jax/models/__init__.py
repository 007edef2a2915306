"""Encoders: images to L2-normalised embeddings. The only rooms that import flax.linen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from margin_jax.choices import check_choice
from margin_jax.models.small_cnn import SmallCNN

ENCODERS: dict[str, type[nn.Module]] = {"small_cnn": SmallCNN}


class Encoder:
    """A Linen module with the normalisation of its images, as pure functions.

    The module is called as ``module(images, train=...)``; it may own "batch_stats" and use a
    "dropout" key.
    """

    def __init__(self, module: nn.Module, mean: np.ndarray, std: np.ndarray) -> None:
        """`mean` and `std`: float[channels], of the training images on a scale from 0 to 1."""
        self.module = module
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)

    def init(self, key: Array, image_shape: tuple[int, ...]) -> tuple[Any, Any]:
        """``(params, batch_stats)`` for images of shape [height, width, channels]."""
        images = jnp.zeros((1, *image_shape), jnp.uint8)
        variables = jax.jit(self._init)(key, images)
        return variables["params"], variables.get("batch_stats", {})

    def _init(self, key: Array, images: Array) -> Any:
        return self.module.init(key, self._normalise(images), train=False)

    def apply(
        self, params: Any, batch_stats: Any, images: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Any]:
        """``(embeddings, batch_stats)``, as :func:`~margin_jax.make_train_step` wants it."""
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            embeddings = self.module.apply(variables, self._normalise(images), train=False)
            return embeddings, batch_stats  # type: ignore[return-value]
        embeddings, updated = self.module.apply(
            variables,
            self._normalise(images),
            train=True,
            mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
        return embeddings, updated.get("batch_stats", {})

    def _normalise(self, images: Array) -> Array:
        return (images.astype(jnp.float32) / 255.0 - self.mean) / self.std


def make_module(name: str, embedding_size: int) -> nn.Module:
    """The encoder of that name.

    Raises:
        ValueError: for an unknown name.
    """
    return ENCODERS[check_choice("encoder", name, ENCODERS)](embedding_size=embedding_size)
