"""The gradient of a batch's loss with the activations of a part of its rows only.

A network that embeds every row for itself needs the others only in the loss, which takes embeddings
and no activations. So (Gao et al. 2021, "GradCache", `arXiv 2101.06983
<https://arxiv.org/abs/2101.06983>`_):

1. embed the batch part by part, and keep nothing but the embeddings;
2. take the loss of the whole batch, and its gradient with respect to the embeddings;
3. embed every part once more, now to pull its rows of that gradient back to the parameters, and add
   up.

The result is the gradient of the whole batch's loss, not a mean of the gradients of small batches'
losses, which would have other triplets. It costs one forward pass more.

Of a batch of B rows in k parts, part i has the rows i, i + k, i + 2k, .... Every device of a mesh
holds as many rows of each part, so no image changes its device, and the parts are the same on any
number of devices; and images of an identity, which lie side by side, fall into different parts, so
that the statistics of a part are not those of a few identities.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from margin_jax.devices.meshes import AXIS

# (params, batch_stats, images, key) -> (embeddings, batch_stats), in training
Embed = Callable[[Any, Any, Array, Array], tuple[Array, Any]]
# (its parameters, embeddings) -> (loss, whatever else it tells)
LossFn = Callable[[Any, Array], tuple[Array, Any]]


class Differentiated(NamedTuple):
    """A loss with its gradient, and what was found on the way.

    Attributes:
        loss: float[].
        told: what else the loss tells.
        embeddings: float[batch, dim], in the order of the batch.
        batch_stats: the network's, after the batch.
        gradient: of the loss, with respect to the network's parameters and to the loss's own.
    """

    loss: Array
    told: Any
    embeddings: Array
    batch_stats: Any
    gradient: tuple[Any, Any]


def differentiate(
    embed: Embed,
    loss_fn: LossFn,
    params: Any,
    loss_params: Any,
    batch_stats: Any,
    images: Array,
    key: Array,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Differentiated:
    """The loss of a batch and its gradient, all at once or by parts.

    Args:
        embed: the network, in training. With a microbatch it gets one part at a time, in order,
            each with its own key and the batch statistics after the part before, and twice with the
            same arguments. No gradient flows through batch statistics from part to part.
        loss_fn: the loss of the whole batch's embeddings.
        params, batch_stats: of the network.
        loss_params: of the loss.
        images: [batch, ...].
        key: of the network. By parts, part i has the i-th of ``split(fold_in(key, 3), parts)``.
        microbatch: rows of a part; it divides the batch. Default, and if it is the batch: all.
        mesh: over whose axis "data" the rows are shared; its size divides `microbatch`.

    Raises:
        ValueError: a microbatch that does not divide the batch.
    """
    if microbatch is None or microbatch == len(images):
        return _at_once(embed, loss_fn, params, loss_params, batch_stats, images, key)
    if len(images) % microbatch:
        raise ValueError(
            f"microbatch must divide the batch, here of {len(images)} rows; got {microbatch}"
        )
    parts = len(images) // microbatch

    def split(rows: Array) -> Array:
        """[parts, microbatch, ...]; nothing leaves its device."""
        found = jnp.swapaxes(rows.reshape(microbatch, parts, *rows.shape[1:]), 0, 1)
        if mesh is not None:
            found = jax.lax.with_sharding_constraint(found, NamedSharding(mesh, P(None, AXIS)))
        return found

    given = split(images), jax.random.split(jax.random.fold_in(key, 3), parts)

    def embed_part(batch_stats: Any, part: tuple[Array, Array]) -> tuple[Any, Array]:
        embeddings, batch_stats = embed(params, batch_stats, *part)
        return batch_stats, embeddings

    after, by_part = jax.lax.scan(embed_part, batch_stats, given)
    embeddings = jnp.swapaxes(by_part, 0, 1).reshape(len(images), *by_part.shape[2:])
    (loss, told), (of_loss, to_embeddings) = jax.value_and_grad(
        loss_fn, argnums=(0, 1), has_aux=True
    )(loss_params, embeddings)

    def pull_part(
        carry: tuple[Any, Any], part: tuple[tuple[Array, Array], Array]
    ) -> tuple[tuple[Any, Any], None]:
        batch_stats, gradient = carry
        given, to_part = part
        # The first pass again, to the letter: also a network that normalises by what it has seen
        # before gives the embeddings that the loss was of.
        _, pull, batch_stats = jax.vjp(
            lambda p: embed(p, batch_stats, *given), params, has_aux=True
        )
        return (batch_stats, jax.tree.map(jnp.add, gradient, *pull(to_part))), None

    start = batch_stats, jax.tree.map(jnp.zeros_like, params)
    (_, gradient), _ = jax.lax.scan(pull_part, start, (given, split(to_embeddings)))
    return Differentiated(loss, told, embeddings, after, (gradient, of_loss))


def _at_once(
    embed: Embed,
    loss_fn: LossFn,
    params: Any,
    loss_params: Any,
    batch_stats: Any,
    images: Array,
    key: Array,
) -> Differentiated:
    def of_params(params: Any, loss_params: Any) -> tuple[Array, tuple[Any, Array, Any]]:
        embeddings, after = embed(params, batch_stats, images, key)
        loss, told = loss_fn(loss_params, embeddings)
        return loss, (told, embeddings, after)

    (loss, (told, embeddings, after)), gradient = jax.value_and_grad(
        of_params, argnums=(0, 1), has_aux=True
    )(params, loss_params)
    return Differentiated(loss, told, embeddings, after, gradient)
