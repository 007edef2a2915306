"""A network of Flax Linen as pure functions."""

import functools
import os
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


def draw(module: nn.Module, key: Array, examples: Array) -> tuple[Any, Any]:
    """``(params, batch_stats)``; compiled once for a module, however many runs begin with it."""
    traced = any(isinstance(array, jax.core.Tracer) for array in (key, examples))
    program = _part if traced else _program()
    variables: tuple[Any, Any] = program(module, key, examples)
    return variables


def _draw(module: nn.Module, key: Array, examples: Array) -> tuple[Any, Any]:
    variables = module.init(key, examples, train=False)
    return variables.get("params", {}), variables.get("batch_stats", {})


_part = jax.jit(_draw, static_argnums=0)


@functools.cache
def _program() -> Any:
    """A program of its own: on CPU of little optimisation, as it runs once.

    It has many kernels: those of EfficientNet-Lite0 take 8 seconds to compile then, and not 25. The
    last digit of a number may be another. What a user asks of the compiler goes first.
    """
    asked = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    if asked or jax.default_backend() != "cpu":
        return _part
    little = {"xla_backend_optimization_level": 1}
    return jax.jit(_draw, static_argnums=0, compiler_options=little)


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
