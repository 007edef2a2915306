"""Files of lists of identities, as JSON: who is trained on and who is tested."""

from pathlib import Path
from typing import NamedTuple

from margin_jax.files import parse_json


class Lists(NamedTuple):
    """Names of identities, by part."""

    train: list[str]
    validation: list[str]
    test: list[str]


def read_lists(path: Path) -> Lists:
    """Names of each part, from lists alone or from a run's ``data.json``."""
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot read the split {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(found, dict):
        found = found.get("identities", found)
    for part in Lists._fields:
        if not isinstance(found, dict) or part not in found:
            raise ValueError(
                f"{path} must hold lists {', '.join(Lists._fields)}; {part} is missing"
            )
        if not isinstance(found[part], list):
            raise ValueError(f"{path}: {part} must be a list of names; got {found[part]!r:.50}")
        for name in found[part]:
            if not isinstance(name, str):
                raise ValueError(f"{path}: {part} must be a list of names; got {name!r:.50} in it")
    return Lists(*(found[part] for part in Lists._fields))
