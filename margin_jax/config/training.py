"""Options of the optimisation: epochs, batches, optimiser, and how the best epoch is chosen."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from margin_jax.choices import check_choice, one_of
from margin_jax.config.option import Option
from margin_jax.data.augmentation import make_augment
from margin_jax.data.sampler import SAMPLERS, SMALL_IDENTITIES
from margin_jax.training.optimizers import LEARNING_RATES, OPTIMIZERS, make_optimizer

SELECTIONS = ("auc", "loss")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in which batches, and by which steps."""

    PANEL: ClassVar[str] = "Training"

    epochs: Annotated[int, Option("Times through the training identities.", 1, 10**6)] = 30
    # Of larger seeds JAX takes 32 bits.
    seed: Annotated[int, Option("Of weights, split, batches, pairs.", 0, 2**32 - 1)] = 0
    optimizer: Annotated[
        str,
        Option(f"NAME or NAME:KEY=VALUE,..., as in adam:b1=0.8. {one_of(OPTIMIZERS)}"),
    ] = "adam"
    learning_rate: Annotated[float, Option("The peak learning rate.")] = 1e-3
    learning_rate_schedule: Annotated[
        str,
        Option(
            "constant; exponential: to 1 % over the run; step97: 3 % less every 2.4 epochs; "
            f"warmup_linear: up over a tenth, then down to 1 %. {one_of(LEARNING_RATES)}",
        ),
    ] = "constant"
    identities_per_batch: Annotated[
        int | None,
        Option("P of the PK sampler. Default: 32, or what fewer identities allow.", 2),
    ] = None
    images_per_identity: Annotated[
        int | None,
        Option("K of the PK sampler. Default: 2, or what makes 64 rows of fewer.", 2),
    ] = None
    small_identities: Annotated[
        str,
        Option(
            f"What to do with identities of fewer than K images. {one_of(SMALL_IDENTITIES)}",
        ),
    ] = "drop"
    sampler: Annotated[
        str,
        Option(
            "pk: an image at most once an epoch, which ends when fewer than P identities have K "
            "unused images; balanced: every image of identities with at least K of them. "
            f"{one_of(SAMPLERS)}",
        ),
    ] = "pk"
    fillers: Annotated[
        int,
        Option("Images of small identities that every batch has besides P x K."),
    ] = 0
    microbatch: Annotated[
        int | None,
        Option(
            "Rows that go through the network at once, for batches larger than memory: loss and "
            "gradient stay those of the whole batch, BatchNorm's statistics are those of so many "
            "rows. It divides the batch. Default: the whole batch.",
            1,
        ),
    ] = None
    augment: Annotated[
        str,
        Option(
            "none, or some of flip, shift:PIXELS, crop:SHARE (least share of the side), separated "
            "by commas: random changes to the training images.",
        ),
    ] = "none"
    devices: Annotated[
        int | None,
        Option("Devices that share a batch. Default: all accelerators, or one CPU.", 1),
    ] = None
    select: Annotated[
        str,
        Option(
            "The best epoch: highest validation AUC, or (the released code's rule) lowest mean "
            f"batch-all loss at a margin of 1 on validation. {one_of(SELECTIONS)}",
        ),
    ] = "auc"
    fmr: Annotated[
        float | None,
        Option(
            "The false match rate for which the threshold is chosen on validation, such as 0.001. "
            "Default: the point of the ROC nearest to no errors.",
            1e-6,
            0.5,
        ),
    ] = None
    patience: Annotated[
        int | None,
        Option(
            "Stop early, after so many epochs without a better one by --select. What is laid out "
            "over --epochs, such as the learning rate, stays as it is. Default: never.",
            1,
        ),
    ] = None

    def _check_training(self) -> None:
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be above 0; got 0.0")
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
