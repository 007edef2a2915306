"""All that a run needs before it trains: data, network, loss, schedule, optimiser and step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from margin_jax.config import TrainConfig
from margin_jax.data.augmentation import Augment, make_augment
from margin_jax.data.dataset import Dataset
from margin_jax.data.moments import moments
from margin_jax.files import short
from margin_jax.losses.base import Loss, first_state, in_epoch
from margin_jax.models import PRETRAINED, pretrained
from margin_jax.models.encoder import Encoder
from margin_jax.runs.folder import is_saved
from margin_jax.runs.own import Own, get_encoder
from margin_jax.runs.run_data import RunData, plan_epoch, prepare_data
from margin_jax.runs.validation import make_validator
from margin_jax.schedules import Schedule
from margin_jax.training.memory import Memory
from margin_jax.training.optimizers import make_optimizer
from margin_jax.training.record import EpochRecord
from margin_jax.training.state import TrainState, create_state
from margin_jax.training.step import TrainStep, make_train_step


class Setting(NamedTuple):
    """What stays the same while a run trains.

    Attributes:
        data, encoder, schedule, mesh: as the configuration says.
        classes: int32[rows of the dataset], labels as the loss sees them.
        train_step: of an epoch, from 1.
        validate: ``validate(state, record)``, the figures that validation adds to a record.
    """

    data: RunData
    classes: np.ndarray
    encoder: Encoder
    schedule: Schedule
    mesh: Mesh
    train_step: Callable[[int], TrainStep]
    validate: Callable[[TrainState, EpochRecord], dict[str, float]]


def set_up(
    config: TrainConfig,
    dataset: Dataset | None,
    own: Own,
    mesh: Mesh,
) -> tuple[Setting, TrainState]:
    """All that a run needs, and the state it starts with, on this host alone."""
    own.check(config)
    encoder = get_encoder(config, own.encoder)
    # A run that goes on has its weights already, and their file may be gone.
    goes_on = config.resume and is_saved(config.folder)
    published = None
    if config.begins_with_weights and not goes_on:
        published = _published(config)
    data = prepare_data(config, dataset, own)
    augment = make_augment(config.augment)
    one = _one(data)
    if augment is not None:  # what it cannot change is refused here, as small images are
        jax.eval_shape(augment, one, jax.random.key(0))
    schedule = own.schedule or config.make_schedule()

    classes = data.classes()
    counts = np.bincount(classes[data.train]).tolist()

    def loss_of(epoch: int) -> Loss:
        return in_epoch(own.loss or config.make_loss(epoch), epoch, counts)

    compiled = functools.partial(
        optimizer_and_step,
        encoder,
        own.optimizer or _optimizer(config, data),
        config.histogram or schedule.needs_histogram,
        augment,
        config.microbatch,
        config.memory_warmup,
        mesh,
    )
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    shape = one.shape[1:]
    if goes_on:  # all of it is read, so there is nothing to draw
        drawn = jax.eval_shape(lambda: encoder.init(init_key, shape))
        params, batch_stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), drawn)
    elif published is None:
        params, batch_stats = encoder.init(init_key, shape)
        batch_stats = encoder.with_normalisation(batch_stats, *moments(data.dataset, data.train))
    else:
        params, batch_stats = _begin_with(published, config, encoder, init_key, shape)
    optimizer, _ = compiled(loss_of(1))
    dim = _dim(encoder, params, batch_stats, one)
    memory = None if config.memory is None else Memory.empty(config.memory, dim)
    loss_params = loss_of(1).init(jax.random.fold_in(init_key, 1), dim, len(counts))
    state = create_state(
        params,
        batch_stats,
        optimizer,
        schedule,
        train_key,
        memory=memory,
        loss_params=loss_params,
        loss_state=first_state(loss_of(1)),
    )
    validate = make_validator(config, data, encoder, mesh)
    setting = Setting(
        data,
        classes,
        encoder,
        schedule,
        mesh,
        lambda epoch: compiled(loss_of(epoch))[1],
        validate,
    )
    return setting, state


@functools.lru_cache(maxsize=8)
def optimizer_and_step(
    encoder: Encoder,
    optimizer: optax.GradientTransformation | tuple[Any, ...],
    histogram: bool,
    augment: Augment | None,
    microbatch: int | None,
    memory_warmup: int,
    mesh: Mesh,
    loss: Loss,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Cached, so that runs which differ in nothing that is compiled share one compilation."""
    own = isinstance(optimizer, optax.GradientTransformation)
    rule = optimizer if own else make_optimizer(*optimizer)
    train_step = make_train_step(
        encoder.apply,
        rule,
        loss,
        histogram=histogram,
        augment=augment,
        microbatch=microbatch,
        memory_warmup=memory_warmup,
        mesh=mesh,
    )
    return rule, train_step


def _one(data: RunData) -> jax.ShapeDtypeStruct:
    """A batch of one example, as it is computed with."""
    dtype = np.uint8 if data.dataset.pictures else np.float32
    return jax.ShapeDtypeStruct((1, *data.dataset.examples.shape[1:]), dtype)


def _dim(encoder: Encoder, params: Any, batch_stats: Any, one: jax.ShapeDtypeStruct) -> int:
    """Numbers of an embedding, which a network of one's own decides.

    Raises:
        ValueError: for a network that returns no embeddings.
    """
    embed = functools.partial(encoder.apply, train=False, key=None)
    found, _ = jax.eval_shape(embed, params, batch_stats, one)
    if not (
        isinstance(found, jax.ShapeDtypeStruct)
        and jnp.issubdtype(found.dtype, jnp.floating)
        and len(found.shape) == 2
        and found.shape[0] == 1
    ):
        raise ValueError(
            "an encoder must return one array of floats, (1, d) for one example; got "
            f"{short(found)}"
        )
    return int(found.shape[-1])


def _optimizer(config: TrainConfig, data: RunData) -> tuple[Any, ...]:
    """Arguments of :func:`~margin_jax.training.optimizers.make_optimizer`."""
    steps = 1
    if config.learning_rate_schedule != "constant" or config.freeze:
        steps = len(plan_epoch(config, data.dataset, data.train, 0)[0])
    return (
        config.optimizer,
        config.learning_rate,
        config.learning_rate_schedule,
        steps * config.epochs if config.learning_rate_schedule != "constant" else 1,
        steps,
        config.freeze,
    )


def _published(config: TrainConfig) -> tuple[Any, Any]:
    """``(params, batch_stats)`` of the trunk that a run begins with."""
    path = pretrained.fetch(config.encoder_name) if config.weights is None else config.weights
    return pretrained.load_weights(config.encoder_name, path)


def _begin_with(
    trunk: tuple[Any, Any], config: TrainConfig, encoder: Encoder, key: Array, shape: Sequence[int]
) -> tuple[Any, Any]:
    """Takes over a published trunk, and the normalisation of images that goes with it."""
    params, batch_stats = encoder.init_with_trunk(key, shape, *trunk)
    of_images = PRETRAINED[config.encoder_name]
    mean, std = np.array(of_images.mean), np.array(of_images.std)
    return params, encoder.with_normalisation(batch_stats, mean, std)
