"""The command ``compare``: arms from ``--vary`` and ``--schedules``, over several seeds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from margin_jax.choices import check_choice
from margin_jax.cli.options import config_options
from margin_jax.cli.train import CACHE, cache_compilations, process_option, saying_how_to_go_on
from margin_jax.config import TrainConfig
from margin_jax.config.option import MOST
from margin_jax.schedules import ALONE
from margin_jax.spec import split_specs

# Fewer than a run of its own: nine cells on glyphs then take some minutes.
COMPARE_EPOCHS = 10
_SCHEDULES = "constant,linear,dams"


def _comparison_option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="Comparison", **more)


@config_options(
    without=("seed", "resume", "allow_changes"),
    epochs=COMPARE_EPOCHS,
    out="runs/compare-DATASET",
)
def compare(
    *,
    schedules: Annotated[
        str | None,
        _comparison_option(
            "The schedules to compare, separated by commas: NAME, NAME:MARGIN (the first epoch's "
            "margin) or NAME:KEY=VALUE,KEY=VALUE; or all. Short for --vary schedule=.... Default "
            f"without --vary: {_SCHEDULES}.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        _comparison_option(
            "An option of train and the values to compare, separated by commas, or by semicolons "
            "if a value has commas of its own: --vary 'mining=all;all,11:semihard'. A comma before "
            "KEY= always belongs to the value. Give it several times to run every combination.",
            metavar="OPTION=VALUE,VALUE",
        ),
    ] = None,
    seeds: Annotated[int, _comparison_option("The number of seeds for each arm: 0, 1, ...")] = 3,
    baseline: Annotated[
        str | None,
        _comparison_option(
            "The arm that all others are compared with, named as in the table, such as "
            "constant:0.2 or dams/reduction=mean. Default: the first arm with a constant margin, "
            "or else the first arm.",
            metavar="ARM",
        ),
    ] = None,
    compilation_cache: Annotated[str | None, process_option(CACHE)] = None,
    **given: Any,
) -> Path:
    """Compare schedules, losses, networks or other options over several seeds.

    Arms with the same seed share their split and test pairs. Writes a table with 95 % intervals and
    differences paired by seed, a sentence on which differences are clear, a plot, and one run
    folder per arm and seed. If interrupted, run the same command again to continue.

    Tuned constants beside DAMS: margin-jax compare --schedules constant:0.05,constant:0.2,dams

    Two losses: margin-jax compare --schedules constant:0.2 --vary reduction=mean,mean_active
    """
    from margin_jax.runs import arms

    cache_compilations(compilation_cache)
    varied = read_varied(vary or [])
    if schedules is None and not varied and "schedule" in given:
        raise ValueError(
            f"nothing is varied, and the schedule is {given['schedule']} in every arm: give "
            "--schedules or --vary"
        )
    if schedules is not None or not varied:
        text = _SCHEDULES if schedules is None else schedules
        names = ALONE if text == "all" else split_specs(text)
        varied = {"schedule": names + varied.pop("schedule", []), **varied}
    given = {"epochs": COMPARE_EPOCHS, **given}
    config = arms.with_folder(TrainConfig(**given))
    if seeds > MOST:
        raise ValueError(f"seeds must be at most {MOST:,}; got {seeds}")
    varied_arms = arms.vary(config, **varied)
    if len(varied_arms) < 2:
        raise ValueError(
            f"a comparison needs at least two arms; got {', '.join(varied_arms)}. One run: "
            "margin-jax train"
        )

    def on_cell(arm: str, seed: int, report: dict[str, Any]) -> None:
        typer.echo(f"{arm}, seed {seed}: test AUC {report['test']['auc']:.4f}")

    with saying_how_to_go_on("the same command without --overwrite", config):
        compared = arms.compare(
            varied_arms,
            range(seeds),
            baseline=baseline,
            on_cell=on_cell,
            progress=True,
        )
    typer.echo(f"\n{compared.markdown()}\n\nalso in {config.folder}: comparison.md, .json, .png")
    return config.folder


def read_varied(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The fields of a configuration that texts as ``reduction=mean,mean_active`` name, with values.

    Raises:
        ValueError: for a text that is none, or no field.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    varied: dict[str, list[Any]] = {}
    for text in texts:
        option, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--vary must be OPTION=VALUE,VALUE; got {text!r}")
        name = option.strip().lstrip("-").replace("-", "_")
        check_choice("an option to vary", name, fields)
        parts = values.split(";") if ";" in values else split_specs(values)
        varied.setdefault(name, []).extend(_value(name, part.strip()) for part in parts)
    return varied


def _value(name: str, text: str) -> Any:
    """Of the field's kind, or the text, of which the configuration then says what is wrong."""
    kind = get_type_hints(TrainConfig)[name]
    kinds = get_args(kind) or (kind,)
    if text == "none" and NoneType in kinds:
        return None
    if bool in kinds:
        return {"true": True, "false": False}.get(text, text)
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                return text
    return text
