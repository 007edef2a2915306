"""What a finished training is worth: figures on the test identities, and pictures."""

from typing import Any

import chex
import numpy as np
from jax.sharding import Mesh

from margin_jax import plots
from margin_jax.config import TrainConfig
from margin_jax.data.images import StreamedImages
from margin_jax.evaluation.embedding import embed_examples, pair_distances
from margin_jax.evaluation.verification import (
    VerificationReport,
    choose_threshold,
    verification_report,
)
from margin_jax.models.encoder import Encoder
from margin_jax.runs.progress import RowBar
from margin_jax.runs.run_data import RunData
from margin_jax.runs.validation import best_epoch


def make_report(
    config: TrainConfig,
    data: RunData,
    encoder: Encoder,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    history: list[dict[str, Any]],
    mesh: Mesh,
    easy_share: float | None,
    *,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the best weights at the threshold of the validation pairs, and pictures.

    Args:
        config, data, encoder: of the run.
        params, batch_stats: its best weights.
        history: all of its records.
        mesh: devices that share the work, on all of which the weights are.
        easy_share: of the run's schedule.
        progress: show how many examples are embedded.

    Returns:
        What goes into ``report.json``, and the pictures by name.
    """
    examples = data.dataset.examples
    used = np.unique(np.concatenate([pairs.rows.ravel() for pairs in data.pairs.values()]))
    with RowBar(f"{config.folder}, the report", len(used), progress, lines=1) as bar:
        vectors = embed_examples(
            encoder.apply, params, batch_stats, examples, used, mesh, on_rows=bar.show
        )
    distances = {
        name: pair_distances(vectors, np.searchsorted(used, pairs.rows), config.distance)
        for name, pairs in data.pairs.items()
    }
    ours = _verify(config, data, distances)
    raw = None
    # Images that are not held would be decoded for each of their pairs.
    if not isinstance(examples, StreamedImages):
        raw = _verify(
            config,
            data,
            {name: pair_distances(examples, pairs.rows) for name, pairs in data.pairs.items()},
        )

    def figures(reports: dict[str, VerificationReport]) -> dict[str, Any]:
        rest = {name: r.to_json() for name, r in reports.items() if name in ("published", "hard")}
        return {**reports["test"].to_json(), **rest}

    epoch = best_epoch(history, config.select)
    report = {
        "best_epoch": epoch,
        "epochs": len(history),
        "margin": history[epoch - 1]["margin"],
        "validation": ours["validation"].to_json(),
        "test": {**figures(ours), "raw": raw and figures(raw)},
    }
    compared = {"embedding": ours["test"], **({"raw values": raw["test"]} if raw else {})}
    if len(history) < config.epochs:
        report["stopped_early"] = {"patience": config.patience, "of_epochs": config.epochs}
    pictures = {
        "margin": plots.plot_margin(history, easy_share),
        "loss": plots.plot_loss(history, epoch),
        "effective_margin": plots.plot_effective_margin(history),
        "distances": plots.plot_distances(
            distances["test"], data.pairs["test"].same, ours["test"].threshold
        ),
        "roc": plots.plot_roc(compared),
        "det": plots.plot_det(compared),
    }
    return report, pictures


def _verify(
    config: TrainConfig, data: RunData, distances: dict[str, np.ndarray]
) -> dict[str, VerificationReport]:
    """A report for each set of pairs, all at the threshold chosen on pairs of validation.

    Of what is tested with intervals.
    """
    by = "validation" if config.fmr is None else "threshold"
    threshold = choose_threshold(distances[by], data.pairs[by].same, config.fmr)
    labels = data.dataset.labels
    return {
        name: verification_report(
            distances[name],
            pairs.same,
            threshold=threshold,
            identities=None if name == "validation" else labels[pairs.rows],
        )
        for name, pairs in data.pairs.items()
        if name != "threshold"
    }
