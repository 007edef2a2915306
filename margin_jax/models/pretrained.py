"""Weights that timm publishes, as variables of our trunks.

Only safetensors files are read: a pickle (.pth, .bin) can run code when it is opened.
"""

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from margin_jax.choices import check_choice
from margin_jax.models import PRETRAINED
from margin_jax.models.make import make_module

FILE = "model.safetensors"


# The last part of a variable's path → that of timm's name. The parts before are the same in both.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Axes of our kernels in PyTorch's order, by their number, and the way back.
_TO_PYTORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_PYTORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
# Tensors without a place here: the classifier, and PyTorch's count of batches.
_IGNORED = re.compile(r"(classifier|fc|head)\..*|.*\.num_batches_tracked")


class Variable(NamedTuple):
    """Where a tensor goes.

    Attributes:
        path: "params" or "batch_stats", then the names of modules, then that of the variable.
        shape: in PyTorch's order of axes.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


@functools.cache
def variables(name: str) -> Mapping[str, Variable]:
    """Every variable of a trunk for images of three channels, by the name of timm's tensor."""
    check_choice("pretrained encoder", name, PRETRAINED)
    trunk = make_module(name, 1).trunk
    init = functools.partial(trunk.init, train=False)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    flat = flatten_dict(jax.eval_shape(init, jax.random.key(0), images))
    found = {}
    for path, leaf in flat.items():
        tensor = ".".join((*path[1:-1], _LEAVES.get(path[-1], path[-1])))
        tensor = re.sub(r"_(\d+)(?=[_.])", r".\1", tensor)
        axes = _TO_PYTORCH if path[-1] == "kernel" else {}
        shape = tuple(leaf.shape[axis] for axis in axes.get(leaf.ndim, range(leaf.ndim)))
        found[tensor] = Variable(path, shape)
    return found


def convert(name: str, tensors: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """``(params, batch_stats)`` of a trunk, NumPy arrays float32, from timm's tensors.

    Kernels of convolutions, depthwise and 1 × 1 ones too, are [out, in, H, W] there and
    [H, W, in, out] here, those of linear layers [out, in] and [in, out]; all others have one shape.
    The classifier and ``num_batches_tracked`` are left out.

    Args:
        name: key of :data:`PRETRAINED`.
        tensors: by timm's names.

    Raises:
        ValueError: an unknown name, or the first tensor that is missing, is of another shape, or
            has no place in the trunk.
    """
    wanted = variables(name)
    flat = {}
    for tensor, (path, shape) in wanted.items():
        if tensor not in tensors:
            raise ValueError(f"expected {name}'s tensor {tensor} of shape {shape}; got none")
        value = tensors[tensor]
        if value.shape != shape:
            raise ValueError(f"expected {tensor} to be of shape {shape}; got {value.shape}")
        if path[-1] == "kernel":
            value = value.transpose(_FROM_PYTORCH[value.ndim])
        flat[path] = np.ascontiguousarray(value, np.float32)
    for tensor, value in tensors.items():
        if tensor not in wanted and not _IGNORED.fullmatch(tensor):
            raise ValueError(f"expected only {name}'s tensors; got {tensor} of shape {value.shape}")
    tree = unflatten_dict(flat)
    return tree["params"], tree.get("batch_stats", {})


def load_weights(name: str, path: Path | str) -> tuple[Any, Any]:
    """``(params, batch_stats)`` of a trunk, from a safetensors file of timm; see :func:`convert`.

    Args:
        name: key of :data:`PRETRAINED`.
        path: the file, from :func:`fetch` or one of your own with the same tensors.

    Raises:
        ValueError: an unknown name, no such file, one of another format, or tensors that do not
            fit.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights must be a safetensors file; there is no file {path}")
    try:
        tensors = load_file(path)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"weights must be of types that NumPy has; cannot read {path}: {error}"
        ) from error
    except SafetensorError as error:
        with path.open("rb") as file:
            start = file.read(4)
        is_pickle = start.startswith(b"\x80") or start == b"PK\x03\x04"  # PyTorch zips its pickles
        got = "a pickle, which can run code when it is opened" if is_pickle else str(error)
        raise ValueError(
            f"weights must be a safetensors file; cannot read {path}: {got}"
        ) from error
    try:
        return convert(name, tensors)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def fetch(name: str) -> Path:
    """The file of published weights, downloaded once and kept in the cache of the hub.

    Args:
        name: key of :data:`PRETRAINED`.

    Raises:
        ValueError: an unknown name, no network and no copy in the cache, or huggingface_hub is not
            installed.
    """
    repo = PRETRAINED[check_choice("pretrained encoder", name, PRETRAINED)].repo
    hub = optional("huggingface_hub", "pretrained weights")
    cached = hub.try_to_load_from_cache(repo, FILE)  # asks nobody, so a copy needs no network
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hub.hf_hub_download(repo, FILE))
    except Exception as error:  # of the hub, of the network below it, of the disk
        raise ValueError(
            f"cannot download {FILE} of https://huggingface.co/{repo} ({type(error).__name__}); "
            "get the file another way and give it with --weights FILE"
        ) from error


def optional(module: str, what: str) -> Any:
    """A module of the extra ``pretrained``.

    Raises:
        ValueError: if it is not installed; `what` needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} need {module}: pip install 'margin-jax[pretrained]'") from error
