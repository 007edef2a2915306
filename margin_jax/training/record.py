"""What an epoch was: its sums while it is trained, and the record that it leaves."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from margin_jax.stats import EpochTotals


class DivergedError(FloatingPointError):
    """A loss or a gradient is not finite.

    Attributes:
        epoch, step: of the first such step, both from 1, the step within the epoch.
    """

    def __init__(self, message: str, epoch: int, step: int) -> None:
        super().__init__(message, epoch, step)  # all of them, so that it can be pickled
        self.epoch, self.step = epoch, step

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class EpochPart:
    """What is done of an epoch, as plain numbers.

    Attributes:
        steps, images: how many.
        loss, gradient_norm: sums over the steps.
        seconds, waited: of training, and those of them in which the host waited for `batches`.
        totals: of the triplets.
        memory: of those with a cross-batch memory, if there is one.
        idle_steps: those whose loss was 0.
    """

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    totals: EpochTotals = field(default_factory=EpochTotals)
    memory: EpochTotals | None = None
    idle_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values; exact, as Python writes integers and floats without loss."""
        memory = None if self.memory is None else self.memory.to_json()
        return {**dataclasses.asdict(self), "totals": self.totals.to_json(), "memory": memory}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EpochPart":
        """The inverse of :meth:`to_json`."""
        memory = values.get("memory")  # which earlier versions did not have
        return cls(
            **{
                **values,
                "totals": EpochTotals.from_json(values["totals"]),
                "memory": None if memory is None else EpochTotals.from_json(memory),
            }
        )


@dataclass(frozen=True)
class EpochRecord:
    """The record of one epoch of training, in plain Python numbers.

    Attributes:
        epoch: from 1.
        margin: the margin in force during the epoch.
        next_margin: the margin of the next epoch.
        loss: mean loss of the steps, including that of the memory if there is one.
        gradient_norm: mean norm of the steps' gradients; NaN if the steps do not report it.
        valid, easy, semihard, hard: exact numbers of triplets, counted during training.
        easy_fraction: easy / valid. NaN if there was no triplet, like the effective margins below.
        mean_ap, mean_an: mean distance over positive and over negative pairs; NaN without any.
        mean_effective, std_effective: of d(a,n) − d(a,p) over all valid triplets.
        effective_quantiles: of d(a,n) − d(a,p), the 1, 5, 25, 50, 75, 95 and 99 % quantiles of a
            sample; None if the step keeps no histogram.
        steps: optimiser steps.
        images: images trained on.
        seconds: wall time of training, without validation.
        images_per_second: images / seconds.
        data_wait: share of `seconds` in which the host waited for `batches`, 0 to 1.
        collapsed: whether all embeddings are nearly the same: the mean distances are at most a
            tenth of the margin, so the loss is stuck near μ.
        memory: exact numbers of triplets with positive and negative in a cross-batch memory: valid,
            easy, semihard and hard. They are not included above. None without a memory.
        idle_steps: steps whose loss was exactly 0, so they trained nothing. Of interest for a loss
            with one hinge per batch, such as :class:`~margin_jax.FisherTripletLoss`.
    """

    epoch: int
    margin: float
    next_margin: float
    loss: float
    gradient_norm: float
    valid: int
    easy: int
    semihard: int
    hard: int
    easy_fraction: float
    mean_ap: float
    mean_an: float
    mean_effective: float
    std_effective: float
    effective_quantiles: list[float] | None  # as JSON has it
    steps: int
    images: int
    seconds: float
    images_per_second: float
    data_wait: float
    collapsed: bool
    memory: dict[str, int] | None = None
    idle_steps: int = 0
