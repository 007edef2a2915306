"""What a run is: one frozen dataclass, also the source of the command line's options."""

import dataclasses
import json
import math
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from margin_jax import loss as losses
from margin_jax.augmentation import make_augment
from margin_jax.choices import check_choice, one_of
from margin_jax.data import DATASETS, OWN, check_dataset, tfds
from margin_jax.data.folder import REPEATED_NAMES
from margin_jax.data.images import FITS, TRANSPARENCIES
from margin_jax.data.sampler import SAMPLERS, SMALL_IDENTITIES
from margin_jax.data.splits import check_split
from margin_jax.distances import DISTANCES
from margin_jax.encoders import DTYPES, ENCODERS, PRETRAINED, resolve_encoder
from margin_jax.files import local_path, parse_json
from margin_jax.losses import REDUCTIONS
from margin_jax.mining import mining_schedule, mining_starts
from margin_jax.optimizers import LEARNING_RATES, OPTIMIZERS, make_optimizer
from margin_jax.schedules import SCHEDULES, Schedule, make_schedule, resolve_schedule
from margin_jax.tile import MININGS


class Option(NamedTuple):
    """How an option is shown by ``--help``, and the least and most that its number may be."""

    panel: str
    help: str
    least: float = 0
    most: float = 1e38  # what float32 can hold


# Parameters of schedules that have an option of their own.
_SCHEDULE_OPTIONS = ("margin", "margin_end", "threshold", "increase", "epochs")
# And of losses; mining has one too, which may change with the epochs.
_LOSS_OPTIONS = ("distance", "reduction")
# And of encoders, with what they are unless they are said.
_ENCODER_OPTIONS = {"width": 1.0, "small_stem": False, "dtype": "float32"}
SELECTIONS = ("auc", "loss")
# Fields that decide where and how a run goes, but not its result.
_NOT_THE_RESULT = {"out", "overwrite", "resume", "allow_changes", "checkpoint_steps", "devices"}
_NOT_THE_RESULT |= {"memory_limit", "manual_dir"}
# Runs of an earlier time, whose configuration does not say, were made as if it said this.
_UNSAID = {"fit": "stretch", "transparency": "ignore", "repeated_names": "separate"}


_PATHS = ("data_dir", "manual_dir", "weights", "split", "out")


def as_file_name(text: str) -> str:
    """A schedule or a dataset without signs that mean something to a shell or a file system."""
    return text.translate(str.maketrans(":,/", "---", "= "))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides how a run goes. The defaults train on glyphs with DAMS.

    Raises:
        ValueError: for values that no run can have; the message says what was expected.
    """

    dataset: Annotated[
        str,
        Option(
            "Data",
            "glyphs: letters in twelve typefaces, nothing to download; folder: your own images in "
            "--data-dir; tfds:NAME[:CONFIG]: of TensorFlow Datasets; `margin-jax datasets` lists "
            f"some. {one_of(DATASETS)}",
        ),
    ] = "glyphs"
    data_dir: Annotated[
        str | None,
        Option(
            "Data",
            "folder: a folder of images for each identity; it may be nested. tfds: where the "
            "prepared datasets lie, by default ~/tensorflow_datasets.",
        ),
    ] = None
    manual_dir: Annotated[
        str | None,
        Option("Data", "tfds: a folder of files that would be downloaded, or that only you can."),
    ] = None
    label_key: Annotated[
        str | None,
        Option("Data", "tfds: the feature that names the identity. Default: the label."),
    ] = None
    image_size: Annotated[
        int | None,
        Option("Data", "Pixels a side. Default: 28 for glyphs, 64, or the preset's.", 8),
    ] = None
    split: Annotated[
        str | None,
        Option(
            "Data",
            "Identities of training/validation/test: percentages; halves: the first half of the "
            "identities trains, the second is the test; or a .json file with lists of names, such "
            "as a run's data.json. Default: 40/10/50; tfds:mnist and tfds:fashion_mnist 40/20/40.",
        ),
    ] = None
    strict: Annotated[
        bool, Option("Data", "An unreadable file is an error instead of being skipped.")
    ] = False
    repeated_names: Annotated[
        str,
        Option(
            "Data",
            "folder: what train/anna and val/anna are. error: they are refused; merge: one "
            f"identity; separate: two. {one_of(REPEATED_NAMES)}",
        ),
    ] = "error"
    fit: Annotated[
        str,
        Option(
            "Data",
            "How pictures become squares. pad: whole, in their own shape, the rest filled by "
            "repeating their edge; crop: the middle; stretch: whole, but out of shape. "
            f"{one_of(FITS)}",
        ),
    ] = "pad"
    bits: Annotated[
        int,
        Option("Data", "How many of their 16 bits files use, 10 or 12 of many cameras.", 8, 16),
    ] = 16
    transparency: Annotated[
        str,
        Option(
            "Data",
            "white: what is transparent is laid on white; ignore: the colours below are taken, "
            f"which often are all black. {one_of(TRANSPARENCIES)}",
        ),
    ] = "white"
    max_identities: Annotated[
        int | None, Option("Data", "Use only the first so many identities, for a quick try.", 6)
    ] = None
    memory_limit: Annotated[
        float,
        Option(
            "Data",
            "Gigabytes (2^30). Images that take more (files counted in colour) are not held in "
            "memory but decoded anew for every batch.",
            most=math.inf,
        ),
    ] = 4.0

    schedule: Annotated[
        str,
        Option(
            "Margin",
            "How the margin moves: dams raises it by --increase after every epoch with a share of "
            "easy triplets of at least --threshold; linear, exponential, cosine and litm go from "
            "--margin to --margin-end over the run; constant stays. NAME:KEY=VALUE,... sets any "
            f"parameter; `margin-jax schedules` lists them. {one_of(SCHEDULES)}",
        ),
    ] = "dams"
    margin: Annotated[float, Option("Margin", "The margin in the first epoch.")] = 0.2
    margin_end: Annotated[
        float, Option("Margin", "linear, exponential, cosine, litm: the margin in the last epoch.")
    ] = 1.0
    threshold: Annotated[
        float, Option("Margin", "dams: the share of easy triplets that is too many.", 0, 1)
    ] = 0.95
    increase: Annotated[float, Option("Margin", "dams: what is then added to the margin.")] = 0.05

    loss: Annotated[
        str,
        Option(
            "Loss",
            "What trains the network: NAME or NAME:KEY=VALUE,...; triplet, with distance, "
            "reduction, mining, swap and soft, of which the next options set the first three. "
            f"{one_of(losses.LOSSES)}",
        ),
    ] = "triplet"
    distance: Annotated[str, Option("Loss", f"Between embeddings. {one_of(DISTANCES)}")] = (
        "euclidean"
    )
    reduction: Annotated[
        str,
        Option(
            "Loss",
            "mean_active: over triplets with a loss; mean: over all valid ones. "
            f"{one_of(REDUCTIONS)}",
        ),
    ] = "mean_active"
    mining: Annotated[
        str,
        Option(
            "Loss",
            "Which active triplets train; batch_hard: of each image the hardest one; "
            f"all,11:semihard changes in epoch 11. {one_of(MININGS)}",
        ),
    ] = "all"
    histogram: Annotated[
        bool,
        Option("Loss", "Also record quantiles of the effective margins, from a sample, and draw."),
    ] = False

    memory: Annotated[
        int | None,
        Option(
            "Loss",
            "So many embeddings of earlier batches, to compare every image with as well: the loss "
            "is that of the batch plus that of its images with the memory (arXiv 1912.06798). "
            "Default: no memory.",
            1,
            92_681,
        ),
    ] = None
    memory_warmup: Annotated[
        int,
        Option(
            "Loss", "Steps in which the memory is only filled, as the network still moves fast."
        ),
    ] = 0

    epochs: Annotated[int, Option("Training", "Times through the training identities.", 1)] = 30
    # Of larger seeds JAX takes 32 bits.
    seed: Annotated[int, Option("Training", "Of weights, split, batches, pairs.", 0, 2**32 - 1)] = 0
    optimizer: Annotated[
        str,
        Option("Training", f"NAME or NAME:KEY=VALUE,..., as in adam:b1=0.8. {one_of(OPTIMIZERS)}"),
    ] = "adam"
    learning_rate: Annotated[float, Option("Training", "At its highest.")] = 1e-3
    learning_rate_schedule: Annotated[
        str,
        Option(
            "Training",
            "constant; exponential: to 1 % over the run; step97: 3 % less every 2.4 epochs; "
            f"warmup_linear: up over a tenth, then down to 1 %. {one_of(LEARNING_RATES)}",
        ),
    ] = "constant"
    identities_per_batch: Annotated[
        int | None,
        Option("Training", "P of the PK sampler. Default: 32, or what fewer identities allow.", 2),
    ] = None
    images_per_identity: Annotated[
        int | None,
        Option("Training", "K of the PK sampler. Default: 2, or what makes 64 rows of fewer.", 2),
    ] = None
    small_identities: Annotated[
        str,
        Option(
            "Training",
            f"What to do with identities of fewer than K images. {one_of(SMALL_IDENTITIES)}",
        ),
    ] = "drop"
    sampler: Annotated[
        str,
        Option(
            "Training",
            "pk: an image at most once an epoch, which ends when fewer than P identities have K "
            "unused images; balanced: every image of identities with at least K of them. "
            f"{one_of(SAMPLERS)}",
        ),
    ] = "pk"
    fillers: Annotated[
        int,
        Option("Training", "Images of small identities that every batch has besides P x K."),
    ] = 0
    microbatch: Annotated[
        int | None,
        Option(
            "Training",
            "Rows that go through the network at once, for batches larger than memory: loss and "
            "gradient stay those of the whole batch, BatchNorm's statistics are those of so many "
            "rows. It divides the batch. Default: the whole batch.",
            1,
        ),
    ] = None
    augment: Annotated[
        str,
        Option(
            "Training",
            "none, or some of flip, shift:PIXELS, crop:SHARE (least share of the side), separated "
            "by commas: random changes to the training images.",
        ),
    ] = "none"
    encoder: Annotated[
        str,
        Option(
            "Network",
            "The network: NAME or NAME:KEY=VALUE,..., as in nn2:small_stem=true; the next options "
            f"set the same. {one_of(ENCODERS)}",
        ),
    ] = "small_cnn"
    pretrained: Annotated[
        bool,
        Option(
            "Network",
            "Begin with weights trained on ImageNet, from the Hugging Face hub. For "
            f"{', '.join(PRETRAINED)}.",
        ),
    ] = False
    weights: Annotated[
        str | None,
        Option("Network", "Begin with the weights of a safetensors file of the same tensors."),
    ] = None
    freeze: Annotated[
        int,
        Option("Network", "Epochs, as long as the first, for the head alone; not of small_cnn."),
    ] = 0
    small_stem: Annotated[
        bool,
        Option("Network", "The first layer keeps the size, 28 to 64 pixels; not of small_cnn."),
    ] = False
    width: Annotated[
        float, Option("Network", "small_cnn: channels, as a multiple of 32, 64, 128 and 128.")
    ] = 1.0
    dtype: Annotated[str, Option("Network", f"Of the computation. {one_of(DTYPES)}")] = "float32"
    devices: Annotated[
        int | None,
        Option("Training", "Devices that share a batch. Default: all accelerators, or one CPU.", 1),
    ] = None
    embedding_size: Annotated[int, Option("Network", "Length of an embedding.", 1, 2**16)] = 128
    select: Annotated[
        str,
        Option(
            "Training",
            "The best epoch: highest validation AUC, or (the released code's rule) lowest mean "
            f"batch-all loss at a margin of 1 on validation. {one_of(SELECTIONS)}",
        ),
    ] = "auc"

    out: Annotated[
        str | None,
        Option(
            "Run",
            "The run folder. Default: runs/DATASET-SCHEDULE-SEED; DATASET is folder-NAME of images "
            "of your own.",
        ),
    ] = None
    overwrite: Annotated[bool, Option("Run", "Replace a run that is in the run folder.")] = False
    resume: Annotated[
        bool, Option("Run", "Go on from the last checkpoint, if the run folder has one.")
    ] = False
    allow_changes: Annotated[
        bool, Option("Run", "Resume with another learning rate, mining, schedule (not all) or so.")
    ] = False
    checkpoint_steps: Annotated[
        int, Option("Run", "Save the place every so many steps, too, not only after epochs.", 1)
    ] = 1000

    def __post_init__(self) -> None:
        """Checks everything that can be checked without looking at the data."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be above 0; got 0.0")
        check_dataset(_dataset_as_meant(self.dataset))
        self._settle_encoder()
        choices: dict[str, Iterable[str]] = {
            "distance": DISTANCES,
            "reduction": REDUCTIONS,
            "small_identities": SMALL_IDENTITIES,
            "sampler": SAMPLERS,
            "dtype": DTYPES,
            "learning_rate_schedule": LEARNING_RATES,
            "select": SELECTIONS,
            "fit": FITS,
            "transparency": TRANSPARENCIES,
            "repeated_names": REPEATED_NAMES,
        }
        for name, names in choices.items():
            check_choice(name, getattr(self, name), names)
        make_optimizer(self.optimizer, self.learning_rate, self.learning_rate_schedule, 1, 1)
        _, parameters = self.schedule_parameters()
        for name in {"margin", "margin_end"} & set(parameters):
            if not parameters[name] >= 0:
                raise ValueError(f"{name} must be at least 0; got {parameters[name]}")
        self.make_schedule()
        self._settle_loss()
        make_augment(self.augment)
        if self.split is not None:
            check_split(self.split)
        if self.dataset == "folder" and self.data_dir is None:
            raise ValueError("dataset folder needs data_dir, the folder of images")
        tfds = self.dataset.startswith("tfds:")
        if self.dataset != "folder" and not tfds and self.data_dir is not None:
            raise ValueError(f"data_dir is for dataset folder or tfds; got it with {self.dataset}")
        for name in ("manual_dir", "label_key"):
            if getattr(self, name) is not None and not tfds:
                raise ValueError(f"{name} is for datasets tfds:NAME; got it with {self.dataset}")
        if self.identities_per_batch is not None and self.images_per_identity is None:
            object.__setattr__(self, "images_per_identity", 2)  # only both can follow the data
        settled = self.identities_per_batch is not None
        if self.microbatch is not None and settled and self.batch_size % self.microbatch:
            raise ValueError(
                f"microbatch must divide the batch, here of {self.batch_size} rows; "
                f"got {self.microbatch}"
            )
        if self.memory_warmup and self.memory is None:
            raise ValueError(f"memory_warmup is for memory; got {self.memory_warmup} without it")
        if self.overwrite and self.resume:
            raise ValueError("overwrite and resume exclude each other")
        if self.begins_with_weights:
            check_choice("encoder with weights", self.encoder_name, PRETRAINED)
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights exclude each other")
        if self.freeze and self.encoder_name == "small_cnn":
            raise ValueError("freeze is for encoders with a head of their own; got small_cnn")
        for name in _PATHS:
            value = getattr(self, name)
            if value is None or (name == "split" and not str(value).endswith(".json")):
                continue
            # Text, as JSON has no paths; absolute, so that a run can be resumed from anywhere.
            path = local_path(name, value)
            object.__setattr__(self, name, str(path if name == "out" else path.absolute()))

    def make_schedule(self) -> Schedule:
        """The schedule with its parameters."""
        return make_schedule(self.schedule, self._schedule_options())

    def schedule_parameters(self) -> tuple[str, dict[str, Any]]:
        """The schedule's name, and the value of each of its parameters."""
        return resolve_schedule(self.schedule, self._schedule_options())

    def _schedule_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SCHEDULE_OPTIONS}

    def make_loss(self, epoch: int) -> losses.Loss:
        """The loss of an epoch, from 1; not one's own."""
        return losses.make_loss(self.loss, self._loss_options(epoch))

    def _loss_options(self, epoch: int) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in _LOSS_OPTIONS}
        return options | {"mining": mining_schedule(self.mining)(epoch)}

    def _settle_loss(self) -> None:
        """Checks the loss, and keeps what its text says where reports look it up."""
        mining_schedule(self.mining)
        if self.loss == losses.OWN:
            return
        _, values = losses.resolve_loss(self.loss, self._loss_options(1))
        for name in set(_LOSS_OPTIONS) & set(values):
            object.__setattr__(self, name, values[name])
        for epoch in mining_starts(self.mining):
            self.make_loss(epoch)

    @property
    def encoder_name(self) -> str:
        """The encoder's name, or "own"."""
        return self.encoder.partition(":")[0]

    def encoder_parameters(self) -> tuple[str, dict[str, Any]]:
        """The encoder's name, and the value of each of its parameters; not of one's own."""
        return resolve_encoder(
            self.encoder, {name: getattr(self, name) for name in _ENCODER_OPTIONS}
        )

    def _settle_encoder(self) -> None:
        """Checks the encoder, and that options are ones that it has."""
        own = self.encoder == OWN
        name, values = (OWN, {}) if own else self.encoder_parameters()
        for option, usual in _ENCODER_OPTIONS.items():
            if option in values:
                object.__setattr__(self, option, values[option])
            elif getattr(self, option) != usual:
                having = [n for n, named in ENCODERS.items() if option in named.parameters]
                raise ValueError(
                    f"{option} is for {', '.join(having or ENCODERS)}; got it with encoder {name}"
                )
        if self.width <= 0:
            raise ValueError(f"width must be above 0; got {self.width}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.title}-{as_file_name(self.schedule)}-{self.seed}")

    @property
    def title(self) -> str:
        """The dataset as a part of a folder's name, with that of a folder of images."""
        name = as_file_name(self.dataset)
        if self.dataset != "folder" or self.data_dir is None:
            return name
        return f"{name}-{os.path.basename(os.path.abspath(self.data_dir))}"

    @property
    def begins_with_weights(self) -> bool:
        """Whether the network is not drawn at random."""
        return self.pretrained or self.weights is not None

    @property
    def batch_size(self) -> int:
        """Rows of a batch.

        Raises:
            ValueError: if P and K still have to follow the data, as the training settles them.
        """
        if self.identities_per_batch is None or self.images_per_identity is None:
            raise ValueError("identities_per_batch and images_per_identity follow the data")
        return self.identities_per_batch * self.images_per_identity + self.fillers

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def shrunk(self) -> "TrainConfig":
        """With ``MARGIN_JAX_SMALL=1`` in the environment: the same run, made short for a test."""
        if os.environ.get("MARGIN_JAX_SMALL") != "1":
            return self
        identities = min(self.identities_per_batch or 8, 8)
        rows = identities * (self.images_per_identity or 2) + self.fillers
        return self.replace(
            epochs=min(self.epochs, 2),
            max_identities=min(self.max_identities or 60, 60),
            identities_per_batch=identities,
            microbatch=None if self.microbatch is None else math.gcd(self.microbatch, rows),
        )

    def to_json(self) -> str:
        """What ``config.json`` holds; where the run lies and how it was started stay out of it."""
        return json.dumps(self.experiment(), indent=2) + "\n"

    def experiment(self) -> dict[str, Any]:
        """The fields that decide the result."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _NOT_THE_RESULT}

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: text that is not JSON, or has unknown fields (another version wrote it).
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ValueError(f"not a configuration: {error}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else values
            raise ValueError(f"not a configuration of this version: unknown {unknown}")
        return cls(**{**_UNSAID, **values})


def _dataset_as_meant(name: str) -> str:
    """The name, unless it is one that people give for another.

    Raises:
        ValueError: with what to say instead.
    """
    if isinstance(name, str) and name in tfds.PRESETS:
        raise ValueError(f"dataset {name} is one of TensorFlow Datasets: say tfds:{name}")
    if isinstance(name, str) and Path(name).is_dir():
        raise ValueError(
            f"dataset must be one of {', '.join(DATASETS)}; got the folder {name}: say "
            f"--dataset folder --data-dir {name}"
        )
    return name


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value, of the field's kind, as Python's own number if it is one."""
    kind, option = field.type.__origin__, field.type.__metadata__[0]  # type: ignore[union-attr]
    number = next((number for number in (int, float) if kind in (number, number | None)), None)
    if value is None and kind not in (int, float, bool, str):
        return value
    if number is None:
        if kind is bool and not isinstance(value, bool | np.bool_):
            raise ValueError(f"{field.name} must be true or false; got {value!r}")
        texts = (str, os.PathLike) if field.name in _PATHS else str
        if kind is not bool and not isinstance(value, texts):
            raise ValueError(f"{field.name} must be text; got {value!r}")
        return bool(value) if kind is bool else value
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        value = operator.index(value) if number is int else float(value)
    except (TypeError, OverflowError):
        what = "a whole number" if number is int else "a number"
        raise ValueError(f"{field.name} must be {what}; got {value!r}") from None
    if not value >= option.least:
        raise ValueError(f"{field.name} must be at least {option.least}; got {value}")
    if value > option.most:
        raise ValueError(f"{field.name} must be at most {option.most}; got {value}")
    return value
