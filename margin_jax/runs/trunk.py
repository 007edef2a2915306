"""What computes features: an encoder by name without its head, an `Encoder`, or any function."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.data.dataset import Dataset
from margin_jax.data.moments import moments
from margin_jax.devices.meshes import place_copies
from margin_jax.evaluation.embedding import embed_batch
from margin_jax.files import local_path, sha256
from margin_jax.models import PRETRAINED, resolve_encoder
from margin_jax.models import pretrained as published
from margin_jax.models.encoder import Encoder
from margin_jax.models.head import Given
from margin_jax.models.make import make_module

Trunk: TypeAlias = Callable[[np.ndarray], ArrayLike]


def prepare(
    encoder: str | Encoder | Trunk, pretrained: bool, weights: str | Path | None, seed: int
) -> Callable[[Dataset, Mesh, int], tuple[Trunk, Any]]:
    """What gives the function that computes features, and what the record says of it."""
    if isinstance(encoder, str):
        return _by_name(encoder, pretrained, weights, seed)
    if pretrained or weights is not None:
        raise ValueError("pretrained and weights are for an encoder by name")
    if isinstance(encoder, Encoder):
        return functools.partial(_drawn, encoder, None, seed)
    if callable(encoder):
        name = getattr(encoder, "__qualname__", type(encoder).__qualname__)
        return lambda *_: (encoder, name)
    raise TypeError(f"encoder must be a name, an Encoder or a function; got {encoder!r}")


def _by_name(
    text: str, pretrained: bool, weights: str | Path | None, seed: int
) -> Callable[[Dataset, Mesh, int], tuple[Trunk, Any]]:
    """The weights are read at once, as their file may be none."""
    name, parameters = resolve_encoder(text, {})
    trunk = getattr(make_module(name, 1, **parameters), "trunk", Given())
    if isinstance(trunk, Given):
        raise ValueError(f"features are those of a trunk, which encoder {name} does not have")
    told = {"name": name, **parameters}
    if not pretrained and weights is None:
        return functools.partial(_drawn, Encoder(trunk), told, seed)
    check_choice("--encoder with pretrained weights", name, PRETRAINED)
    if pretrained and weights is not None:
        raise ValueError("pretrained and weights cannot be used together")
    path = published.fetch(name) if weights is None else local_path("weights", weights)
    params, trunk_stats = published.load_weights(name, path)
    told |= {"weights": f"sha256:{sha256(path.read_bytes())}"}
    network = Encoder(trunk, colour=True)

    def ready(data: Dataset, mesh: Mesh, batch_size: int) -> tuple[Trunk, Any]:
        shape = data.examples.shape[1:]
        _, stats = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
        of_pictures = PRETRAINED[name]
        stats = network.with_normalisation(
            {**stats, "module": trunk_stats}, np.array(of_pictures.mean), np.array(of_pictures.std)
        )
        return _on_devices(network, (params, stats), mesh, batch_size), told

    return ready


def _drawn(
    network: Encoder, told: Any, seed: int, data: Dataset, mesh: Mesh, batch_size: int
) -> tuple[Trunk, Any]:
    """With weights drawn by the seed, or that the module has."""
    shape = data.examples.shape[1:]
    if told is not None:
        warnings.warn(
            f"the weights of {told['name']} are drawn at random; --pretrained and --weights FILE "
            "give others",
            stacklevel=3,
        )
    params, stats = network.init(jax.random.key(seed), shape)
    every = moments(data, np.arange(len(data.labels)))
    variables = params, network.with_normalisation(stats, *every)
    return _on_devices(network, variables, mesh, batch_size), told or network.description(shape)


def _on_devices(network: Encoder, variables: tuple[Any, Any], mesh: Mesh, batch_size: int) -> Trunk:
    params, stats = place_copies(variables, mesh)

    def compute(read: np.ndarray) -> np.ndarray:
        made = embed_batch(network.apply, params, stats, read, mesh=mesh, size=batch_size)
        return made[: len(read)]

    return compute
