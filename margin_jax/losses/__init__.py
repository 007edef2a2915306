"""Losses as values: what trains a network, while its triplets are counted for the schedule."""

from collections.abc import Callable, Mapping
from typing import Any

from margin_jax.losses.balancing_margin import BalancingMarginLoss
from margin_jax.losses.base import Loss
from margin_jax.losses.classifier import ArcFaceLoss, CosFaceLoss
from margin_jax.losses.dynamic_soft_margin import DynamicSoftMarginLoss
from margin_jax.losses.fisher import FisherContrastiveLoss, FisherTripletLoss
from margin_jax.losses.shadow import ShadowLoss
from margin_jax.losses.supcon import SupConLoss
from margin_jax.losses.transplant import TransplantLoss
from margin_jax.losses.triplet import TripletLoss
from margin_jax.spec import resolve

# Those that a name and values describe; the command line knows them.
LOSSES: dict[str, Callable[..., Any]] = {
    "triplet": TripletLoss,
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
    "balancing_margin": BalancingMarginLoss,
    "supcon": SupConLoss,
    "transplant": TransplantLoss,
    "shadow": ShadowLoss,
    "fisher_triplet": FisherTripletLoss,
    "fisher_contrastive": FisherContrastiveLoss,
    "dynamic_soft_margin": DynamicSoftMarginLoss,
}


def resolve_loss(text: str, defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a loss in a text, and the value of each of its parameters.

    Args:
        text: ``NAME`` or ``NAME:KEY=VALUE,...``.
        defaults: values of parameters that the text leaves open, by name.

    Raises:
        ValueError: an unknown name or key, a key said twice, or a value of another kind.
    """
    return resolve("a loss", text, LOSSES, defaults)


def make_loss(text: str, defaults: Mapping[str, Any]) -> Loss:
    """The loss that a text describes, as :func:`resolve_loss` reads it.

    Raises:
        ValueError: also for values that the loss refuses.
    """
    name, values = resolve_loss(text, defaults)
    loss: Loss = LOSSES[name](**values)
    return loss
