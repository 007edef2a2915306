"""Options from a file: TOML or JSON, such as the ``config.json`` of a run."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from margin_jax.choices import check_choice
from margin_jax.config import PARTS
from margin_jax.files import parse_json


def read_options(path: Path) -> dict[str, Any]:
    """The options that a file sets, by name.

    They may stand in tables of their parts, as ``--help`` groups them: ``[data]``, ``[margin]``,
    ``[loss]``, ``[training]``, ``[network]``, ``[run]``. Paths in it are relative to the folder
    that the program is started in, as on the command line.

    Args:
        path: a file of TOML, or of JSON if it is named so.

    Raises:
        ValueError: for a file that cannot be read or is neither, and for an option that there is
            not, that is in another part's table, or that is said twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = parse_json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"config must be a file; cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # of either format, or of its signs
        raise ValueError(f"config must be TOML or JSON; {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config must hold options by name; {path} holds {values!r}")
    tables = {part.PANEL.lower(): set(part.__annotations__) - {"PANEL"} for part in PARTS}
    known = [name for names in tables.values() for name in names]
    found: dict[str, Any] = {}

    def add(options: Mapping[str, Any], names: list[str], where: str) -> None:
        for name, value in options.items():
            name = name.replace("-", "_")
            check_choice(f"an option {where}of {path}", name, names)
            if name in found:
                raise ValueError(f"{path} must set each option once; got {name} twice")
            found[name] = value

    add({k: v for k, v in values.items() if not isinstance(v, dict)}, known, "")
    for name, options in values.items():
        if isinstance(options, dict):
            check_choice(f"a table of {path}", name, tables)
            add(options, sorted(tables[name]), f"in [{name}] ")
    return found
