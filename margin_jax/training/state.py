"""The train state: arrays only, frozen, a pytree. The margin lives here and nowhere else."""

import dataclasses
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from margin_jax.schedules import Schedule, ScheduleState
from margin_jax.training.memory import Memory

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        step: int32[], optimiser steps taken.
        key: a typed PRNG key; step s uses ``fold_in(key, s)``.
        params: the encoder's parameters.
        batch_stats: its running statistics, ``{}`` if it has none.
        opt_state: the optimiser's state, for :attr:`trained`.
        schedule: the schedule's state, which holds the margin in force.
        memory: the embeddings of earlier batches; None without a cross-batch memory.
        loss_params: the loss's own parameters, ``{}`` if it has none.
        loss_state: the loss's state, which is not trained, ``{}`` if it has none.
    """

    step: Array
    key: chex.PRNGKey
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    schedule: ScheduleState
    memory: Memory | None = None
    loss_params: chex.ArrayTree = dataclasses.field(default_factory=dict)
    loss_state: chex.ArrayTree = dataclasses.field(default_factory=dict)

    @property
    def trained(self) -> Any:
        """`params`, or ``(params, loss_params)`` if the loss has any: what is optimised."""
        return _trained(self.params, self.loss_params)

    def with_trained(self, trained: Any) -> "TrainState":
        """A copy with other values of :attr:`trained`."""
        params, loss_params = trained, self.loss_params
        if jax.tree.leaves(loss_params):
            params, loss_params = trained
        return self.replace(params=params, loss_params=loss_params)

    @property
    def margin(self) -> Array:
        """float32[]: the margin in force."""
        return self.schedule.margin

    def replace(self, **changes: Any) -> "TrainState":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def create_state(
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    key: chex.PRNGKey,
    *,
    memory: Memory | None = None,
    loss_params: Any = None,
    loss_state: Any = None,
) -> TrainState:
    """The state before the first step.

    Args:
        params, batch_stats: any pytrees of JAX or NumPy arrays, such as those of a run;
            `batch_stats` may be ``{}``.
        optimizer: the same as for :func:`~margin_jax.make_train_step`.
        schedule: the same as for :func:`~margin_jax.train_epoch`.
        key: ``jax.random.key(...)``, for dropout and augmentation.
        memory: ``Memory.empty(rows, dim)``, to train with a cross-batch memory.
        loss_params: from the ``init`` of a loss that has parameters. Default: none.
        loss_state: from the ``init_state`` of a loss that has a state. Default: none.
    """
    loss_params = {} if loss_params is None else loss_params
    loss_state = {} if loss_state is None else loss_state
    params, batch_stats, loss_params, loss_state = as_arrays(
        (params, batch_stats, loss_params, loss_state)
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(_trained(params, loss_params)),
        schedule=as_arrays(schedule.init()),
        memory=memory,
        loss_params=loss_params,
        loss_state=loss_state,
    )


def as_arrays(tree: T) -> T:
    """The same, with numbers and NumPy's arrays as JAX's, none of which has a weak type.

    To a compiled step a weak type is another one, such as that of 0.3 or of a `where` of numbers.
    """

    def strong(value: Any) -> Array:
        array = value if isinstance(value, Array) else jnp.asarray(value)
        weak = getattr(array, "weak_type", False)  # keys do not have it
        return array.astype(array.dtype) if weak else array

    arrays: T = jax.tree.map(strong, tree)
    return arrays


def _trained(params: Any, loss_params: Any) -> Any:
    return (params, loss_params) if jax.tree.leaves(loss_params) else params
