"""What begins in a run folder, or goes on there."""

from pathlib import Path
from typing import Any

from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.files import (
    append_line,
    read_json,
    to_json,
    write_text,
)
from margin_jax.runs.claim import check_folder, remove
from margin_jax.runs.folder import (
    CHANGEABLE,
    CHANGES,
    CHECKPOINTS,
    CONFIG,
    DATA,
    HISTORY,
    PAIRS,
    REPORT,
    check_sealed,
    is_run,
    is_saved,
    read_config,
    read_history,
    unwritable,
    write_pairs,
)
from margin_jax.runs.load import load_run
from margin_jax.runs.run_data import RunData
from margin_jax.runs.validation import is_over
from margin_jax.schedules import SCHEDULES
from margin_jax.spec import leaves_open


def is_finished(config: TrainConfig) -> bool:
    """Whether there is nothing to do for this run: it has its report, and all of it is whole."""
    config = config.shrunk()
    if not (config.folder / REPORT).is_file():
        return False
    try:
        saved, history = read_config(config.folder), load_run(config.folder).history
        if len(history) < saved.epochs:  # by its patience, which more epochs do not change
            saved = saved.replace(epochs=config.epochs)
        if saved.experiment() != config.experiment():
            return False
        check_sealed(config.folder, PAIRS)
        return is_over(config, history)
    except (ValueError, OSError):  # which is mended, or refused in more words
        return False


def prepare_folder(config: TrainConfig, data: RunData) -> str:
    """Makes an empty run folder with the run's description, or checks the one to resume.

    Returns what changes in the run to resume, because it was asked for, in words.

    Raises:
        ValueError: if the run to resume is another one, or the folder cannot be written.
    """
    folder = config.folder
    described = to_json(data.described, indent=2) + "\n"
    described.encode()  # names that are no text fail here, before anything is removed
    check_folder(config)  # once more, for file systems without locks
    if config.resume and (folder / CONFIG).is_file():
        changed = _check_same(config, data.described, folder)
        try:
            write_pairs(folder, data)  # the same, unless they were damaged: the report seals them
        except OSError as error:
            raise unwritable(folder, error) from error
        return changed
    try:
        if config.overwrite and is_run(folder):
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / DATA, described)
        write_pairs(folder, data)
        # Last: a folder with a configuration has all that a run needs to be resumed.
        write_text(folder / CONFIG, config.to_json())
    except OSError as error:
        raise unwritable(folder, error) from error
    return ""


def check_config(config: TrainConfig, advice: str = "--allow-changes goes on all the same") -> str:
    """Refuses to resume a run of another configuration; more epochs are none, if its rule allows.

    Returns what changes all the same, because it was asked for, in words.

    Args:
        config: of the run, whose folder has a configuration already.
        advice: what is said where all that differs could be changed.
    """
    folder = config.folder
    saved = read_config(folder).experiment()
    asked = config.experiment()
    # What is laid out over the whole run cannot be made longer.
    own = config.schedule == OWN
    laid_out = not own and leaves_open(config.schedule, SCHEDULES, "epochs")
    laid_out |= config.learning_rate_schedule in ("exponential", "warmup_linear")
    if not laid_out and asked["epochs"] > saved["epochs"]:
        saved["epochs"] = asked["epochs"]
    names = {name for name in asked if asked[name] != saved[name]}
    changed = "; ".join(
        f"{name} is {saved[name]}, asked for {asked[name]}" for name in asked if name in names
    )
    trained = len(read_history(folder))
    # Another schedule may say another margin; that of the run goes on.
    of_schedule = {"margin"} if "schedule" in names else set()
    possible = (
        names <= CHANGEABLE | of_schedule
        and asked["epochs"] >= saved["epochs"]
        and trained < asked["epochs"]
    )
    if names and not (config.allow_changes and possible):
        hint = f"; {advice}" if possible else ""
        raise ValueError(f"cannot resume {folder} as another run: {changed}{hint}")
    return changed


def _check_same(config: TrainConfig, described: dict[str, Any], folder: Path) -> str:
    """Refuses to resume what is not the same run; returns what changes as :func:`check_config`."""
    changed = check_config(config)
    if other := differences(folder, described):
        raise ValueError(
            f"cannot resume {folder}: it was started with other examples or another network "
            f"({other})"
        )
    if read_history(folder) and not is_saved(folder):
        raise ValueError(
            f"cannot resume {folder}: there is nothing in {CHECKPOINTS}; --overwrite begins anew"
        )
    return changed


def differences(folder: Path, described: dict[str, Any]) -> str:
    """In what the examples and the network of a run are not those described; "" for nothing."""
    saved = read_json(folder / DATA)
    # What is said of files that are no images of the run decides nothing.
    names = sorted({*saved, *described} - {"left_out", "notes"})
    other = [name for name in names if saved.get(name) != described.get(name)]
    return f"{DATA} differs in {', '.join(other)}" if other else ""


def write_progress(config: TrainConfig, history: list[dict[str, Any]], changed: str = "") -> None:
    """Makes a run folder tell what its checkpoint does, and what changes, before it is trained."""
    if changed:
        append_line(config.folder / CHANGES, {"whole_epochs": len(history), "changed": changed})
    if not is_over(config, history):  # a report would be about other weights
        (config.folder / REPORT).unlink(missing_ok=True)
    write_text(config.folder / HISTORY, "".join(to_json(record) + "\n" for record in history))
    write_text(config.folder / CONFIG, config.to_json())  # perhaps of more epochs
