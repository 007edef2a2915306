"""Triplet learning and verification in JAX, with margins that adapt while training.

``import margin_jax as mj`` loads jax and little else; names that need more (Flax, Orbax, data sets)
load when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from margin_jax.losses.balancing_margin import BalancingMarginLoss
from margin_jax.losses.base import Loss
from margin_jax.losses.batch_all import batch_all_triplet_loss, triplet_stats
from margin_jax.losses.classifier import ArcFaceLoss, CosFaceLoss
from margin_jax.losses.dynamic_soft_margin import DynamicSoftMarginLoss
from margin_jax.losses.effective_margin import effective_margin_histogram
from margin_jax.losses.fisher import FisherContrastiveLoss, FisherTripletLoss
from margin_jax.losses.mining import mining_schedule
from margin_jax.losses.shadow import ShadowLoss
from margin_jax.losses.supcon import SupConLoss
from margin_jax.losses.transplant import TransplantLoss
from margin_jax.losses.triplet import TripletLoss
from margin_jax.schedules import (
    Schedule,
    ScheduleState,
    automargin,
    clip_schedule,
    constant,
    cosine,
    dams,
    exponential,
    from_optax,
    hold_schedule,
    join_schedules,
    linear,
    litm,
    quantile_margin,
    replay,
    target_easy_fraction,
    warmup_schedule,
)
from margin_jax.stats import EpochStats, EpochTotals, TripletStats

if TYPE_CHECKING:
    from margin_jax.config import TrainConfig
    from margin_jax.data import load_dataset
    from margin_jax.data.augmentation import make_augment
    from margin_jax.data.dataset import Dataset
    from margin_jax.data.sampler import pk_batches
    from margin_jax.evaluation.all_pairs import all_pairs_report
    from margin_jax.evaluation.evaluate import Evaluation, evaluate
    from margin_jax.evaluation.identification import IdentificationReport, identification_report
    from margin_jax.evaluation.intervals import Intervals
    from margin_jax.evaluation.retrieval import RetrievalReport, retrieval_report
    from margin_jax.evaluation.verification import (
        VerificationReport,
        choose_threshold,
        verification_report,
    )
    from margin_jax.models.encoder import Encoder
    from margin_jax.plots import (
        plot_comparison,
        plot_contact_sheet,
        plot_det,
        plot_distances,
        plot_effective_margin,
        plot_loss,
        plot_margin,
        plot_roc,
    )
    from margin_jax.runs.arms import compare, vary
    from margin_jax.runs.comparison import Comparison
    from margin_jax.runs.features import extract_features
    from margin_jax.runs.fit import fit
    from margin_jax.runs.gallery import Gallery, load_gallery
    from margin_jax.runs.index import index
    from margin_jax.runs.load import load_pretrained, load_run
    from margin_jax.runs.run import Run
    from margin_jax.training.epoch import train_epoch
    from margin_jax.training.memory import Memory
    from margin_jax.training.record import DivergedError, EpochRecord
    from margin_jax.training.state import TrainState, create_state
    from margin_jax.training.step import make_train_step

__version__ = "0.2.0"

_LAZY = {
    "Comparison": "runs.comparison",
    "Encoder": "models.encoder",
    "Dataset": "data.dataset",
    "Evaluation": "evaluation.evaluate",
    "IdentificationReport": "evaluation.identification",
    "Intervals": "evaluation.intervals",
    "DivergedError": "training.record",
    "compare": "runs.arms",
    "EpochRecord": "training.record",
    "Gallery": "runs.gallery",
    "Memory": "training.memory",
    "RetrievalReport": "evaluation.retrieval",
    "Run": "runs.run",
    "TrainConfig": "config",
    "TrainState": "training.state",
    "VerificationReport": "evaluation.verification",
    "all_pairs_report": "evaluation.all_pairs",
    "choose_threshold": "evaluation.verification",
    "create_state": "training.state",
    "evaluate": "evaluation.evaluate",
    "extract_features": "runs.features",
    "fit": "runs.fit",
    "identification_report": "evaluation.identification",
    "index": "runs.index",
    "load_dataset": "data",
    "load_gallery": "runs.gallery",
    "load_pretrained": "runs.load",
    "load_run": "runs.load",
    "make_augment": "data.augmentation",
    "make_train_step": "training.step",
    "pk_batches": "data.sampler",
    "plot_comparison": "plots",
    "plot_contact_sheet": "plots",
    "plot_det": "plots",
    "plot_distances": "plots",
    "plot_effective_margin": "plots",
    "plot_loss": "plots",
    "plot_margin": "plots",
    "plot_roc": "plots",
    "retrieval_report": "evaluation.retrieval",
    "train_epoch": "training.epoch",
    "vary": "runs.arms",
    "verification_report": "evaluation.verification",
}

__all__ = [
    "ArcFaceLoss",
    "BalancingMarginLoss",
    "Comparison",
    "CosFaceLoss",
    "Dataset",
    "DivergedError",
    "DynamicSoftMarginLoss",
    "Encoder",
    "EpochRecord",
    "EpochStats",
    "EpochTotals",
    "Evaluation",
    "FisherContrastiveLoss",
    "FisherTripletLoss",
    "Gallery",
    "IdentificationReport",
    "Intervals",
    "Loss",
    "Memory",
    "RetrievalReport",
    "Run",
    "Schedule",
    "ScheduleState",
    "ShadowLoss",
    "SupConLoss",
    "TrainConfig",
    "TrainState",
    "TransplantLoss",
    "TripletLoss",
    "TripletStats",
    "VerificationReport",
    "all_pairs_report",
    "automargin",
    "batch_all_triplet_loss",
    "choose_threshold",
    "clip_schedule",
    "compare",
    "constant",
    "cosine",
    "create_state",
    "dams",
    "effective_margin_histogram",
    "evaluate",
    "exponential",
    "extract_features",
    "fit",
    "from_optax",
    "hold_schedule",
    "identification_report",
    "index",
    "join_schedules",
    "linear",
    "litm",
    "load_dataset",
    "load_gallery",
    "load_pretrained",
    "load_run",
    "make_augment",
    "make_train_step",
    "mining_schedule",
    "pk_batches",
    "plot_comparison",
    "plot_contact_sheet",
    "plot_det",
    "plot_distances",
    "plot_effective_margin",
    "plot_loss",
    "plot_margin",
    "plot_roc",
    "quantile_margin",
    "replay",
    "retrieval_report",
    "target_easy_fraction",
    "train_epoch",
    "triplet_stats",
    "vary",
    "verification_report",
    "warmup_schedule",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"margin_jax.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'margin_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
