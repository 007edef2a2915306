"""A network of Flax NNX as pure functions. Loaded when there is one, as NNX takes its time."""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

# What a network keeps besides what is trained, but for what it draws or tells on the way.
_KEPT = nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))


def settled(module: Any) -> Any:
    """A module that nobody else changes, or the function of ``nnx.Rngs`` that draws one.

    Raises:
        TypeError: for something else.
    """
    if isinstance(module, nnx.Module):
        return nnx.clone(module)
    if callable(module) and (not inspect.isclass(module) or issubclass(module, nnx.Module)):
        return module
    raise TypeError(
        "an encoder takes a module of Linen or NNX, or a function of nnx.Rngs that makes one of "
        f"NNX; got {module!r}"
    )


def draw(module: Any, key: Array, examples: Array) -> tuple[Any, Any]:
    """``(params, batch_stats)`` as nested dicts: those the module has, or drawn with `key`."""
    del examples  # a module of NNX knows its shapes
    made = module if isinstance(module, nnx.Module) else module(nnx.Rngs(key))
    return _values(made, nnx.Param), _values(made, _KEPT)


def embed(
    module: Any, params: Any, batch_stats: Any, examples: Array, *, train: bool, key: Array | None
) -> tuple[Array, Any]:
    """``(embeddings, batch_stats)``; what the module draws is a function of `key`."""
    live = _in_mode(module, train)
    seeded = _seeded(_values(live, nnx.RngState), jax.random.key(0) if key is None else key)
    live = nnx.merge(nnx.graphdef(live), params, seeded, batch_stats)
    named = "train" in inspect.signature(type(live).__call__).parameters
    embeddings = live(examples, train=train) if named else live(examples)
    return embeddings, _values(live, _KEPT)


def attributes(module: Any) -> str:
    """What a module is made of, in one line, without values of weights and keys."""
    text = repr(nnx.eval_shape(lambda: _in_mode(module, train=False)))
    # Without colours, counts, and addresses, of which the last are others in each process.
    return " ".join(re.sub(r"\x1b\[[\d;]*m| at 0x[0-9a-f]+|#.*", "", text).split())


def _values(module: nnx.Module, kind: Any) -> Any:
    """The variables of a kind, as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(module, kind))


def _in_mode(module: Any, train: bool) -> Any:
    """A copy that trains or evaluates, of a drawn module or with shapes for arrays."""
    if isinstance(module, nnx.Module):
        live = nnx.clone(module)
    else:
        live = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    if train:
        live.train()
    else:
        live.eval()
    nnx.pop(live, nnx.Intermediate)
    return live


def _seeded(rngs: Any, key: Array) -> Any:
    """The state of random streams that begin at `key`, each at another draw of it."""
    leaves, tree = jax.tree.flatten(rngs)
    key = jax.random.fold_in(key, 0)  # of which a training step folds in 1 to 3 for other draws
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, i)
            leaves[i] = jax.random.split(own, leaf.shape) if leaf.shape else own
        else:
            leaves[i] = jnp.zeros(leaf.shape, leaf.dtype)
    return jax.tree.unflatten(tree, leaves)
