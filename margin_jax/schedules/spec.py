"""Schedules as text: ``dams``, ``constant:0.05``, ``dams:margin=0.05,threshold=0.9``."""

import inspect
from collections.abc import Mapping
from typing import Any

from margin_jax.choices import check_choice
from margin_jax.schedules import SCHEDULES
from margin_jax.schedules.base import Schedule


def make_schedule(spec: str, defaults: Mapping[str, Any]) -> Schedule:
    """The schedule that a text describes.

    Args:
        spec: ``NAME``, ``NAME:MARGIN`` or ``NAME:KEY=VALUE,...``, the keys being parameters of the
            schedule's function; NAME:MARGIN may be followed by ``,KEY=VALUE`` too.
        defaults: values of parameters that the text leaves open, by name; those that the schedule
            does not have are of no effect.

    Raises:
        ValueError: an unknown name or key, a key said twice, a value that is no number, or one that
            the schedule refuses.
    """
    name, values = resolve(spec, defaults)
    return SCHEDULES[name](**values)


def resolve(spec: str, defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a schedule and the value of each of its parameters.

    Raises:
        ValueError: as :func:`make_schedule`.
    """
    name, _, rest = spec.partition(":")
    check_choice("schedule", name, SCHEDULES)
    parameters = inspect.signature(SCHEDULES[name]).parameters
    values = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    values |= {key: defaults[key] for key in parameters if key in defaults}
    said = set[str]()
    for i, part in enumerate(rest.split(",") if rest else []):
        key, equals, value = part.strip().partition("=")
        if not equals and i == 0:
            key, value = "margin", key
        check_choice(f"a parameter of {name}", key, parameters)
        if key in said:
            raise ValueError(f"a schedule says each parameter once; got {spec!r}, {key} twice")
        said.add(key)
        kind: type = parameters[key].annotation
        try:
            values[key] = kind(value)
        except ValueError:
            raise ValueError(
                f"a schedule is NAME, NAME:MARGIN or NAME:KEY=VALUE,...; got {spec!r}, where {key} "
                f"is no {'whole ' if kind is int else ''}number"
            ) from None
    return name, values


def has_parameter(spec: str, parameter: str) -> bool:
    """Whether the schedule of that text depends on a parameter that the text leaves open."""
    name, _, rest = spec.partition(":")
    said = {part.strip().partition("=")[0] for part in rest.split(",")}
    return parameter in inspect.signature(SCHEDULES[name]).parameters and parameter not in said


def split_specs(text: str) -> list[str]:
    """The texts in a list with commas, which also stand between the values of one of them."""
    specs: list[str] = []
    for part in text.split(","):
        before_value, equals, _ = part.partition("=")
        if equals and ":" not in before_value and specs:
            specs[-1] += f",{part.strip()}"
        else:
            specs.append(part.strip())
    return specs
