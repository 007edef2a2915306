"""Options of the optimisation: epochs, batches, optimiser, and how the best epoch is chosen."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from margin_jax.choices import OWN, check_choice, one_of
from margin_jax.config.option import Option
from margin_jax.data.augmentation import make_augment
from margin_jax.data.sampler import SAMPLERS, SMALL_IDENTITIES
from margin_jax.training.optimizers import LEARNING_RATES, OPTIMIZERS, make_optimizer

SELECTIONS = ("auc", "loss")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in which batches, and by which steps."""

    PANEL: ClassVar[str] = "Training"

    epochs: Annotated[int, Option("Number of epochs.", 1, 10**6)] = 30
    # Of larger seeds JAX takes 32 bits.
    seed: Annotated[
        int, Option("The random seed of weights, split, batches and pairs.", 0, 2**32 - 1)
    ] = 0
    optimizer: Annotated[
        str,
        Option(f"NAME or NAME:KEY=VALUE,..., as in adam:b1=0.8. {one_of(OPTIMIZERS)}"),
    ] = "adam"
    learning_rate: Annotated[float, Option("The peak learning rate.")] = 1e-3
    learning_rate_schedule: Annotated[
        str,
        Option(
            "exponential: decay to 1 % of the peak over the run; step97: 3 % less every 2.4 "
            "epochs; warmup_linear: rise for the first tenth of the run, then fall to 1 %. "
            f"{one_of(LEARNING_RATES)}",
        ),
    ] = "constant"
    identities_per_batch: Annotated[
        int | None,
        Option("P of the PK sampler. Default: 32; fewer if the data has fewer identities.", 2),
    ] = None
    images_per_identity: Annotated[
        int | None,
        Option(
            "K of the PK sampler. Default: 2; more if the data has fewer than 32 identities, up to "
            "64 images a batch.",
            2,
        ),
    ] = None
    small_identities: Annotated[
        str,
        Option(
            "What to do with identities that have fewer than K images: drop them, repeat their "
            f"images, or stop with an error. {one_of(SMALL_IDENTITIES)}",
        ),
    ] = "drop"
    sampler: Annotated[
        str,
        Option(
            "pk: uses each image at most once per epoch and ends the epoch when fewer than P "
            "identities have K unused images; balanced: uses every image of each identity that "
            "has at least K. "
            f"{one_of(SAMPLERS)}",
        ),
    ] = "pk"
    fillers: Annotated[
        int,
        Option("Images of dropped small identities to add to each batch, as more negatives."),
    ] = 0
    microbatch: Annotated[
        int | None,
        Option(
            "How many images go through the network at once, for batches that do not fit into "
            "memory. Loss and gradient are those of the whole batch, but BatchNorm sees one "
            "microbatch at a time. Must divide the batch size. Default: the whole batch.",
            1,
        ),
    ] = None
    augment: Annotated[
        str,
        Option(
            "Random changes to training images: none, or a comma-separated list of flip, "
            "shift:PIXELS and crop:SHARE (the smallest crop, as a share of the image's side).",
        ),
    ] = "none"
    devices: Annotated[
        int | None,
        Option("How many devices share each batch. Default: all accelerators, or one CPU.", 1),
    ] = None
    select: Annotated[
        str,
        Option(
            "How the best epoch is chosen on validation: auc: highest AUC; loss: lowest mean "
            f"batch-all loss at margin 1, as in the paper's code. {one_of(SELECTIONS)}",
        ),
    ] = "auc"
    fmr: Annotated[
        float | None,
        Option(
            "Choose the threshold for this false match rate on validation, such as 0.001. Default: "
            "the threshold whose ROC point is nearest to (0, 1), no errors.",
            1e-6,
            0.5,
        ),
    ] = None
    patience: Annotated[
        int | None,
        Option(
            "Stop after this many epochs without a better one (by --select). Schedules of margin "
            "and learning rate still span --epochs. Default: never stop early.",
            1,
        ),
    ] = None

    def _check_training(self) -> None:
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be above 0; got 0.0")
        if self.optimizer != OWN:
            make_optimizer(self.optimizer, self.learning_rate, self.learning_rate_schedule, 1, 1)
        check_choice("small_identities", self.small_identities, SMALL_IDENTITIES)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("select", self.select, SELECTIONS)
        make_augment(self.augment)
        if self.identities_per_batch is not None and self.images_per_identity is None:
            object.__setattr__(self, "images_per_identity", 2)  # only both can follow the data
        settled = self.identities_per_batch is not None
        if self.microbatch is not None and settled and self.batch_size % self.microbatch:
            raise ValueError(
                f"microbatch must divide the batch, here of {self.batch_size} rows; "
                f"got {self.microbatch}"
            )

    @property
    def batch_size(self) -> int:
        """Rows of a batch.

        Raises:
            ValueError: if P and K still have to follow the data, as the training settles them.
        """
        if self.identities_per_batch is None or self.images_per_identity is None:
            raise ValueError("identities_per_batch and images_per_identity follow the data")
        return self.identities_per_batch * self.images_per_identity + self.fillers
