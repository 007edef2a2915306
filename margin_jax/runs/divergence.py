"""What is said of a training that has gone wrong: where, what is left, and what can be done."""

import traceback
import warnings
from collections.abc import Sequence

from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.training.record import DivergedError, EpochRecord

# Identities of a batch that an error names.
_NAMES = 8
# Frames of these packages say less than the last one of somebody's network.
_LIBRARIES = {"jax", "flax", "optax"}


def with_advice(
    config: TrainConfig, error: DivergedError, identities: Sequence[str]
) -> DivergedError:
    """The same error, saying whose images it was, what is left and what can be done.

    Args:
        config: of the run.
        error: of :func:`~margin_jax.training.epoch.train_steps`, or of validation.
        identities: those of the batch.
    """
    some = ", ".join(identities[:_NAMES]) + (", ..." if len(identities) > _NAMES else "")
    batch = f" (identities of its batch: {some})" if identities else ""
    now = "" if config.optimizer == OWN else f", now {config.learning_rate:g},"
    return DivergedError(
        f"{error}{batch}. The last good state is kept in {config.folder}. A lower learning rate"
        f"{now} is the usual remedy; to see which operation it was, resume "
        "with --debug-nans",
        error.epoch,
        error.step,
    )


def located(error: FloatingPointError, epoch: int) -> FloatingPointError:
    """The error of ``jax_debug_nans``, with the line that asked for the operation."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] not in _LIBRARIES
    ]
    where = traceback.StackSummary.extract(iter(frames[-1:]))[0]
    place = f"{where.filename}, line {where.lineno}, {where.name}"
    return FloatingPointError(f"epoch {epoch}: {error}, in {place}: {where.line}")


def warn_of_collapse(record: EpochRecord) -> None:
    """Warns that all embeddings are nearly one (``EpochRecord.collapsed``)."""
    warnings.warn(
        f"the embeddings have collapsed: in epoch {record.epoch} the mean distances are "
        f"{record.mean_ap:.2g} (same identity) and {record.mean_an:.2g} (different), far below the "
        f"margin, {record.margin:.2g}, so the loss is stuck at it. Lower the learning rate or the "
        "first margin, train on all triplets (mining all), or with larger batches",
        stacklevel=2,
    )
