"""One jitted step of training, on any number of devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from margin_jax.data.augmentation import Augment
from margin_jax.devices.meshes import AXIS, replicated
from margin_jax.losses.base import Loss, check_loss, counts_by, keeps_state, takes_references
from margin_jax.losses.effective_margin import effective_margin_histogram
from margin_jax.losses.triplet import TripletLoss
from margin_jax.models import ApplyFn
from margin_jax.stats import TripletStats
from margin_jax.training.memory import Memory
from margin_jax.training.microbatch import differentiate
from margin_jax.training.state import TrainState, as_arrays


class StepOutput(NamedTuple):
    """The results of a step, still on the device.

    Attributes:
        loss: float32[], including that of the memory if there is one.
        stats: statistics of the batch the step trained on.
        histogram: of a sample of its effective margins, if requested.
        gradient_norm: float32[], Euclidean length of the gradient, before the optimiser.
        memory_stats: statistics of the batch's rows as anchors with positives and negatives from
            the memory, if there is one.
    """

    loss: Array
    stats: TripletStats
    histogram: Array | None = None
    gradient_norm: Array | None = None
    memory_stats: TripletStats | None = None


_TRIPLETS = TripletLoss()

TrainStep = Callable[[TrainState, Array, Array], tuple[TrainState, StepOutput]]


def make_train_step(
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    loss: Loss = _TRIPLETS,
    *,
    histogram: bool = False,
    augment: Augment | None = None,
    microbatch: int | None = None,
    memory_warmup: int = 0,
    mesh: Mesh | None = None,
) -> TrainStep:
    """A jitted ``train_step(state, images, labels) -> (state, StepOutput)``.

    The margin is read from the state, so changing it never recompiles. Labels must fit 32 bits: in
    a loop of your own, ``jit`` cuts wider ones without a word.

    Args:
        apply_fn: ``apply_fn(params, batch_stats, images, *, train, key) -> (embeddings,
            batch_stats)``, pure.
        optimizer: any optax gradient transformation; it gets the loss as `value` if it needs it.
        loss: the training loss, such as ``TripletLoss(reduction="mean")``, or your own
            (:class:`~margin_jax.Loss`). If it has parameters, create the train state by
            ``create_state(..., loss_params=loss.init(key, embedding_size, classes))``; if it has a
            state, with ``loss_state=loss.init_state()``.
        histogram: also sample the batch's effective margins, as
            :func:`~margin_jax.effective_margin_histogram` does, for a schedule that
            ``needs_histogram``, or for the record. Not for losses that count other triplets than
            those of embeddings (ArcFace, CosFace, DBM, Fisher).
        augment: a function from :func:`~margin_jax.make_augment`, which changes the images of a
            batch before they are embedded. Its key depends on the state's key and step.
        microbatch: how many rows go through the network at once, for batches whose activations do
            not fit into memory. Loss, triplets and gradient are those of the whole batch; the
            forward pass runs twice. Default: the whole batch. See *Microbatches*.
        memory_warmup: the first step, counted from 0, that uses the memory, if the state has one.
            See *Cross-batch memory*.
        mesh: the devices that share the work; the batch is sharded over the mesh axis "data". Each
            device runs the network on its rows and the loss on its anchors, while triplets, batch
            statistics, dropout and augmentation are those of the global batch. Before the first
            step, ``jax.device_put(state, NamedSharding(mesh, PartitionSpec()))`` places the state;
            a new one may be left to the step, which then compiles twice. Default: run where the
            arguments are.

    Microbatches:
        The batch is embedded in parts of `microbatch` rows, and the loss is computed from all
        embeddings. Then each part is embedded again to propagate the gradient of the loss to the
        parameters (GradCache, `arXiv 2101.06983 <https://arxiv.org/abs/2101.06983>`_). This needs
        memory for the activations of one part, and for all images and embeddings. Part i of k has
        the rows i, i + k, i + 2k, ..., on any number of devices, each of which holds an equal share
        of it.

        - A network that treats each row independently takes the same step as without microbatches,
          up to rounding. Augmentation and histogram are the same for any network.
        - Dropout: each part has its own key, the same in both passes. The gradient is exact for
          these masks, but they differ from those of a step without microbatches.
        - BatchNorm normalises each part by the part's own statistics, as in batches of `microbatch`
          rows, and the gradient is exact for that network. Running statistics are updated once by
          each part, in order: after a step they are those of k batches.

        If ``microbatch`` is the batch size, the step is the same as without. Otherwise `apply_fn`
        must return batch statistics with the structure and types that it received.

    Cross-batch memory:
        With a state of ``create_state(..., memory=Memory.empty(rows, dim))`` the loss is ::

            L(batch, batch) + L(batch, memory)

        where both terms have the same options, and each is reduced over its own triplets. The
        anchors are the batch's rows in both terms; positives and negatives are the batch's other
        rows in the first term and the memory's rows in the second (Wang et al. 2020, `arXiv
        1912.06798 <https://arxiv.org/abs/1912.06798>`_). No gradient flows through the memory. It
        holds the last `rows` embeddings of earlier steps, unchanged. Those of this step are added
        after the loss, in the order of the batch, so no anchor meets itself (in the released code,
        which adds them before, it does). An older embedding of the same image counts as a positive.
        Embeddings that are not finite are never used.

        Before step `memory_warmup`, rows are added but not used, and `memory_stats` count no
        triplets: while the network changes fast, old embeddings mislead it. (The released code
        starts after 1,000 steps, with an empty memory.)

        Schedules see the statistics of the batch only.

    Raises:
        TypeError: for a loss that is not a :class:`~margin_jax.Loss` or cannot be hashed; the step
            raises it for a memory with labels of a wider type than int32.
        ValueError: for a negative `memory_warmup`; the step raises it for a memory with a loss that
            takes no references, for embeddings of another length than the memory's, and for more
            rows in batch and memory than :func:`~margin_jax.batch_all_triplet_loss` can draw from.
        ValueError: for a microbatch below 1, or one that is not a multiple of the number of
            devices; the step raises it for one that does not divide the batch.
        ValueError: for a mesh without an axis "data", or whose axes are not of the type Auto, as
            ``jax.make_mesh((n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))`` makes it;
            the step raises it for a batch that the devices cannot share equally.
    """
    if mesh is not None and (AXIS not in mesh.axis_names or {*mesh.axis_types} != {AxisType.Auto}):
        raise ValueError(
            f'mesh must have an axis "{AXIS}", and axes of the type Auto, as jax.make_mesh((n,), '
            f'("{AXIS}",), axis_types=(jax.sharding.AxisType.Auto,)) makes it; got axes '
            f"{mesh.axis_names} of types {mesh.axis_types}"
        )
    counted = counts_by(check_loss(loss))
    if histogram and counted is None:
        raise ValueError(
            "a histogram is for losses that count triplets of embeddings; got it with "
            f"{type(loss).__name__}"
        )
    if memory_warmup < 0:
        raise ValueError(f"memory_warmup must be at least 0; got {memory_warmup}")
    if microbatch is not None and microbatch < 1:
        raise ValueError(f"microbatch must be at least 1; got {microbatch}")
    if microbatch is not None and mesh is not None and microbatch % mesh.shape[AXIS]:
        raise ValueError(
            f"microbatch must be a multiple of {mesh.shape[AXIS]}, the devices that share it; "
            f"got {microbatch}"
        )
    # Some optimisers look at the loss, such as `optax.contrib.reduce_on_plateau`.
    update = optax.with_extra_args_support(optimizer).update
    everywhere = None if mesh is None else replicated(mesh)
    devices, shares = (1, 1) if mesh is None else (mesh.size, mesh.shape[AXIS])
    batch_loss: Callable[..., Any] = functools.partial(
        check_loss(loss), axis_name=AXIS if devices > 1 else None
    )

    def losses(
        params: Any,
        loss_state: Any,
        embeddings: Array,
        labels: Array,
        margin: Array,
        memory: Memory | None,
    ) -> tuple[Array, tuple[TripletStats, TripletStats | None, Any]]:
        if keeps_state(loss):
            value, stats, loss_state = batch_loss(
                params, embeddings, labels, margin, state=loss_state
            )
        else:
            value, stats = batch_loss(params, embeddings, labels, margin)
        if memory is None:
            return value, (stats, None, loss_state)
        if not takes_references(loss):
            raise ValueError(
                f"a cross-batch memory needs a loss that takes references, as TripletLoss does; "
                f"got {type(loss).__name__}"
            )
        remembered, memory_stats = batch_loss(
            params,
            embeddings,
            labels,
            margin,
            references=memory.embeddings,
            reference_labels=memory.labels,
            reference_where=memory.real,
        )
        return value + remembered, (stats, memory_stats, loss_state)

    loss_fn = losses
    if devices > 1:
        # The compiler shares out the network, for any network, but not the loss's loops.
        loss_fn = jax.shard_map(
            losses,
            mesh=mesh,
            in_specs=(P(), P(), P(AXIS), P(AXIS), P(), P(AXIS)),
            out_specs=(P(), (P(AXIS), P(AXIS), P())),
        )

    @functools.partial(jax.jit, in_shardings=(everywhere, None, None), out_shardings=everywhere)
    def train_step(
        state: TrainState, images: Array, labels: Array
    ) -> tuple[TrainState, StepOutput]:
        if len(images) % shares:
            raise ValueError(
                f"a batch of {len(images)} rows cannot be shared equally by {shares} devices"
            )
        key = jax.random.fold_in(state.key, state.step)
        if augment is not None:
            images = augment(images, jax.random.fold_in(key, 2))

        def embed(params: Any, batch_stats: Any, images: Array, key: Array) -> tuple[Array, Any]:
            return apply_fn(params, batch_stats, images, train=True, key=key)

        memory = state.memory
        if memory is not None:
            memory = _compared(memory, state.step >= memory_warmup, devices)
        value, told, embeddings, batch_stats, (of_params, of_loss) = differentiate(
            embed,
            lambda params, embeddings: loss_fn(
                params, state.loss_state, embeddings, labels, state.margin, memory
            ),
            state.params,
            state.loss_params,
            state.batch_stats,
            images,
            key,
            microbatch=microbatch,
            mesh=mesh,
        )
        stats, memory_stats, loss_state = told
        if everywhere is not None and (histogram or memory is not None):
            embeddings = jax.lax.with_sharding_constraint(embeddings, everywhere)
        sampled = None
        if histogram and counted is not None:
            if everywhere is not None:  # few rows of it are drawn, anywhere in the batch
                stats = jax.lax.with_sharding_constraint(stats, everywhere)
            sampled = effective_margin_histogram(
                embeddings, labels, stats, jax.random.fold_in(key, 1), distance=counted
            )
        gradient = state.replace(params=of_params, loss_params=of_loss).trained
        updates, opt_state = update(gradient, state.opt_state, state.trained, value=value)
        new_state = state.with_trained(optax.apply_updates(state.trained, updates)).replace(
            step=state.step + 1,
            batch_stats=batch_stats,
            opt_state=opt_state,
            memory=None if state.memory is None else state.memory.push(embeddings, labels),
            loss_state=loss_state,
        )
        norm = optax.tree.norm(gradient)
        return as_arrays(new_state), StepOutput(value, stats, sampled, norm, memory_stats)

    return train_step


def _compared(memory: Memory, begun: Array, devices: int) -> Memory:
    """The memory as the loss takes it: nothing before it has begun, and as many rows a device."""
    masked = dataclasses.replace(memory, real=memory.real & begun)
    missing = -len(memory.real) % devices

    def padded(v: Array) -> Array:
        return jnp.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1))

    found: Memory = jax.tree.map(padded, masked)
    return found
