"""Options of the margin and of the loss that it is for."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from margin_jax.choices import check_choice, one_of
from margin_jax.config.option import Option
from margin_jax.losses import LOSSES, make_loss, resolve_loss
from margin_jax.losses.base import OWN, Loss
from margin_jax.losses.batch_all import REDUCTIONS
from margin_jax.losses.distances import DISTANCES
from margin_jax.losses.mining import mining_schedule, mining_starts
from margin_jax.losses.tile import MININGS
from margin_jax.schedules import SCHEDULES

# Parameters of losses that have an option of their own; mining too, which may change by epoch.
_LOSS_OPTIONS = ("distance", "reduction")


@dataclass(frozen=True, kw_only=True)
class MarginConfig:
    """How the margin moves."""

    PANEL: ClassVar[str] = "Margin"

    schedule: Annotated[
        str,
        Option(
            "How the margin moves: dams raises it by .05 after every epoch with 95 % of easy "
            "triplets or more; linear, exponential, cosine and litm go from --margin to "
            "--margin-end over the run; constant stays. NAME:KEY=VALUE,... sets any parameter, as "
            "in dams:threshold=0.8,increase=0.1; `margin-jax schedules` lists them. "
            f"{one_of(SCHEDULES)}",
        ),
    ] = "dams"
    margin: Annotated[float, Option("The margin in the first epoch.")] = 0.2
    margin_end: Annotated[
        float, Option("linear, exponential, cosine, litm: the margin in the last epoch.")
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What trains the network, and on which triplets."""

    PANEL: ClassVar[str] = "Loss"

    loss: Annotated[
        str,
        Option(
            "What trains the network: NAME or NAME:KEY=VALUE,..., as in triplet:swap=true; triplet "
            "has distance, reduction, mining, swap and soft, of which the first three are options "
            "too. "
            f"{one_of(LOSSES)}",
        ),
    ] = "triplet"
    distance: Annotated[str, Option(f"Between embeddings. {one_of(DISTANCES)}")] = "euclidean"
    reduction: Annotated[
        str,
        Option(
            "mean_active: over triplets with a loss; mean: over all valid ones. "
            f"{one_of(REDUCTIONS)}",
        ),
    ] = "mean_active"
    mining: Annotated[
        str,
        Option(
            "Which active triplets train; batch_hard: of each image the hardest one; "
            f"all,11:semihard changes in epoch 11. {one_of(MININGS)}",
        ),
    ] = "all"
    histogram: Annotated[
        bool,
        Option("Also record quantiles of the effective margins, from a sample, and draw."),
    ] = False
    memory: Annotated[
        int | None,
        Option(
            "So many embeddings of earlier batches, to compare every image with as well: the loss "
            "is that of the batch plus that of its images with the memory (arXiv 1912.06798). "
            "Default: no memory.",
            1,
            92_681,
        ),
    ] = None
    memory_warmup: Annotated[
        int,
        Option("Steps in which the memory is only filled, as the network still moves fast."),
    ] = 0

    def _check_loss(self) -> None:
        """And keeps what the loss's text says where reports look it up."""
        check_choice("distance", self.distance, DISTANCES)
        check_choice("reduction", self.reduction, REDUCTIONS)
        starts = mining_starts(self.mining)
        if self.loss != OWN:
            _, values = resolve_loss(self.loss, self._loss_options(1))
            for epoch in starts:
                self.make_loss(epoch)
            for name in set(_LOSS_OPTIONS) & set(values):
                object.__setattr__(self, name, values[name])
        if self.memory_warmup and self.memory is None:
            raise ValueError(f"memory_warmup is for memory; got {self.memory_warmup} without it")

    def make_loss(self, epoch: int) -> Loss:
        """The loss of an epoch, from 1; not one's own."""
        return make_loss(self.loss, self._loss_options(epoch))

    def _loss_options(self, epoch: int) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in _LOSS_OPTIONS}
        return options | {"mining": mining_schedule(self.mining)(epoch)}
