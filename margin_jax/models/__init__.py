"""Encoders: images to L2-normalised embeddings. The only rooms that import flax.linen."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.models.small_cnn import SmallCNN

ENCODERS: dict[str, type[nn.Module]] = {"small_cnn": SmallCNN}


@dataclass(frozen=True)
class Encoder:
    """A Linen module with the normalisation of its images, as pure functions.

    Any module will do that is called as ``module(images, train=...)`` with float images
    [batch, height, width, channels] of mean 0 and spread 1, and returns embeddings [batch, dim]. It
    may own "batch_stats" and use a "dropout" key::

        class MyNet(nn.Module):
            @nn.compact
            def __call__(self, images, *, train):
                x = nn.Dense(64)(images.reshape(len(images), -1))
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        mj.fit(mj.TrainConfig(encoder="own"), encoder=mj.Encoder(MyNet()))

    The mean and the spread of the training images are kept with the batch statistics, so that they
    are saved with the weights and another data set needs no other compilation.

    Attributes:
        module: the Linen module.
    """

    module: nn.Module

    def init(self, key: Array, image_shape: Sequence[int]) -> tuple[Any, Any]:
        """``(params, batch_stats)`` for uint8 images of shape [height, width, channels].

        The normalisation is one that changes nothing; see :meth:`with_normalisation`.
        """
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = jax.jit(functools.partial(self.module.init, train=False))(key, images)
        channels = jnp.zeros(image_shape[-1:], jnp.float32)
        batch_stats = {
            "module": variables.get("batch_stats", {}),
            "image_mean": channels,
            "image_std": channels + 1.0,
        }
        return variables["params"], batch_stats

    def with_normalisation(self, batch_stats: Any, mean: ArrayLike, std: ArrayLike) -> Any:
        """`batch_stats` with a mean and a spread of images, float[channels] for values 0 to 1."""
        return {
            **batch_stats,
            "image_mean": jnp.asarray(mean, jnp.float32),
            "image_std": jnp.asarray(std, jnp.float32),
        }

    def apply(
        self, params: Any, batch_stats: Any, images: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Any]:
        """``(embeddings, batch_stats)``, as :func:`~margin_jax.make_train_step` wants it.

        Args:
            params, batch_stats: from :meth:`init`.
            images: uint8[batch, height, width, channels].
            train: batch statistics of this batch, updated, instead of the running ones.
            key: for dropout, when training.
        """
        scaled = images.astype(jnp.float32) / 255.0
        x = (scaled - batch_stats["image_mean"]) / batch_stats["image_std"]
        variables = {"params": params, "batch_stats": batch_stats["module"]}
        if not train:
            embeddings = self.module.apply(variables, x, train=False)
            return embeddings, batch_stats  # type: ignore[return-value]
        rngs = None if key is None else {"dropout": key}
        embeddings, updated = self.module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return embeddings, {**batch_stats, "module": updated.get("batch_stats", {})}


@functools.cache
def make_encoder(name: str, embedding_size: int) -> Encoder:
    """The encoder of that name; the same object each time, so that its compilations are shared.

    Raises:
        ValueError: for an unknown name.
    """
    return Encoder(ENCODERS[check_choice("encoder", name, ENCODERS)](embedding_size=embedding_size))
