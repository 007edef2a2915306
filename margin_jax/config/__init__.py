"""What a run is: one frozen dataclass, also the source of the command line's options.

An option has one name, the same in Python, on the command line and in a file, so the configuration
is flat. It is put together from parts, one for each room that it is about; a function that needs
the data alone says so with :class:`DataConfig`.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from margin_jax.choices import OWN
from margin_jax.config.data import DataConfig
from margin_jax.config.loss import (
    LossConfig,
    MarginConfig,
    free_of_loss,
    free_of_schedule,
    margins_settled_by,
    settled_by,
)
from margin_jax.config.network import NetworkConfig, free_of_encoder
from margin_jax.config.option import Option, as_file_name, checked
from margin_jax.config.training import TrainingConfig
from margin_jax.files import local_path, parse_json
from margin_jax.losses.base import counts_by
from margin_jax.schedules import Schedule, make_schedule, resolve_schedule

# Parameters of schedules that have an option of their own.
_SCHEDULE_OPTIONS = ("margin", "margin_end", "epochs")
# Fields that decide where and how a run goes, but not its result.
_NOT_THE_RESULT = {"out", "overwrite", "resume", "allow_changes", "checkpoint_steps", "devices"}
_NOT_THE_RESULT |= {"memory_limit", "manual_dir"}
_OF_PICTURES = {"image_size", "fit", "bits", "transparency", "repeated_names", "augment"}
_OF_PICTURES |= {"pretrained", "weights", "small_stem"}
_OF_NAMED_OPTIMIZERS = {"learning_rate", "learning_rate_schedule", "freeze"}
# Runs of an earlier time, whose configuration does not say, were made as if it said this.
_UNSAID = {"fit": "stretch", "transparency": "ignore", "repeated_names": "separate"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lies, and whether it begins or goes on."""

    PANEL: ClassVar[str] = "Run"

    out: Annotated[
        str | None,
        Option(
            "The run folder. Default of train: runs/DATASET-SCHEDULE-SEED; for your own images "
            "DATASET is folder-NAME.",
            is_path=True,
        ),
    ] = None
    overwrite: Annotated[bool, Option("Replace the run in the run folder, if there is one.")] = (
        False
    )
    resume: Annotated[
        bool, Option("Continue from the last checkpoint in the run folder, if it has one.")
    ] = False
    allow_changes: Annotated[
        bool, Option("Allow --resume with different options, such as another learning rate.")
    ] = False
    checkpoint_steps: Annotated[
        int, Option("Also save a checkpoint every N steps, not only after each epoch.", 1)
    ] = 1000

    def _check_run(self) -> None:
        if self.overwrite and self.resume:
            raise ValueError("overwrite and resume cannot be used together")
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes is for resume; got it without")


# As --help shows them.
PARTS = (DataConfig, MarginConfig, LossConfig, TrainingConfig, NetworkConfig, RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(  # fields of the last base come first
    RunConfig, NetworkConfig, TrainingConfig, LossConfig, MarginConfig, DataConfig
):
    """Everything that decides how a run goes. The defaults train on glyphs with DAMS.

    Raises:
        ValueError: for values that no run can have; the message says what was expected.
    """

    def __post_init__(self) -> None:
        """Checks everything that can be checked without looking at the data."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name, field in fields.items():
            object.__setattr__(self, name, checked(field, getattr(self, name)))
        self._check_data()
        if self.dataset == "vectors":
            self._refuse(_OF_PICTURES, "is for pictures; got it with dataset vectors")
        if self.optimizer == OWN:
            self._refuse(
                _OF_NAMED_OPTIMIZERS, "is for optimizers with a name; got it with one of your own"
            )
        if self.encoder is None:
            usual = "head" if self.dataset == "vectors" else "small_cnn"
            object.__setattr__(self, "encoder", usual)
        _, parameters = self.schedule_parameters()
        for name in {"margin", "margin_end"} & set(parameters):
            checked(fields[name], parameters[name])
        if self.schedule != OWN:
            self.make_schedule()
        self._check_margins()
        self._check_loss()
        self._check_histogram()
        self._check_training()
        self._check_network()
        self._check_run()
        for name, field in fields.items():
            value = getattr(self, name)
            if value is None or not field.type.__metadata__[0].is_path:  # type: ignore[union-attr]
                continue
            if name == "split" and not str(value).endswith(".json"):
                continue
            # Text, as JSON has no paths; absolute, so that a run can be resumed from anywhere.
            path = local_path(name, value)
            object.__setattr__(self, name, str(path if name == "out" else path.absolute()))

    def _refuse(self, options: Collection[str], why: str) -> None:
        """Refuses options that are not as usual."""
        for field in dataclasses.fields(self):
            if field.name in options and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} {why}")

    def _check_histogram(self) -> None:
        needed = self.schedule != OWN and self.make_schedule().needs_histogram
        if (self.histogram or needed) and self.loss != OWN and not counts_by(self.make_loss(1)):
            raise ValueError(
                f"{f'schedule {self.schedule}' if needed else 'histogram'} is for losses that "
                f"count triplets of embeddings; got it with loss {self.loss}"
            )

    def make_schedule(self) -> Schedule:
        """The schedule with its parameters; not one's own."""
        return make_schedule(self.schedule, self._schedule_options())

    def schedule_parameters(self) -> tuple[str, dict[str, Any]]:
        """The schedule's name, and the value of each of its parameters; of one's own none."""
        if self.schedule == OWN:
            return OWN, {}
        return resolve_schedule(self.schedule, self._schedule_options())

    def _schedule_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SCHEDULE_OPTIONS}

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.title}-{as_file_name(self.schedule)}-{self.seed}")

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed, checked again.

        With another schedule, loss or encoder, what the old one settled, such as its margin or its
        distance, is as usual again.
        """
        return dataclasses.replace(self, **set_free(self.experiment(), changes), **changes)

    def shrunk(self) -> "TrainConfig":
        """With ``MARGIN_JAX_SMALL=1`` in the environment: the same run, made short for a test."""
        if os.environ.get("MARGIN_JAX_SMALL") != "1":
            return self
        identities = min(self.identities_per_batch or 8, 8)
        rows = identities * (self.images_per_identity or 2) + self.fillers
        return self.replace(
            epochs=min(self.epochs, 2),
            fmr=None,  # so few identities have too few pairs for it
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
        found = {**_UNSAID, **values}
        # Version 0.2.0 kept margins and a mining that the texts did not let it have.
        if isinstance(schedule := found.get("schedule"), str):
            found |= margins_settled_by(schedule)
        if isinstance(loss := found.get("loss"), str) and "mining" in (settled := settled_by(loss)):
            found["mining"] = settled["mining"]
        return cls(**found)


def set_free(said: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options that schedule, loss or encoder settled, as usual again where that is changed.

    Args:
        said: options before. Where schedule, loss or encoder are unknown, they settled nothing.
        changes: options that replace them; they are not in what is returned.
    """
    freed: dict[str, Any] = {}
    settling = {"schedule": free_of_schedule, "loss": free_of_loss, "encoder": free_of_encoder}
    for name, free_of in settling.items():
        before = said.get(name)
        if isinstance(before, str) and changes.get(name, before) != before:
            with contextlib.suppress(ValueError):
                freed |= free_of(before)
    return {name: value for name, value in freed.items() if name not in changes}
