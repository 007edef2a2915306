"""One wording for the error that names what can be chosen instead."""

import difflib
from collections.abc import Iterable

# In a configuration: what comes as an object beside it.
OWN = "own"


def check_choice(what: str, value: object, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`.

    Raises:
        ValueError: otherwise; the message lists the choices and the nearest name.
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {', '.join(names)}; got {value!r}.{hint}")


def one_of(choices: Iterable[str]) -> str:
    """The choices as a sentence of a help text."""
    return f"One of: {', '.join(choices)}."
