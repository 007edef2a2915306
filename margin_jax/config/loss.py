"""Options of the margin and of the loss that it is for."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from margin_jax.choices import OWN, check_choice, one_of
from margin_jax.config.option import Option
from margin_jax.losses import LOSSES, make_loss, resolve_loss
from margin_jax.losses.base import Loss, takes_references
from margin_jax.losses.batch_all import REDUCTIONS
from margin_jax.losses.distances import DISTANCES
from margin_jax.losses.mining import mining_schedule, mining_starts
from margin_jax.losses.tile import MININGS
from margin_jax.schedules import SCHEDULES
from margin_jax.spec import kinds, leaves_open, parse

# Parameters of losses that have an option of their own, with its usual value; of mining, which may
# change by epoch, it is that of the first one.
_LOSS_OPTIONS = {"distance": "euclidean", "reduction": "mean_active", "mining": "all"}
# Likewise of schedules.
_MARGIN_OPTIONS = {"margin": 0.2, "margin_end": 1.0}


def margins_settled_by(schedule: str) -> dict[str, Any]:
    """The margins that the text of a schedule says.

    Raises:
        ValueError: as :func:`~margin_jax.schedules.resolve_schedule`.
    """
    if schedule == OWN:
        return {}
    known = {name: kinds(of) for name, of in SCHEDULES.items()}
    _, said = parse("a schedule", schedule, known, short=True)
    return {option: said[option] for option in _MARGIN_OPTIONS if option in said}


def free_of_schedule(schedule: str) -> dict[str, Any]:
    """Those with their usual values: what is left when another schedule takes its place."""
    return {option: _MARGIN_OPTIONS[option] for option in margins_settled_by(schedule)}


def settled_by(loss: str) -> dict[str, Any]:
    """The options that a loss leaves no choice of: its text says them, or it has one distance.

    Raises:
        ValueError: as :func:`~margin_jax.losses.resolve_loss`.
    """
    if loss == OWN:
        return {}
    _, values = resolve_loss(loss, {})
    said = {n: values[n] for n in _LOSS_OPTIONS if n in values and not leaves_open(loss, LOSSES, n)}
    return said if "distance" in values else {"distance": make_loss(loss, {}).distance, **said}


def free_of_loss(loss: str) -> dict[str, Any]:
    """Those options with their usual values: what is left when another loss takes its place."""
    return {option: _LOSS_OPTIONS[option] for option in settled_by(loss)}


def _known() -> str:
    return "; ".join(f"{name}: {', '.join(kinds(of))}" for name, of in LOSSES.items())


@dataclass(frozen=True, kw_only=True)
class MarginConfig:
    """How the margin moves."""

    PANEL: ClassVar[str] = "Margin"

    schedule: Annotated[
        str,
        Option(
            "How the margin changes: dams raises it by 0.05 after each epoch in which at least "
            "95 % of the triplets are easy; linear, exponential, cosine and litm go from --margin "
            "to --margin-end over the run; constant keeps it. NAME:KEY=VALUE,... sets any "
            "parameter, as in dams:threshold=0.8,increase=0.1; `margin-jax schedules` lists them. "
            f"{one_of(SCHEDULES)}",
        ),
    ] = "dams"
    margin: Annotated[float, Option("The margin in the first epoch.")] = _MARGIN_OPTIONS["margin"]
    margin_end: Annotated[
        float, Option("linear, exponential, cosine, litm: the margin in the last epoch.")
    ] = _MARGIN_OPTIONS["margin_end"]

    def _check_margins(self) -> None:
        """And keeps what the schedule's text says where reports look it up."""
        for option, settled in margins_settled_by(self.schedule).items():
            given = getattr(self, option)
            if given not in (_MARGIN_OPTIONS[option], settled):
                raise ValueError(
                    f"{option} must be {settled}, as schedule {self.schedule} says; got {given}"
                )
            object.__setattr__(self, option, settled)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What trains the network, and on which triplets."""

    PANEL: ClassVar[str] = "Loss"

    loss: Annotated[
        str,
        Option(
            "The training loss: NAME or NAME:KEY=VALUE,..., as in triplet:swap=true. Losses and "
            f"their parameters: {_known()}. distance, reduction and mining can also be set by "
            "--distance, --reduction and --mining.",
        ),
    ] = "triplet"
    distance: Annotated[
        str,
        Option(
            f"The distance between embeddings; some losses fix it. {one_of(DISTANCES)}",
        ),
    ] = _LOSS_OPTIONS["distance"]
    reduction: Annotated[
        str,
        Option(
            "mean_active: the mean over triplets with a loss above 0; mean: over all valid "
            "triplets. "
            f"{one_of(REDUCTIONS)}",
        ),
    ] = _LOSS_OPTIONS["reduction"]
    mining: Annotated[
        str,
        Option(
            "Which active triplets train the network; batch_hard: the hardest one of each image; "
            f"all,11:semihard: all of them, and from epoch 11 the semihard. {one_of(MININGS)}",
        ),
    ] = _LOSS_OPTIONS["mining"]
    histogram: Annotated[
        bool,
        Option(
            "Also record quantiles of the effective margin d(a,n) - d(a,p), estimated from a "
            "sample, and plot them."
        ),
    ] = False
    memory: Annotated[
        int | None,
        Option(
            "How many embeddings of earlier batches to keep; each image is compared with them too, "
            "and this loss is added to the batch's own (arXiv 1912.06798). Default: none.",
            1,
            92_681,
        ),
    ] = None
    memory_warmup: Annotated[
        int,
        Option("Fill --memory without using it for this many steps, while weights change fast."),
    ] = 0

    def _check_loss(self) -> None:
        """And keeps what the loss's text says where reports look it up."""
        check_choice("distance", self.distance, DISTANCES)
        check_choice("reduction", self.reduction, REDUCTIONS)
        starts = mining_starts(self.mining)
        if self.loss != OWN:
            self._check_named_loss(starts)
        if self.memory_warmup and self.memory is None:
            raise ValueError(f"memory_warmup is for memory; got {self.memory_warmup} without it")

    def _check_named_loss(self, starts: dict[int, str]) -> None:
        (loss, *_) = [self.make_loss(epoch) for epoch in starts]
        name, _ = resolve_loss(self.loss, {})
        settled = settled_by(self.loss)
        for option, usual in _LOSS_OPTIONS.items():
            given = getattr(self, option)
            if option in settled and given in (usual, settled[option]):
                object.__setattr__(self, option, settled[option])
            elif option not in kinds(LOSSES[name]) and given != usual:
                having = [n for n, of in LOSSES.items() if option in kinds(of)]
                raise ValueError(
                    f"{option} is for {', '.join(having)}; got {given} with loss {name}"
                )
            elif option in settled:
                raise ValueError(
                    f"{option} must be {settled[option]}, as loss {self.loss} says; got {given}"
                )
        if self.memory is not None and not takes_references(loss):
            raise ValueError(f"memory is for losses over triplets; got it with loss {name}")

    def make_loss(self, epoch: int) -> Loss:
        """The loss of an epoch, from 1; not one's own."""
        return make_loss(self.loss, self._loss_options(epoch))

    def _loss_options(self, epoch: int) -> dict[str, Any]:
        options: dict[str, Any] = {name: getattr(self, name) for name in _LOSS_OPTIONS}
        return options | {"mining": mining_schedule(self.mining)(epoch)}
