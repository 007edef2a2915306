"""What is measured after every epoch, to choose the best one."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from margin_jax.config import TrainConfig
from margin_jax.data.sampler import choose_batch, pk_batches
from margin_jax.evaluation.embedding import embed_examples, pair_distances
from margin_jax.evaluation.verification import choose_threshold, verification_report
from margin_jax.losses.batch_all import batch_all_triplet_loss
from margin_jax.models.encoder import Encoder
from margin_jax.runs.run_data import RunData
from margin_jax.training.record import DivergedError, EpochRecord
from margin_jax.training.state import TrainState

# The margin of the released code's model choice, fixed whatever the schedule does.
SELECTION_MARGIN = 1.0


@functools.partial(jax.jit, static_argnames="distance")
def _selection_loss(vectors: Array, labels: Array, distance: str) -> Array:
    """The released code's validation loss: batch-all mean over all triplets at a fixed margin."""
    return batch_all_triplet_loss(
        vectors, labels, SELECTION_MARGIN, distance=distance, reduction="mean"
    )[0]


def make_validator(
    config: TrainConfig, data: RunData, encoder: Encoder, mesh: Mesh
) -> Callable[[TrainState, EpochRecord], dict[str, float]]:
    """Tells the AUC on the validation pairs, and the released code's validation loss.

    Raises:
        ValueError: if the best epoch is to be chosen by a loss that has no triplets.
    """
    labels = data.dataset.labels[data.validation]
    pairs = data.pairs["validation"]
    rows = np.searchsorted(data.validation, pairs.rows)
    repeated = config.small_identities == "repeat"
    p, k = choose_batch(
        data.dataset.labels[data.train],
        config.identities_per_batch,
        config.images_per_identity,
        config.small_identities,
    )
    least = 1 if repeated else k
    enough = int(np.count_nonzero(np.bincount(labels) >= least))
    plan = np.empty((0, 0), int)
    if enough >= 2:
        plan, _ = pk_batches(
            labels,
            min(enough, p),
            k,
            seed=config.seed,
            epoch=0,
            small_identities="repeat" if repeated else "drop",
        )
    elif config.select == "loss":
        raise ValueError(
            f"select loss needs at least two validation identities with {least} images or more; "
            f"got {enough} of {len(np.unique(labels))}"
        )

    def validate(state: TrainState, record: EpochRecord) -> dict[str, float]:
        vectors = embed_examples(
            encoder.apply,
            state.params,
            state.batch_stats,
            data.dataset.examples,
            data.validation,
            mesh,
        )
        if not np.all(np.isfinite(vectors)):
            message = f"embeddings are not finite after epoch {record.epoch}"
            raise DivergedError(message, record.epoch, record.steps)
        distances = pair_distances(vectors, rows, config.distance)
        threshold = choose_threshold(distances, pairs.same)
        report = verification_report(distances, pairs.same, threshold=threshold)
        losses = [
            float(_selection_loss(vectors[batch], labels[batch], distance=config.distance))
            for batch in plan
        ]
        return {
            "validation_auc": report.auc,
            "validation_loss": float(np.mean(losses)) if losses else math.nan,
        }

    return validate


def is_over(config: TrainConfig, history: list[dict[str, Any]]) -> bool:
    """Whether a run has all its epochs, or so many without a better one as its patience allows."""
    if len(history) >= config.epochs:
        return True
    if config.patience is None or not history:
        return False
    return len(history) - best_epoch(history, config.select) >= config.patience


def best_epoch(history: list[dict[str, Any]], select: str) -> int:
    """The epoch (from 1) that the rule chooses; the first one if several are as good."""

    def worth(record: dict[str, Any]) -> float:
        if select == "auc":
            return float(record["validation_auc"])
        loss = record["validation_loss"]
        return -math.inf if loss is None or math.isnan(loss) else -loss

    return int(max(history, key=worth)["epoch"])
