"""The published optimisers, and how their learning rate goes over a run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from margin_jax.choices import check_choice
from margin_jax.spec import resolve

# Below what a parameter of an optimiser must be, if it may not be any number.
_MOST = {"b1": 1.0, "b2": 1.0, "decay": 1.0, "momentum": 1.0}
# The key of the parameters that can be held still at first.
TRUNK = "trunk"


def make_optimizer(
    text: str,
    learning_rate: float,
    schedule: str,
    steps: int,
    steps_per_epoch: int,
    freeze: int = 0,
) -> optax.GradientTransformation:
    """An optimiser with PyTorch's update rules, for gradient g, learning rate η and step t from 1.

    - "adam": ``m ← b1 m + (1 − b1) g``, ``v ← b2 v + (1 − b2) g²``,
      ``θ ← θ − η · m / (1 − b1ᵗ) / (√(v / (1 − b2ᵗ)) + eps)``, with b1 = .9, b2 = .999, eps = 1e-8;
    - "adagrad": ``v ← v + g²``, ``θ ← θ − η · g / (√v + eps)``, with eps = 1e-10;
    - "rmsprop": ``g ← g + weight_decay θ``, ``v ← decay v + (1 − decay) g²``,
      ``b ← momentum b + g / (√v + eps)``, ``θ ← θ − η · b``, with decay = momentum = .9, eps = 1e-8
      and weight_decay = 1e-5.

    With `freeze`, the parameters under "trunk" and all that the optimiser remembers of them (t
    included) stay as they are for so many epochs; their gradients are not used. Then they start as
    in a first step, at the learning rate that the schedule has reached. The step count decides, so
    nothing is compiled anew. (Running statistics of a trunk's BatchNorm are no parameters: they
    move.)

    Args:
        text: "adam", "adagrad" or "rmsprop"; or with parameters as "adam:b1=0.8,eps=1e-6".
        learning_rate, schedule, steps, steps_per_epoch: see :func:`learning_rate_schedule`.
        freeze: epochs of `steps_per_epoch` steps.

    Raises:
        ValueError: an unknown name or parameter, or a number out of range. From ``init``: nothing
            to freeze.

    References:
        The optimisers of the code released with `arXiv 2603.26389
        <https://arxiv.org/abs/2603.26389>`_; RMSprop with those numbers is EfficientNet's, Tan & Le
        2019, `arXiv 1905.11946 <https://arxiv.org/abs/1905.11946>`_.
    """
    name, parameters = resolve("an optimizer", text, OPTIMIZERS, {})
    for parameter, value in parameters.items():
        if not 0 <= value < _MOST.get(parameter, math.inf):
            bound = f" and below {_MOST[parameter]:g}" if parameter in _MOST else " and finite"
            raise ValueError(f"{parameter} of {name} must be at least 0{bound}; got {value}")
    rule = OPTIMIZERS[name](**parameters)
    rate = learning_rate_schedule(schedule, learning_rate, steps, steps_per_epoch)
    if freeze < 0:
        raise ValueError(f"freeze must be at least 0; got {freeze}")
    if freeze > 0:
        late = optax.conditionally_mask(rule, lambda step: step >= freeze * steps_per_epoch)
        rule = optax.partition({"late": late, "now": rule}, _late_and_now)
    # Outside of what is held still, whose own count of steps would put the schedule off.
    return optax.chain(rule, optax.scale_by_learning_rate(rate))


def learning_rate_schedule(
    name: str, learning_rate: float, steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """The learning rate of a step, from 0 on; after the last of `steps` it stays what it is.

    - "constant": η;
    - "exponential": ``η · .01^(step / (steps − 1))``, in the last step 1 % of η;
    - "step97": ``η · .97^⌊step / (2.4 · steps_per_epoch)⌋``, 3 % less every 2.4 epochs;
    - "warmup_linear": a straight line up, which reaches η with the first ``⌊steps / 10⌋`` steps,
      and one down, to 1 % of η in the last step.

    Args:
        name: one of these.
        learning_rate: η.
        steps: of the run. Where epochs differ in length, it is what the first one promises.
        steps_per_epoch: of the first epoch.

    Returns:
        A function of the step, int32[] or int, to a float32[]; it can be traced.

    Raises:
        ValueError: an unknown name, a learning rate that is not above 0 and finite, or no steps.

    References:
        The schedules of the code released with `arXiv 2603.26389
        <https://arxiv.org/abs/2603.26389>`_; "step97" is EfficientNet's, `arXiv 1905.11946
        <https://arxiv.org/abs/1905.11946>`_.
    """
    share = LEARNING_RATES[check_choice("learning rate schedule", name, LEARNING_RATES)]
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be finite and above 0; got {learning_rate}")
    for what, value in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1; got {value}")

    def rate(step: ArrayLike) -> Array:
        return learning_rate * share(jnp.minimum(step, steps - 1), steps, steps_per_epoch)

    return rate


def _constant(step: Array, steps: int, steps_per_epoch: int) -> Array:
    return jnp.ones_like(step, jnp.float32)


def _exponential(step: Array, steps: int, steps_per_epoch: int) -> Array:
    return jnp.power(0.01, step / max(steps - 1, 1))


def _step97(step: Array, steps: int, steps_per_epoch: int) -> Array:
    # 2.4 is 12 / 5: whole numbers, as a rounded quotient could fall one step late.
    return jnp.power(0.97, 5 * step // (12 * steps_per_epoch))


def _warmup_linear(step: Array, steps: int, steps_per_epoch: int) -> Array:
    return jnp.interp(
        step + 1.0, jnp.array([0.0, max(steps // 10, 1), steps]), jnp.array([0.0, 1.0, 0.01])
    )


# What a step has of the full learning rate.
LEARNING_RATES: dict[str, Callable[[Array, int, int], Array]] = {
    "constant": _constant,
    "exponential": _exponential,
    "step97": _step97,
    "warmup_linear": _warmup_linear,
}


def _adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _adagrad(eps: float = 1e-10) -> optax.GradientTransformation:
    """Optax's own has its ε inside the root."""

    def update(gradient: Any, squares: Any, params: Any = None) -> tuple[Any, Any]:
        squares = jax.tree.map(lambda v, g: v + g * g, squares, gradient)
        return jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), gradient, squares), squares

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def _rmsprop(
    decay: float = 0.9, momentum: float = 0.9, eps: float = 1e-8, weight_decay: float = 1e-5
) -> optax.GradientTransformation:
    """Optax's own has the learning rate inside the momentum, where a schedule would lag."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False),
        optax.trace(decay=momentum),
    )


# The direction of a step, still to be multiplied by the learning rate.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
}


def _late_and_now(params: Any) -> Any:
    """A label for each entry of the parameters; those of a loss, which come second, are now."""
    if isinstance(params, tuple):
        return _late_and_now(params[0]), "now"
    if TRUNK not in params:
        raise ValueError(
            f"freeze holds the parameters under {TRUNK!r} still, and the network has none; "
            f"it has {', '.join(params)}"
        )
    return {name: "late" if name == TRUNK else "now" for name in params}
