"""A run as a model folder, its encoder perhaps as a program that needs no margin-jax."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import chex
import jax
import jax.export
import jax.numpy as jnp
from jax import Array

from margin_jax.files import local_path, whole_folder, write_text
from margin_jax.models.encoder import Encoder
from margin_jax.runs.card import card
from margin_jax.runs.onnx_graph import onnx_model
from margin_jax.runs.portable import (
    CARD,
    ONNX,
    STABLEHLO,
    Model,
    check_replaceable,
    read_model,
    write_model,
)
from margin_jax.runs.weights import (
    WEIGHTS,
    arrays_by_name,
    as_trees,
    read_weights,
    weights_like,
    write_weights,
)

Embed: TypeAlias = Callable[[dict[str, Array], Array], Array]
PLATFORMS = ("cpu", "cuda", "tpu")


def save(
    out: str | Path,
    model: Model,
    encoder: Encoder,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    *,
    program: bool,
    onnx: bool,
    overwrite: bool,
) -> Path:
    """Writes a model folder, whole or not at all.

    Args:
        out: the folder.
        model, encoder, params, batch_stats: of a run.
        program: also the encoder as StableHLO.
        onnx: also as ONNX.
        overwrite: replace the model that is there.

    Raises:
        ValueError: for a folder that holds something, or a network that cannot be exported.
        OSError: if it cannot be written.
    """
    target = local_path("out", out)
    check_replaceable(target, overwrite)
    made = {}
    if program:
        made[STABLEHLO] = stablehlo(encoder, params, batch_stats, model)
    if onnx:
        made[ONNX] = onnx_of(encoder, params, batch_stats, model)
    with whole_folder(target) as folder:
        write_weights(folder, params, batch_stats)
        for name, content in made.items():
            (folder / name).write_bytes(content)
        write_model(folder, model)
        write_text(folder / CARD, card(model, made))
        _check_readable(folder, encoder)
        check_replaceable(target, overwrite)  # something may have come there meanwhile
    return target


def _check_readable(folder: Path, encoder: Encoder) -> None:
    """Reads a model again, so that none is left that cannot be loaded.

    Raises:
        ValueError: if it cannot.
    """
    try:
        model = read_model(folder)
        like = weights_like(encoder, model.data["example_shape"])
        read_weights(folder, model.digests[WEIGHTS], like)
    except ValueError as error:
        raise ValueError(f"the model could not be loaded again: {error}") from error


def stablehlo(
    encoder: Encoder, params: chex.ArrayTree, batch_stats: chex.ArrayTree, model: Model
) -> bytes:
    """What ``jax.export.deserialize`` takes: ``call(weights, examples)`` gives the embeddings.

    The weights are an argument, arrays by the names that they have in ``weights.safetensors``. So
    they lie in one place, a program is small, and one that a later JAX refuses can be made again.

    Args:
        encoder, params, batch_stats: of a run.
        model: of the same run: its examples are uint8[n, height, width, channels] or
            float32[n, ...], n being any number.

    Raises:
        ValueError: for a network that cannot be exported so.
    """
    like = jax.eval_shape(lambda: (params, batch_stats))

    def embed(weights: dict[str, Array], examples: Array) -> Array:
        found = encoder.apply(*as_trees(weights, like), examples, train=False, key=None)[0]
        return found.astype(jnp.float32)

    shape = (*jax.export.symbolic_shape("n"), *model.data["example_shape"])
    given: Any = arrays_by_name(*like), jax.ShapeDtypeStruct(shape, _dtype(model))
    with _without_paths():
        try:
            exported = _exported(embed, given)
        except Exception:  # a network of one's own may ask how many there are, with len(examples)
            try:
                exported = _exported(_one_by_one(embed), given)
            except Exception as error:
                said = (str(error).splitlines() or [repr(error)])[0]
                raise ValueError(f"the network cannot be exported: {said}") from error
        return bytes(exported.serialize())


def onnx_of(
    encoder: Encoder, params: chex.ArrayTree, batch_stats: chex.ArrayTree, model: Model
) -> bytes:
    """The encoder as a model of ONNX, with its weights, computed in float32.

    Args:
        encoder, params, batch_stats, model: as of :func:`stablehlo`.

    Raises:
        ValueError: if the package onnx is missing, or for a network that cannot be written so.
    """

    def embed(examples: Array) -> Array:
        found = encoder.apply(params, batch_stats, examples, train=False, key=None)[0]
        return found.astype(jnp.float32)

    name = f"margin-jax, trained on {model.data['dataset']}"
    return onnx_model(embed, model.data["example_shape"], _dtype(model), name)


def _dtype(model: Model) -> Any:
    return jnp.uint8 if model.data["example_dtype"] == "uint8" else jnp.float32


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """JAX would write into a program where on this machine the code of each operation lies."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _exported(embed: Embed, given: Any) -> jax.export.Exported:
    return jax.export.export(jax.jit(embed), platforms=PLATFORMS)(*given)


def _one_by_one(embed: Embed) -> Embed:
    """The same as a map over examples, each of them a batch of one."""
    return jax.vmap(lambda weights, example: embed(weights, example[None])[0], in_axes=(None, 0))
