"""The arrays of an encoder in a file of safetensors, by name."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np

from margin_jax.files import read_at_most, sha256, short
from margin_jax.models.encoder import Encoder

WEIGHTS = "weights.safetensors"
_MOST_HEADER = 2**24  # before the numbers of a safetensors file


def arrays_by_name(params: chex.ArrayTree, batch_stats: chex.ArrayTree) -> dict[str, Any]:
    """All arrays of an encoder, as ``params/trunk/Conv_0/kernel`` and ``batch_stats/mean``.

    Raises:
        ValueError: if two arrays have one name.
    """
    tree = {"params": params, "batch_stats": batch_stats}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    if len(found) < len(leaves):
        raise ValueError("two arrays of the network have one name: a name must not have / in it")
    return found


def as_trees(
    arrays: Mapping[str, Any], like: tuple[chex.ArrayTree, chex.ArrayTree]
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """The inverse of :func:`arrays_by_name`, in the structure of `like`."""
    tree = {"params": like[0], "batch_stats": like[1]}

    def place(path: Any, _: Any) -> Any:
        return arrays[jax.tree_util.keystr(path, simple=True, separator="/")]

    filled = jax.tree_util.tree_map_with_path(place, tree)
    return filled["params"], filled["batch_stats"]


def write_weights(folder: Path, params: chex.ArrayTree, batch_stats: chex.ArrayTree) -> None:
    """Writes ``weights.safetensors``.

    Raises:
        ValueError: for an array of a type that the format, as NumPy has it, does not know, and for
            parameters that are not finite.
    """
    from safetensors.numpy import save

    arrays = {n: np.asarray(v, order="C") for n, v in arrays_by_name(params, batch_stats).items()}
    for name, value in arrays.items():
        if value.dtype.kind not in "fiub":  # bfloat16 is V
            raise ValueError(f"weights must be numbers that NumPy knows; {name} is {value.dtype}")
        _check_finite(name, value)
    (folder / WEIGHTS).write_bytes(save(arrays))


def read_weights(
    folder: Path, digest: str, like: tuple[chex.ArrayTree, chex.ArrayTree]
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """``(params, batch_stats)`` of a model folder, in the structure, shapes and types of `like`.

    Args:
        folder: the model folder.
        digest: the SHA-256 of its weights, as its description says.
        like: of the encoder that is described.

    Raises:
        ValueError: for a file that is not the one described, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / WEIGHTS
    wanted = arrays_by_name(*like)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
    content = read_at_most(path, size + _MOST_HEADER)
    if sha256(content) != digest:
        raise ValueError(f"{WEIGHTS} is not the file that model.json describes")
    try:
        found = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{WEIGHTS} is no safetensors file: {error}") from error
    for name in sorted({*found, *wanted}):
        what = "has no place in the encoder" if name not in wanted else "is missing"
        if name not in found or name not in wanted:
            raise ValueError(f"{WEIGHTS}: {short(name)} {what}")
        value, leaf = found[name], wanted[name]
        if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{WEIGHTS}: {name} must be {leaf.dtype}{list(leaf.shape)}; got "
                f"{value.dtype}{list(value.shape)}"
            )
        _check_finite(name, value)
    return as_trees(found, like)


def _check_finite(name: str, value: np.ndarray) -> None:
    """Of parameters alone: what a network keeps besides may be a mask of infinities."""
    if name.startswith("params/") and not np.isfinite(value).all():
        raise ValueError(f"{WEIGHTS}: {name} is not finite")


def weights_like(encoder: Encoder, example_shape: Sequence[int]) -> Any:
    """Structure, shapes and types of ``(params, batch_stats)``.

    Raises:
        ValueError: for an encoder that takes no such examples.
    """
    shape = tuple(example_shape)
    try:
        return jax.eval_shape(lambda: encoder.init(jax.random.key(0), shape))
    except Exception as error:  # whatever a network says of a shape that it does not take
        raise ValueError(f"the encoder takes no examples of {shape}") from error
