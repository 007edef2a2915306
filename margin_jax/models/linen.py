"""A network of Flax Linen as pure functions."""

import functools
import re
from typing import Any

import jax
from flax import linen as nn
from jax import Array


def settled(module: nn.Module) -> nn.Module:
    """The module, if programs can be compiled for it.

    Raises:
        TypeError: for an attribute that cannot be hashed, in other words than JAX's, and before
            the first compilation.
    """
    try:
        hash(module)
    except TypeError as error:
        raise TypeError(
            f"attributes of {type(module).__name__} must be hashable, so tuples and no lists or "
            f"dicts: {error}"
        ) from error
    return module


@functools.partial(jax.jit, static_argnums=0)
def draw(module: nn.Module, key: Array, examples: Array) -> tuple[Any, Any]:
    """``(params, batch_stats)``; compiled once for a module, however many runs begin with it."""
    variables = module.init(key, examples, train=False)
    return variables["params"], variables.get("batch_stats", {})


def embed(
    module: nn.Module,
    params: Any,
    batch_stats: Any,
    examples: Array,
    *,
    train: bool,
    key: Array | None,
) -> tuple[Any, Any]:
    """``(embeddings, batch_stats)``; `key` is for dropout, when training."""
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return module.apply(variables, examples, train=False), batch_stats
    rngs = None if key is None else {"dropout": key}
    embeddings, updated = module.apply(
        variables, examples, train=True, mutable=["batch_stats"], rngs=rngs
    )
    return embeddings, updated.get("batch_stats", {})


def attributes(module: nn.Module) -> str:
    """What a module is made of, without addresses, which are others in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(module))
