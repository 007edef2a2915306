"""Options of the command line from the fields of a configuration."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from margin_jax.config import PARTS, TrainConfig, set_free
from margin_jax.config.file import read_options
from margin_jax.data.decode import PICTURES
from margin_jax.files import check_file, local_path, writing

if TYPE_CHECKING:
    from margin_jax.plots.figure import Figure


def _local(text: str | Path) -> Path:
    try:
        return local_path("it", text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None  # of which option, typer says


def path_option(help: str) -> Any:
    """An option that is a path of this machine."""
    return typer.Option(help=help, parser=_local)


def path_argument(help: str, metavar: str | None = None) -> Any:
    """An argument that is one."""
    return typer.Argument(help=help, metavar=metavar, parser=_local)


RunFolder = Annotated[
    Path,
    path_argument("The folder of a finished run or an exported model, or hub:USER/NAME.", "RUN"),
]

# Options as other programs call them.
ELSEWHERE = {
    **dict.fromkeys(("lr", "learningrate", "base-lr"), "--learning-rate"),
    **dict.fromkeys(("lr-schedule", "lr-scheduler", "scheduler"), "--learning-rate-schedule"),
    **dict.fromkeys(
        ("batch-size", "batch", "bs", "b"), "--identities-per-batch times --images-per-identity"
    ),
    **dict.fromkeys(("p", "classes-per-batch"), "--identities-per-batch"),
    **dict.fromkeys(("k", "samples-per-class", "instances"), "--images-per-identity"),
    **dict.fromkeys(("num-epochs", "n-epochs", "max-epochs", "epoch"), "--epochs"),
    **dict.fromkeys(("data", "data-path", "root", "train-dir", "path"), "--data-dir"),
    **dict.fromkeys(("output", "output-dir", "out-dir", "save-dir", "logdir"), "--out"),
    **dict.fromkeys(("model", "arch", "backbone", "network"), "--encoder"),
    **dict.fromkeys(("opt", "optim"), "--optimizer"),
    **dict.fromkeys(("dim", "embed-dim", "embedding-dim", "feature-dim"), "--embedding-size"),
    **dict.fromkeys(("img-size", "imgsz", "size", "resolution"), "--image-size"),
    **dict.fromkeys(("gpus", "gpu", "num-gpus", "device", "n-devices"), "--devices"),
    **dict.fromkeys(("miner", "mine"), "--mining"),
    **dict.fromkeys(("amp", "fp16", "bf16", "precision"), "--dtype bfloat16"),
    **dict.fromkeys(("checkpoint", "ckpt", "restore", "resume-from", "load"), "--resume"),
    **dict.fromkeys(("random-seed", "random-state"), "--seed"),
    **dict.fromkeys(("force", "f"), "--overwrite"),
    **dict.fromkeys(("augmentation", "aug", "transforms"), "--augment"),
    **dict.fromkeys(("accumulate", "grad-accum", "gradient-accumulation"), "--microbatch"),
}

# What most runs set: it comes first in --help, all else in a panel of its part.
_ORDINARY = {
    *("dataset", "data_dir", "image_size", "schedule", "margin", "reduction", "epochs", "seed"),
    *("learning_rate", "encoder", "out", "overwrite", "resume"),
}
# Switches that are about this call of the command.
_OF_A_CALL = {"overwrite", "resume", "allow_changes"}
_PANELS = {name: part.PANEL for part in PARTS for name in part.__annotations__}
# Of a configuration (but a comparison has --schedules, and each is a schedule), and of commands.
_FIELDS = {field.name for field in dataclasses.fields(TrainConfig)} - {"schedule"}
_FIELDS |= {"schedules", "seeds", "count", "pairs", "stimulus", "coordinator", "compilation_cache"}
_FIELDS |= {"group_by", "query", "gallery"}
_FIELDS |= {"views", "batch_size", "feature_dtype"}
_LONG = "|".join(sorted((name for name in _FIELDS if "_" in name), key=len, reverse=True))
_IN_A_SENTENCE = re.compile(rf"(?<![\w./'-])({_LONG})(?![\w./'-])")
_SUBJECT = re.compile(r"([a-z]+)( and )?(?(2)([a-z]+))(?= (?:must|is|are|needs?|cannot) )")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def name_options(message: str) -> str:
    """What the library says, with its fields named as the options of the command line."""

    def option(name: str) -> str:
        return f"--{name.replace('_', '-')}" if name in _FIELDS else name

    if subject := _SUBJECT.match(message):
        first, both, second = subject.groups(default="")
        message = f"{option(first)}{both}{option(second)}{message[subject.end() :]}"
    return _IN_A_SENTENCE.sub(lambda found: option(found[1]), message)


def config_options(*, without: Sequence[str] = (), **defaults: Any) -> Decorator:
    """Gives a command an option for every field of :class:`TrainConfig`: type, default and help.

    The command receives, as keywords, its own parameters and those options that were given on the
    command line, or in the file of ``--config``, over which the command line goes.

    Args:
        without: fields that the command does not have.
        defaults: shown instead of the fields' own; the command has to apply them.
    """
    hints = get_type_hints(TrainConfig, include_extras=True)
    fields = [field for field in dataclasses.fields(TrainConfig) if field.name not in without]
    known = {field.name for field in fields}

    def parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
        kind, option = hints[field.name].__origin__, hints[field.name].__metadata__[0]
        panel = None if field.name in _ORDINARY else _PANELS[field.name]
        # Other switches have a --no-... too, which goes over what a file of --config says.
        names = [f"--{field.name.replace('_', '-')}"] if field.name in _OF_A_CALL else []
        shown = typer.Option(*names, help=option.help, rich_help_panel=panel)
        return inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=Annotated[kind, shown],
        )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]

        below = [
            p.name for p in own if getattr(p.annotation.__metadata__[0], "rich_help_panel", None)
        ]

        def with_options(context: typer.Context, **values: Any) -> Any:
            for field in fields:
                source = context.get_parameter_source(field.name)
                if source is None or source.name != "COMMANDLINE":
                    del values[field.name]
            path = values.pop("config")
            if path is not None:
                said = read_options(local_path("config", path))
                if values.get("folder") is not None:  # it is short for these
                    said = {n: said[n] for n in said if n not in ("dataset", "data_dir")}
                said |= set_free(said, values)
                values = {name: said[name] for name in known if name in said} | values
            return command(**values)

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        file = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    help="A TOML or JSON file of options, such as a run's config.json; the "
                    "command line overrides it."
                ),
            ],
        )
        shown = sorted(fields, key=lambda field: field.name not in _ORDINARY)
        parameters = [context, *own, file, *map(parameter, shown)]
        parameters.sort(key=lambda p: p.name in below)  # their panel comes last
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {}
        paragraphs = (command.__doc__ or "").split("\n\n")  # typer would keep the line breaks
        with_options.__doc__ = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        with_options.__name__ = command.__name__
        return with_options

    return decorate


class _Switches:
    """Help that shows no type behind a switch, which takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_Switches, TyperCommand):
    """A command of the program."""


class Group(_Switches, TyperGroup):
    """A command that has commands."""


def check_out(
    out: Path, *inputs: str | Path | None, run: Path | None = None, picture: bool = False
) -> None:
    """Whether a file can be written there: before the work, not after it.

    Args:
        out: the file.
        inputs: files and folders of pictures that the command reads, which it must not replace.
        run: the folder of a run, in which everything is the run's.
        picture: whether it is one.

    Raises:
        ValueError: if not, or (picture) its name has the ending of no picture.
    """
    check_file("out", out)
    if run is not None and out.resolve().is_relative_to(run.resolve()):
        raise ValueError(f"out must be a file outside of the run {run}; got {out}")
    if out.exists() and any(_reads(Path(given), out) for given in inputs if given is not None):
        raise ValueError(f"{out} is one of the inputs, and would be replaced: choose another file")
    if picture:
        from matplotlib.figure import Figure

        endings = set(Figure().canvas.get_supported_filetypes()) - {"pgf"}  # which needs TeX
        if out.suffix.lower()[1:] not in endings:
            raise ValueError(f"out must end in one of .{', .'.join(sorted(endings))}; got {out}")


def remark(skipped: Iterable[str], others: Iterable[str]) -> None:
    """Says on standard error what was noticed when pictures were read."""
    for line in (*(f"skipped {reason}" for reason in skipped), *others):
        typer.echo(line, err=True)


def _reads(given: Path, file: Path) -> bool:
    """Whether a file is the one that is given, or a picture in the folder that is."""
    if given.is_dir():
        is_picture = file.suffix.lower() in PICTURES
        return is_picture and file.resolve().is_relative_to(given.resolve())
    return given.exists() and file.samefile(given)


@contextlib.contextmanager
def saving(out: Path) -> Iterator[BinaryIO]:
    """A file for a result, which is whole or not there. A link stays: its file is replaced.

    Raises:
        OSError: with the name of the file.
    """
    try:
        with writing(out.resolve()) as file:
            yield file
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}") from error


def save_picture(figure: "Figure", out: Path) -> None:
    """Writes a picture, of the kind that the name ends in."""
    with saving(out) as file:
        figure.savefig(file, format=out.suffix.lower()[1:])
