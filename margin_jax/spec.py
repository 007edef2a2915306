"""The one language of everything with parameters: ``dams``, ``constant:0.05``, ``dams:cap=1``.

A text is ``NAME`` or ``NAME:KEY=VALUE,...``, the keys being parameters of what is named. Numbers of
a list have a slash between them: ``replay:margins=0.1/0.2``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from margin_jax.choices import check_choice

Numbers = tuple[float, ...]
# Of each parameter: float, int, bool, str or Numbers.
Kinds = Mapping[str, Any]
_REFUSED: dict[Any, str] = {
    float: "is not a number",
    int: "is not a whole number",
    bool: "is neither true nor false",
    str: "is empty",
    Numbers: "is not a list of numbers such as 0.1/0.2",
}


def kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a function or a class, by its signature."""
    parameters = inspect.signature(function).parameters.values()
    # A parameter of another type, such as a distance, is read as text. One of several values, such
    # as the counts of images, has no text.
    return {
        p.name: p.annotation if p.annotation in _REFUSED else str
        for p in parameters
        if not isinstance(p.default, tuple)
    }


def parse(
    what: str, text: str, known: Mapping[str, Kinds], *, short: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name in a text, and the parameters that it says.

    Args:
        what: is named, with its article, as in "a schedule".
        text: ``NAME`` or ``NAME:KEY=VALUE,...``.
        known: the names, with the parameters of each.
        short: whether the key of the first parameter may be left out: ``NAME:VALUE`` or
            ``NAME:VALUE,KEY=...``.

    Raises:
        ValueError: an unknown name or key, a key said twice, a value of another kind.
    """
    name, _, rest = text.partition(":")
    noun = what.partition(" ")[2]
    check_choice(noun, name, known)
    form = "NAME or NAME:KEY=VALUE,..."
    if short:
        first = next(iter(known[name]))
        form = f"NAME, NAME:{first.upper()} or NAME:KEY=VALUE,..."
    values: dict[str, Any] = {}
    for i, part in enumerate(rest.split(",") if rest else []):
        key, equals, value = part.strip().partition("=")
        if short and not equals and i == 0:
            key, value = first, key
        check_choice(f"a parameter of {name}", key, known[name])
        if key in values:
            raise ValueError(f"{what} takes each parameter once; got {text!r}, {key} twice")
        kind = known[name][key]
        try:
            values[key] = _value(kind, value)
        except ValueError:
            raise ValueError(
                f"{what} is {form}; got {text!r}, where {key} {_REFUSED[kind]}"
            ) from None
    return name, values


def resolve(
    what: str,
    text: str,
    functions: Mapping[str, Callable[..., Any]],
    defaults: Mapping[str, Any],
    *,
    short: bool = False,
) -> tuple[str, dict[str, Any]]:
    """The name in a text, and the value of each parameter of the function of that name.

    Args:
        what, text, short: as in :func:`parse`.
        functions: by name. A parameter that the text leaves out has its value in `defaults`, or
            else its default in the signature.
        defaults: values by the name of the parameter; others are ignored.

    Raises:
        ValueError: as :func:`parse`.
    """
    name, said = parse(what, text, {n: kinds(f) for n, f in functions.items()}, short=short)
    parameters = inspect.signature(functions[name]).parameters
    values = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    values |= {key: defaults[key] for key in parameters if key in defaults}
    return name, values | said


def leaves_open(text: str, functions: Mapping[str, Callable[..., Any]], parameter: str) -> bool:
    """Whether what a text names has a parameter that the text does not say."""
    name, _, rest = text.partition(":")
    said = {part.strip().partition("=")[0] for part in rest.split(",")}
    return parameter in inspect.signature(functions[name]).parameters and parameter not in said


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


def _value(kind: Any, text: str) -> Any:
    if kind == Numbers:
        return tuple(map(float, text.split("/")))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if not text:
        raise ValueError
    return kind(text)
