"""A network of Flax, of either kind, with the normalisation of its examples."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike

import margin_jax.models.linen as linen


@dataclass(frozen=True)
class Encoder:
    """A module of Linen or NNX with the normalisation of its examples, as pure functions.

    The module takes float32 examples [batch, ..., features] with mean 0 and standard deviation 1
    (images are [batch, height, width, channels]) and returns embeddings [batch, dim].

    **Linen**: it is called as ``module(examples, train=...)``. It may have "batch_stats" and use a
    "dropout" key. Its attributes must be hashable (tuples, not lists), since programs are compiled
    for it::

        class MyNet(nn.Module):
            @nn.compact
            def __call__(self, examples, *, train):
                x = nn.Dense(64)(examples.reshape(examples.shape[0], -1))
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        mj.fit(mj.TrainConfig(encoder="own"), encoder=mj.Encoder(MyNet()))

    **NNX**: it is called as ``module(examples)``, in the mode of ``module.train()`` or
    ``module.eval()``, and gets ``train=`` if its ``__call__`` has a parameter of that name::

        class MyNet(nnx.Module):
            def __init__(self, rngs):
                self.dense = nnx.Linear(256, 64, rngs=rngs)

            def __call__(self, examples):
                x = self.dense(examples.reshape(examples.shape[0], -1))
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        mj.fit(mj.TrainConfig(encoder="own"), encoder=mj.Encoder(MyNet))

    Give the class, or any function of ``nnx.Rngs``: each run then draws its weights from its seed,
    as for Linen. You can also give a module that already has weights,
    ``mj.Encoder(MyNet(nnx.Rngs(0)))``: every run then starts from them, whatever its seed. The
    module is copied and does not change; the trained weights are in the run's ``params``.
    ``nnx.Param`` variables are trained; batch statistics and all other variables are saved with the
    run; random streams restart at each step from a key that depends on the seed and the step.

    A run or comparison that is resumed recognises its network by its attributes and number of
    parameters. If only the code of the network has changed, choose another ``out``.

    The mean and standard deviation of the training examples are kept with the batch statistics:
    they are saved with the weights, and another dataset does not cause a recompilation.

    Attributes:
        module: a Linen module, an NNX module, or a function of ``nnx.Rngs`` that makes an NNX
            module.
        colour: whether the network takes three channels even for grey images.

    Raises:
        TypeError: for anything else, or a Linen module with an attribute that cannot be hashed.
    """

    module: Any
    colour: bool = False

    def __post_init__(self) -> None:
        """Refuses what no program can be compiled for."""
        object.__setattr__(self, "module", self._form.settled(self.module))

    @property
    def _form(self) -> Any:
        """The functions of its kind: `models.linen`, or those of the same names of `models.nnx`."""
        if isinstance(self.module, nn.Module):
            return linen
        import margin_jax.models.nnx as nnx  # slow to import

        return nnx

    def description(self, example_shape: Sequence[int]) -> str:
        """A text that identifies the network: its attributes and number of parameters."""
        drawn = jax.eval_shape(lambda key: self.init(key, example_shape), jax.random.key(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(drawn[0]))
        attributes = self._form.attributes(self.module)
        return f"Encoder(module={attributes}, colour={self.colour}), {count:,} parameters"

    def init(
        self, key: chex.PRNGKey, example_shape: Sequence[int]
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        """``(params, batch_stats)`` for examples of a shape, such as [height, width, channels].

        Examples are not normalised yet; see :meth:`with_normalisation`.
        """
        features = jnp.zeros(3 if self.colour else example_shape[-1], jnp.float32)
        examples = jnp.zeros((1, *example_shape[:-1], len(features)), jnp.float32)
        params, module = self._form.draw(self.module, key, examples)
        return params, {"module": module, "mean": features, "std": features + 1.0}

    def with_normalisation(
        self, batch_stats: chex.ArrayTree, mean: ArrayLike, std: ArrayLike
    ) -> chex.ArrayTree:
        """`batch_stats` with a mean and standard deviation of examples, float[features] each.

        For images they are per channel, for values from 0 to 1.
        """
        shape = batch_stats["mean"].shape  # three channels, perhaps, of images in grey
        return {
            **batch_stats,
            "mean": jnp.broadcast_to(jnp.asarray(mean, jnp.float32), shape),
            "std": jnp.broadcast_to(jnp.asarray(std, jnp.float32), shape),
        }

    def init_with_trunk(
        self,
        key: chex.PRNGKey,
        example_shape: Sequence[int],
        trunk: chex.ArrayTree,
        trunk_stats: chex.ArrayTree,
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        """As :meth:`init`, but the trunk, all before the head, has these weights.

        It is not drawn: to compile that can take half a minute.
        """
        params, batch_stats = _init_head(self, key, tuple(example_shape))
        if trunk_stats:  # a transformer has none
            batch_stats["module"]["trunk"] = trunk_stats
        return {**params, "trunk": trunk}, batch_stats

    def apply(
        self,
        params: chex.ArrayTree,
        batch_stats: chex.ArrayTree,
        examples: Array,
        *,
        train: bool,
        key: chex.PRNGKey | None,
    ) -> tuple[Array, chex.ArrayTree]:
        """``(embeddings, batch_stats)``, as :func:`~margin_jax.make_train_step` needs it.

        Args:
            params, batch_stats: from :meth:`init`.
            examples: uint8[batch, height, width, channels], or float32[batch, ..., features].
            train: whether to use (and update) the statistics of this batch instead of the running
                ones.
            key: for dropout, when training.
        """
        x = examples.astype(jnp.float32)
        if examples.dtype == jnp.uint8:  # pictures
            x = x / 255.0
        # If the network has three channels and the images one, it is repeated here.
        x = (x - batch_stats["mean"]) / batch_stats["std"]
        embeddings, module = self._form.embed(
            self.module, params, batch_stats["module"], x, train=train, key=key
        )
        return embeddings, {**batch_stats, "module": module} if train else batch_stats


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init_head(encoder: Encoder, key: chex.PRNGKey, example_shape: tuple[int, ...]) -> Any:
    """What :meth:`Encoder.init` draws but for the trunk, which the compiler then leaves out."""
    params, batch_stats = encoder.init(key, example_shape)
    params.pop("trunk")
    batch_stats["module"].pop("trunk", None)
    return params, batch_stats
