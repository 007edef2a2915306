"""What a run takes as an object instead of by name: network, loss, schedule, optimiser."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import optax

from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.losses.base import Loss, check_loss, describe_loss
from margin_jax.models.encoder import Encoder
from margin_jax.models.make import make_encoder
from margin_jax.schedules.base import Schedule, check_schedule


class Own(NamedTuple):
    """Objects of one's own; None for what the configuration names."""

    encoder: Encoder | None = None
    loss: Loss | None = None
    schedule: Schedule | None = None
    optimizer: optax.GradientTransformation | None = None

    def asked_for_by(self, config: TrainConfig) -> "Own":
        """Those that this configuration is for."""
        return Own(*(own if getattr(config, n) == OWN else None for n, own in self._named()))

    def check(self, config: TrainConfig) -> None:
        """Refuses one that is missing, not asked for, or that training cannot use.

        Raises:
            ValueError, TypeError: with what was expected.
        """
        for name, own in self._named():
            _check_given(config, name, own)
        if self.loss is not None and check_loss(self.loss).distance != config.distance:
            raise ValueError(
                f"a loss of your own must have the configuration's distance, {config.distance!r}, "
                f"since reports compare by it; got {self.loss.distance!r}"
            )
        if not isinstance(self.encoder, Encoder | None):
            kind = type(self.encoder).__name__
            raise TypeError(f"encoder must be a mj.Encoder, as mj.Encoder(module) is; got {kind}")
        if self.schedule is not None:
            check_schedule(self.schedule)
        if not isinstance(self.optimizer, optax.GradientTransformation | None):
            kind = type(self.optimizer).__name__
            raise TypeError(f"optimizer must be one of optax, as optax.adamw(1e-3) is; got {kind}")

    def described(self, shape: Sequence[int]) -> dict[str, Any]:
        """What they can be told from others by, for examples of this shape."""
        told: dict[str, Any] = {}
        if self.encoder is not None:
            told["network"] = self.encoder.description(shape)
        if self.loss is not None:
            told["loss"] = describe_loss(self.loss)
        if self.schedule is not None:
            told["schedule"] = self.schedule.init().to_json()
        return told

    def check_any(self, configs: Iterable[TrainConfig]) -> None:
        """The same for several runs: each object must be for one of them at least."""
        first, *_ = configs = list(configs)
        for config in configs:
            self.asked_for_by(config).check(config)
        for name, own in self._named():
            if all(getattr(config, name) != OWN for config in configs):
                _check_given(first, name, own)

    def _named(self) -> list[tuple[str, Any]]:
        return list(zip(self._fields, self, strict=True))


def get_encoder(config: TrainConfig, own: Encoder | None) -> Encoder:
    """The encoder of a configuration: one's own, or by name.

    Raises:
        ValueError: an unknown name, or one's own missing or not asked for.
    """
    _check_given(config, "encoder", own)
    if own is not None:
        return own
    name, parameters = config.encoder_parameters()
    return make_encoder(
        name, config.embedding_size, colour=config.begins_with_weights, **parameters
    )


def _check_given(config: TrainConfig, name: str, own: Any) -> None:
    said = getattr(config, name)
    if (own is not None) != (said == OWN):
        article = "an" if name[0] in "eo" else "a"
        raise ValueError(
            f"{article} {name} object and {name}={OWN!r} in the configuration must be given "
            f"together; the configuration says {said!r}"
        )
