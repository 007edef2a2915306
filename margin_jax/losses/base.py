"""What training asks of a loss."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import jax
from jax import Array

from margin_jax.losses.distances import DistanceFn
from margin_jax.stats import TripletStats

F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class Loss(Protocol):
    """A training loss: an object that is called with embeddings and the margin in force.

    Every loss also counts triplets, as schedules and reports are based on these counts. A loss
    without triplets gets them from :func:`~margin_jax.triplet_stats`::

        @dataclasses.dataclass(frozen=True)
        class CenterLoss:
            distance: str = "euclidean"

            def init(self, key, embedding_size, classes):
                return jax.random.normal(key, (classes, embedding_size))

            def __call__(self, centers, embeddings, labels, margin, *, where=None, axis_name=None):
                squares = jnp.sum((embeddings - centers[labels]) ** 2, axis=1)
                real = jnp.ones(len(labels), bool) if where is None else where
                total = jnp.sum(squares, where=real), jnp.sum(real)
                total, rows = total if axis_name is None else jax.lax.psum(total, axis_name)
                options = {"distance": self.distance, "where": where, "axis_name": axis_name}
                stats = mj.triplet_stats(embeddings, labels, margin, **options)
                return total / jnp.maximum(rows, 1), stats

        mj.fit(mj.TrainConfig(loss="own"), loss=CenterLoss())

    It must be hashable, as a frozen dataclass is, since programs are compiled for it.

    A loss that depends on the training set, or changes during a run, has a method ``in_epoch(epoch,
    counts)`` that returns the loss for an epoch, counted from 1; `counts` are the numbers of
    training images of each class (see :class:`~margin_jax.BalancingMarginLoss`). Such values are
    part of the loss itself: they are not trained and need not be saved.

    A loss that carries untrained values from step to step has a *state*: its method
    ``init_state()`` returns the first one, a pytree of arrays; the loss is called with ``state=``
    and returns ``(loss, stats, state)`` (see :class:`~margin_jax.DynamicSoftMarginLoss`). The state
    is the same on every device. It is kept in the train state, where no optimiser changes it, and
    is saved and restored with it.

    A loss that counts the triplets of its rows by another distance than `distance` has it as
    ``counts_by``, a name or a function (as a field or a ``staticmethod``), and the histogram of
    effective margins is drawn by that one. A loss that counts others, such as rows with proxies,
    says ``counts_by = None``; it has no histogram.

    Attributes:
        distance: the distance between embeddings, a name or a function as for
            :func:`~margin_jax.batch_all_triplet_loss`.
    """

    def __hash__(self) -> int:
        """Equal losses share their compiled programs."""
        ...

    @property
    def distance(self) -> str | DistanceFn:
        """How its embeddings are compared, in training and after it."""
        ...

    def init(self, key: Array, embedding_size: int, classes: int) -> Any:
        """The loss's own parameters, trained with the network's; ``{}`` for none."""
        ...

    def __call__(
        self,
        params: Any,
        embeddings: Array,
        labels: Array,
        margin: Array,
        *,
        where: Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[Array, TripletStats]:
        """``(loss, stats)`` of a batch; the loss is a float scalar.

        Args:
            params: from :meth:`init`, or as trained since.
            embeddings: float[batch, embedding_size].
            labels: int[batch]; in :func:`~margin_jax.fit` the training identities are 0 to
                `classes` − 1.
            margin: float32[], traced.
            where: bool[batch], True for real rows. Default: all.
            axis_name: inside ``shard_map``, the mesh axis over which the batch is sharded. The loss
                is then that of the global batch, the statistics are those of the device's rows.
        """
        ...


class WithoutParameters:
    """What losses share that have nothing of their own to train."""

    def init(self, key: Array, embedding_size: int, classes: int) -> dict[str, Array]:
        """``{}``."""
        return {}


def one_program(compute: F) -> F:
    """Compiles what a `loss`, the first argument, computes where nobody has put it under `jit`.

    Under `jit` it is as if it were not there.
    """
    program = jax.jit(compute, static_argnames=("loss", "axis_name"), inline=True)

    @functools.wraps(compute)
    def checked(loss: Loss, *args: Any) -> Any:
        return program(check_loss(loss), *args)

    return cast(F, checked)


def check_loss(loss: Loss) -> Loss:
    """Returns a loss that training can use.

    Raises:
        TypeError: for what is none, or cannot be hashed.
    """
    kind = type(loss).__name__
    try:
        hash(loss)
    except TypeError as error:
        raise TypeError(
            f"a loss must be hashable, as a frozen dataclass of numbers, text and tuples is; got "
            f"{kind}: {error}"
        ) from error
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise TypeError(
            "a loss has a distance, init(key, embedding_size, classes) and is called as "
            f"loss(params, embeddings, labels, margin, where=, axis_name=); got {kind}"
        )
    return loss


def describe_loss(loss: Loss) -> str:
    """Its `repr` without addresses in memory, which are others in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(loss))


def in_epoch(loss: Loss, epoch: int, counts: Sequence[int]) -> Loss:
    """The loss as it is in an epoch, from 1, of a run on so many images of each class."""
    bind: Callable[[int, Sequence[int]], Loss] | None = getattr(loss, "in_epoch", None)
    return loss if bind is None else bind(epoch, counts)


def first_state(loss: Loss) -> Any:
    """What the loss remembers before the first step; ``{}`` if it remembers nothing."""
    begin: Callable[[], Any] | None = getattr(loss, "init_state", None)
    return {} if begin is None else begin()


def keeps_state(loss: Loss) -> bool:
    """Whether it is called with a state, and returns the next one."""
    return hasattr(loss, "init_state")


def counts_by(loss: Loss) -> str | DistanceFn | None:
    """The distance by which it counts triplets of the batch's rows; None if it counts others.

    A histogram of anything else would not be of what the schedule moves.
    """
    by: str | DistanceFn | None = getattr(loss, "counts_by", loss.distance)
    return by


def takes_references(loss: Loss) -> bool:
    """Whether it can also draw positives and negatives from rows other than the batch's."""
    return "references" in inspect.signature(loss.__call__).parameters
