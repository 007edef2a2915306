"""What an encoder is to all others, and those that have names; without Flax.

A new one is an entry here, and a module of ``margin_jax.models`` with a function ``build``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from jax import Array

from margin_jax.spec import parse

DTYPES = ("float32", "bfloat16")


class ApplyFn(Protocol):
    """An encoder as a pure function."""

    def __call__(
        self, params: Any, batch_stats: Any, examples: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, Any]:
        """Returns ``(embeddings float[batch, dim], batch_stats)``."""
        ...


class Weights(NamedTuple):
    """Published weights of a trunk.

    Attributes:
        repo: where they lie on the Hugging Face hub, in the file ``model.safetensors``.
        mean, std: normalisation of the images that they were trained on, red, green, blue, for
            values from 0 to 1.
    """

    repo: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Named(NamedTuple):
    """An encoder that has a name.

    Attributes:
        module: of ``margin_jax.models``; its ``build(embedding_size, dtype=..., ...)`` makes one.
        parameters: what else ``build`` takes, with the values that it has unless others are said.
        weights: those that its trunk can begin with, if any are published.
    """

    module: str
    parameters: Mapping[str, Any]
    weights: Weights | None = None


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_STEM = {"small_stem": False}

ENCODERS: dict[str, Named] = {
    "small_cnn": Named("small_cnn", {"width": 1.0}),
    "efficientnet_b0": Named(
        "efficientnet", _STEM, Weights("timm/efficientnet_b0.ra_in1k", *_IMAGENET)
    ),
    "efficientnet_lite0": Named(
        "efficientnet_lite", _STEM, Weights("timm/tf_efficientnet_lite0.in1k", *_HALF)
    ),
    "mobilenet_v3_small": Named(
        "mobilenet", _STEM, Weights("timm/mobilenetv3_small_100.lamb_in1k", *_IMAGENET)
    ),
    "resnet50": Named("resnet", _STEM, Weights("timm/resnet50.a1_in1k", *_IMAGENET)),
    "vit_tiny": Named("vit", {}, Weights("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", *_HALF)),
    "dinov2_small": Named(
        "dinov2", {}, Weights("timm/vit_small_patch14_dinov2.lvd142m", *_IMAGENET)
    ),
    "nn2": Named("nn2", _STEM),
    "head": Named("head", {"hidden": "512/256", "dropout": "0.5/0.3"}),
    "linear": Named("linear", {}),
    "mlp": Named("mlp", {}),
}
PRETRAINED: dict[str, Weights] = {
    name: named.weights for name, named in ENCODERS.items() if named.weights is not None
}


def resolve_encoder(text: str, defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an encoder in a text, and the value of each of its parameters.

    Args:
        text: ``NAME`` or ``NAME:KEY=VALUE,...``.
        defaults: values of parameters that the text leaves open, by name.

    Raises:
        ValueError: an unknown name or key, a key said twice, or a value of another kind.
    """
    name, said = parse_encoder(text)
    own = _parameters(name)
    own |= {key: defaults[key] for key in own if key in defaults}
    return name, own | said


def parse_encoder(text: str) -> tuple[str, dict[str, Any]]:
    """The name of an encoder in a text, and the parameters that it says.

    Raises:
        ValueError: as :func:`resolve_encoder`.
    """
    known = {
        name: {key: type(value) for key, value in _parameters(name).items()} for name in ENCODERS
    }
    return parse("an encoder", text, known)


def _parameters(name: str) -> dict[str, Any]:
    """Their usual values."""
    return {"dtype": DTYPES[0], **ENCODERS[name].parameters}
