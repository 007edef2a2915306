"""A network of Flax as pure functions."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike


@dataclass(frozen=True)
class Encoder:
    """A Linen module with the normalisation of its examples, as pure functions.

    Any module will do that is called as ``module(examples, train=...)`` with float32 examples
    [batch, ..., features] of mean 0 and spread 1, pictures being [batch, height, width, channels],
    and returns embeddings [batch, dim]. It may own "batch_stats" and use a "dropout" key; its
    attributes can be hashed (tuples, not lists), since programs are compiled for it::

        class MyNet(nn.Module):
            @nn.compact
            def __call__(self, examples, *, train):
                x = nn.Dense(64)(examples.reshape(len(examples), -1))
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        mj.fit(mj.TrainConfig(encoder="own"), encoder=mj.Encoder(MyNet()))

    An NNX module that is called so is one too: ``mj.Encoder(nnx.bridge.to_linen(MyNet, ...))``.

    A run or a comparison that goes on knows its network by attributes and the number of parameters;
    when only the code of a network has changed, give another ``out``.

    The mean and the spread of the training examples are kept with the batch statistics, so that
    they are saved with the weights and another data set needs no other compilation.

    Attributes:
        module: the Linen module.
        colour: it has three channels even if images are grey, as networks trained on colour do.

    Raises:
        TypeError: a module with an attribute that can not be hashed.
    """

    module: nn.Module
    colour: bool = False

    def __post_init__(self) -> None:
        """Checks what would else fail at the first compilation, in words of JAX."""
        try:
            hash(self.module)
        except TypeError as error:
            raise TypeError(
                f"attributes of {type(self.module).__name__} must be hashable, so tuples and no "
                f"lists or dicts: {error}"
            ) from error

    def description(self, example_shape: Sequence[int]) -> str:
        """What it can be told from others by: its attributes, and how many parameters it has."""
        drawn = jax.eval_shape(lambda key: self.init(key, example_shape), jax.random.key(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(drawn[0]))
        # An address is another one in each process.
        return f"{re.sub(r' at 0x[0-9a-f]+', '', repr(self))}, {count:,} parameters"

    def init(self, key: Array, example_shape: Sequence[int]) -> tuple[Any, Any]:
        """``(params, batch_stats)`` for examples of a shape, such as [height, width, channels].

        The normalisation is one that changes nothing; see :meth:`with_normalisation`.
        """
        features = jnp.zeros(3 if self.colour else example_shape[-1], jnp.float32)
        examples = jnp.zeros((1, *example_shape[:-1], len(features)), jnp.float32)
        variables = _init(self.module, key, examples)
        batch_stats = {
            "module": variables.get("batch_stats", {}),
            "mean": features,
            "std": features + 1.0,
        }
        return variables["params"], batch_stats

    def with_normalisation(self, batch_stats: Any, mean: ArrayLike, std: ArrayLike) -> Any:
        """`batch_stats` with a mean and a spread of examples, float[features] of the last axis.

        Those of pictures are of their channels, for values 0 to 1.
        """
        shape = batch_stats["mean"].shape  # three channels, perhaps, of images in grey
        return {
            **batch_stats,
            "mean": jnp.broadcast_to(jnp.asarray(mean, jnp.float32), shape),
            "std": jnp.broadcast_to(jnp.asarray(std, jnp.float32), shape),
        }

    def with_trunk(
        self, params: Any, batch_stats: Any, trunk: Any, trunk_stats: Any
    ) -> tuple[Any, Any]:
        """``(params, batch_stats)`` with others for what is before the head."""
        module = {**batch_stats["module"], "trunk": trunk_stats}
        return {**params, "trunk": trunk}, {**batch_stats, "module": module}

    def apply(
        self, params: Any, batch_stats: Any, examples: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Any]:
        """``(embeddings, batch_stats)``, as :func:`~margin_jax.make_train_step` wants it.

        Args:
            params, batch_stats: from :meth:`init`.
            examples: uint8[batch, height, width, channels], or float32[batch, ..., features].
            train: batch statistics of this batch, updated, instead of the running ones.
            key: for dropout, when training.
        """
        x = examples.astype(jnp.float32)
        if examples.dtype == jnp.uint8:  # pictures
            x = x / 255.0
        # If the network has three channels and the images one, it is repeated here.
        x = (x - batch_stats["mean"]) / batch_stats["std"]
        variables = {"params": params, "batch_stats": batch_stats["module"]}
        if not train:
            embeddings = self.module.apply(variables, x, train=False)
            return embeddings, batch_stats  # type: ignore[return-value]
        rngs = None if key is None else {"dropout": key}
        embeddings, updated = self.module.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return embeddings, {**batch_stats, "module": updated.get("batch_stats", {})}


@functools.partial(jax.jit, static_argnums=0)
def _init(module: nn.Module, key: Array, examples: Array) -> Any:
    """Compiled once for a module, however many runs begin with it."""
    return module.init(key, examples, train=False)
