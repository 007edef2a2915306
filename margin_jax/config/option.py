"""What an option is: its help, its bounds, and the check of a value that is given for it."""

import dataclasses
import hashlib
import operator
import os
from typing import Any, NamedTuple

import numpy as np

# What int32 and float32 can hold.
MOST, _MOST_FLOAT = 2**31 - 1, 1e38


class Option(NamedTuple):
    """How an option is shown by ``--help``, and the least and most that its number may be."""

    help: str
    least: float = 0
    most: float | None = None
    is_path: bool = False


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value, of the field's kind, as Python's own number if it is one.

    Raises:
        ValueError: for a value of another kind, or beyond its bounds.
    """
    kind, option = field.type.__origin__, field.type.__metadata__[0]  # type: ignore[union-attr]
    number = next((number for number in (int, float) if kind in (number, number | None)), None)
    if value is None and kind not in (int, float, bool, str):
        return value
    if number is None:
        if kind is bool and not isinstance(value, bool | np.bool_):
            raise ValueError(f"{field.name} must be true or false; got {value!r}")
        texts = (str, os.PathLike) if option.is_path else str
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
    most = option.most if option.most is not None else MOST if number is int else _MOST_FLOAT
    if value > most:
        raise ValueError(f"{field.name} must be at most {most}; got {value}")
    return value


def as_file_name(text: str) -> str:
    """A schedule or a dataset without signs that mean something to a shell or a file system.

    A long text is cut, and a digest says which it was: file systems allow 255 bytes.
    """
    name = text.translate(str.maketrans(":,/", "---", "= "))
    if len(name) <= 150:
        return name
    return f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
