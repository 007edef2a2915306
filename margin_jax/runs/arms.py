"""Arms of a comparison: configurations that are trained over the same seeds.

Whatever differs between arms may differ: schedule, loss, network, sampler, learning rate. Data,
split and pairs may not: every seed has one split and one set of pairs, shared by all arms, so
that differences are paired by seed.

Each cell (an arm and a seed) is a run folder of its own, so a comparison that was killed goes on
where it was.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optax

from margin_jax import plots
from margin_jax.choices import check_choice
from margin_jax.config import TrainConfig
from margin_jax.config.option import as_file_name
from margin_jax.data.dataset import Dataset
from margin_jax.devices import jobs
from margin_jax.files import to_json, write_text
from margin_jax.lock import locked
from margin_jax.losses.base import Loss
from margin_jax.models.encoder import Encoder
from margin_jax.runs.comparison import Comparison
from margin_jax.runs.fit import fit
from margin_jax.runs.folder import CONFIG, REPORT, read_config, read_history, read_report
from margin_jax.runs.own import Own
from margin_jax.runs.resume import check_config, differences
from margin_jax.runs.run_data import load, loading, prepare_data, settle_batches
from margin_jax.schedules import Schedule
from margin_jax.training.record import DivergedError

# Which images of whom there are, how they are split, and where the comparison lies.
_SHARED = (
    *("dataset", "data_dir", "label_key", "repeated_names", "max_identities", "split"),
    *("seed", "out", "overwrite"),
)
# How images are read: arms may differ in it, but not if they are given to all of them.
_READING = ("image_size", "fit", "transparency", "bits")

OnCell = Callable[[str, int, dict[str, Any]], None]


def vary(config: TrainConfig, **values: Sequence[Any]) -> dict[str, TrainConfig]:
    """An arm for every combination of values: ``vary(config, schedule=["constant:0.2", "dams"])``.

    Args:
        config: what the arms have in common.
        values: for each field of the configuration to vary, its values: at least one, each once.

    Returns:
        The arms by name. A name says what differs: only the schedule, or another option as
        ``reduction=mean``, or several as ``dams/reduction=mean``.

    Raises:
        ValueError: for unknown fields or invalid values.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    for name, own in values.items():
        check_choice("a field to vary", name, fields)
        if isinstance(own, str) or not len(own) or len(set(own)) < len(own):
            raise ValueError(f"{name} must be varied over at least one value, each once; got {own}")
    differing = [name for name, own in values.items() if len(own) > 1] or ["schedule"]
    arms = {}
    for combination in itertools.product(*values.values()):
        chosen = {"schedule": config.schedule, **dict(zip(values, combination, strict=True))}
        arms["/".join(_said(name, chosen[name]) for name in differing)] = config.replace(**chosen)
    return arms


def _said(name: str, value: Any) -> str:
    if name == "schedule":
        return str(value)
    return f"{name}={value if isinstance(value, str) else str(value).lower()}"


def compare(
    arms: Mapping[str, TrainConfig],
    seeds: Iterable[int],
    *,
    baseline: str | None = None,
    dataset: Dataset | None = None,
    encoder: Encoder | None = None,
    loss: Loss | None = None,
    schedule: Schedule | None = None,
    optimizer: optax.GradientTransformation | None = None,
    on_cell: OnCell | None = None,
    progress: bool = False,
) -> Comparison:
    """Trains every arm with every seed, and writes a table, a plot and the run folders.

    Args:
        arms: configurations by name, such as those of :func:`vary`. They share the data, the split
            and `out`, the folder of the comparison, by default runs/compare-DATASET. `overwrite`
            restarts every run; otherwise finished runs are kept, and an unfinished one continues
            from its last checkpoint.
        seeds: each gives a split, a set of pairs and an initialisation; they replace the arms' own
            seeds.
        baseline: the arm that the others are compared with; by default the first with a constant
            schedule, else the first.
        dataset: your own images, with ``TrainConfig(dataset="own")``.
        encoder: your own network, for arms with ``TrainConfig(encoder="own")``.
        loss: your own loss, for arms with ``TrainConfig(loss="own")``.
        schedule: your own, for arms with ``TrainConfig(schedule="own")``.
        optimizer: of optax, for arms with ``TrainConfig(optimizer="own")``.
        on_cell: called with (arm, seed, report) after each run.
        progress: show progress bars.

    Returns:
        The results of all runs. They are also in the folder: ``comparison.json``, ``.md`` and
        ``.png``, and one run folder per arm and seed.

    Raises:
        TypeError: if arms are not a mapping.
        ValueError: as :func:`~margin_jax.fit`; if there are no arms, equal arms, arms with
            different data, no or repeated seeds, or an unknown baseline; if a run that is there has
            another configuration, before any is trained; if a finished run was trained on other
            images, or with another network or loss.
        DivergedError: if a run diverges, after all others have been trained.
    """
    own = Own(encoder, loss, schedule, optimizer)
    arms = _checked(arms, dataset, own)
    (first, *_) = arms.values()
    seeds = [first.replace(seed=seed).seed for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least one, each once; got {seeds}")
    if baseline is None:
        constant = [name for name, arm in arms.items() if arm.schedule.split(":")[0] == "constant"]
        baseline = [*constant, *arms][0]
    check_choice("baseline", baseline, arms)
    jobs.check_joined()
    with contextlib.ExitStack() as held:
        jobs.on_first(lambda: held.enter_context(locked(first.folder)))
        cells = _train(arms, seeds, dataset, own, on_cell, progress)
        comparison = Comparison(
            tuple(arms),
            tuple(seeds),
            {name: {seed: cells[name, seed][0] for seed in seeds} for name in arms},
            {name: {seed: cells[name, seed][1] for seed in seeds} for name in arms},
            baseline,
        )
        jobs.on_first(lambda: _write(comparison, first))
    return comparison


def with_folder(config: TrainConfig) -> TrainConfig:
    """The configuration with the folder of the comparison, which is never one of a run."""
    return config.replace(out=config.out or f"runs/compare-{config.title}")


def _checked(
    arms: Mapping[str, TrainConfig],
    dataset: Dataset | None,
    own: Own,
) -> dict[str, TrainConfig]:
    """The arms with their folder, if they can be compared."""
    if not isinstance(arms, Mapping):
        raise TypeError(f"arms must be configurations by name, as vary gives them; got {arms!r}")
    if not arms:
        raise ValueError("arms must be at least one; got none")
    for name, config in arms.items():
        if not isinstance(config, TrainConfig):
            raise ValueError(f"an arm must be a TrainConfig; got {config!r} for {name!r}")
    if len({as_file_name(name) for name in arms}) < len(arms):
        raise ValueError(f"arms must have folders of their own; got {list(arms)}")
    for one, two in itertools.combinations(arms, 2):
        if arms[one] == arms[two]:
            raise ValueError(f"arms must differ; {one} and {two} are the same configuration")
    first, *others = arms
    shared = _SHARED if dataset is None else (*_SHARED, *_READING)
    for name, other in itertools.product(shared, others):
        one, two = getattr(arms[first], name), getattr(arms[other], name)
        if one != two:
            raise ValueError(
                f"{name} must be the same in every arm; got {one!r} for {first} and {two!r} for "
                f"{other}"
            )
    own.check_any(arms.values())
    return {name: with_folder(config) for name, config in arms.items()}


def _train(
    arms: dict[str, TrainConfig],
    seeds: Sequence[int],
    dataset: Dataset | None,
    own: Own,
    on_cell: OnCell | None,
    progress: bool,
) -> dict[tuple[str, int], tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Report and history of every cell, in a folder that no other process has.

    Arms that are trained on the same pictures read alike share them, and come after each other.
    """
    for name, seed in itertools.product(arms, seeds):  # before the first of them is changed
        _check_goes_on(_cell(arms[name], name, seed))
    sharing: dict[tuple[Any, ...], list[str]] = {}
    for name, config in arms.items():
        sharing.setdefault(tuple(loading(config).values()), []).append(name)
    if dataset is not None:
        sharing = {(): list(arms)}
    done = {}
    diverged: DivergedError | None = None
    for names in sharing.values():
        images = load(arms[names[0]]) if dataset is None else dataset
        cells = {
            (name, seed): settle_batches(_cell(arms[name], name, seed), images)[0]
            for name, seed in itertools.product(names, seeds)
        }
        for (name, seed), cell in cells.items():
            objects = own.asked_for_by(cell)
            report = _finished(cell)
            if report is None:
                try:
                    report = fit(
                        cell, dataset=images, progress=progress, **objects._asdict()
                    ).report
                except DivergedError as error:  # which must not keep the others from their turn
                    diverged = diverged or error
                    continue
            elif other := differences(cell.folder, prepare_data(cell, images, objects).described):
                raise ValueError(
                    f"{cell.folder} was trained on other images, or with another network or loss "
                    f"({other}): give --overwrite, or choose another --out"
                )
            done[name, seed] = report, read_history(cell.folder)
            if on_cell is not None:
                on_cell(name, seed, report)
        del images, cells  # before others are loaded
    if diverged is not None:
        raise diverged
    return done


def _cell(arm: TrainConfig, name: str, seed: int) -> TrainConfig:
    return arm.replace(
        seed=seed,
        out=str(arm.folder / f"{as_file_name(name)}-seed{seed}"),
        resume=not arm.overwrite,
    ).shrunk()


def _check_goes_on(cell: TrainConfig) -> None:
    """Refuses a cell whose folder holds a run of another configuration."""
    if cell.overwrite or not (cell.folder / CONFIG).is_file():
        return
    saved = read_config(cell.folder)
    # These may follow the images, which are not loaded yet; `fit` asks again when they are.
    following = [
        name
        for name in ("identities_per_batch", "images_per_identity")
        if getattr(cell, name) is None
    ]
    as_saved = cell.replace(**{name: getattr(saved, name) for name in following})
    check_config(as_saved, "give --overwrite, or choose another --out")


def _finished(cell: TrainConfig) -> dict[str, Any] | None:
    """The report of a cell that needs no training."""
    path = cell.folder / REPORT
    if cell.overwrite or not path.is_file():
        return None
    if read_config(cell.folder).experiment() != cell.experiment():
        return None  # it may differ so, as in more epochs, or was refused before
    try:
        report = read_report(cell.folder)
    except ValueError as error:
        raise ValueError(f"the run in {cell.folder} is damaged: {error}") from error
    whole = report["epochs"] == cell.epochs or "stopped_early" in report
    return report if whole else None


def _write(comparison: Comparison, config: TrainConfig) -> None:
    folder = config.folder
    write_text(folder / "comparison.json", to_json(comparison.to_json(), indent=2) + "\n")
    write_text(folder / "comparison.md", comparison.markdown() + "\n")
    plots.plot_comparison(comparison.histories).savefig(folder / "comparison.png")
