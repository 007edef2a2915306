"""A model folder: a trained encoder as it is handed on, without pickles, paths or names of people.

::

    model.json           what it takes and returns, the threshold, the figures, how it was trained
    weights.safetensors  all of its arrays, by name
    encoder.jaxexport    the encoder as StableHLO, if it was exported
    encoder.onnx         likewise as ONNX
    README.md            the model card

It may come from anywhere. So nothing in it names a file or a function: all files have these names,
and arrays go where the encoder that `model.json` describes has a place for them, or are refused.
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from margin_jax import __version__
from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.evaluation.tables import report_rows, table, training_line
from margin_jax.files import parse_json, read_at_most, sha256, short, to_json, write_text
from margin_jax.runs.weights import WEIGHTS

MODEL, CARD = "model.json", "README.md"
STABLEHLO, ONNX = "encoder.jaxexport", "encoder.onnx"
_FORMAT = "margin-jax model 1"
_KEYS = {
    *("format", "input", "distance", "threshold", "threshold_rule"),
    *("config", "data", "report", "history", "versions", "sha256"),
}
_DATA = {"dataset", "examples", "example_shape", "example_dtype", "counts"}
_PARTS = ("train", "validation", "test")
_HISTORY = ("epoch", "margin", "easy_fraction")
_MOST_TEXT, _MOST_PROGRAM = 2**22, 2**31  # a description has a line for each epoch
_MOST_NUMBERS = 2**30  # of an example
_LONGEST = 1_000  # characters of a text: an encoder of that many layers is an attack
_MAY_BE_LONGER = {"schedule"}  # it may list the margin of each epoch
_RULE = "the point of the ROC of the validation pairs that is nearest to FPR 0, TPR 1"


class Model(NamedTuple):
    """What a model folder says of an encoder.

    Attributes:
        config: what was run, without paths; its dataset is "own", as it did not come along.
        data: of what it was trained on: "dataset", a name; "examples"; "example_shape" and
            "example_dtype"; "counts", the identities of each part of the split.
        report: as in ``report.json``.
        history: epoch, margin and share of easy triplets of each epoch.
        digests: SHA-256 of the files beside the description, by name.
    """

    config: TrainConfig
    data: dict[str, Any]
    report: dict[str, Any]
    history: list[dict[str, Any]]
    digests: dict[str, str]


def is_model(folder: Path) -> bool:
    """Whether a folder says that it is one of these."""
    return (folder / MODEL).is_file()


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuses to write a model over something else, or over a model without being asked to.

    Raises:
        ValueError: for what is not to be touched.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    mine = {MODEL, WEIGHTS, CARD, STABLEHLO, ONNX}
    if not is_model(folder) or {path.name for path in folder.iterdir()} - mine:
        raise ValueError(f"{folder} is not empty and not a model folder; choose another --out")
    if not overwrite:
        raise ValueError(f"{folder} holds a model: add --overwrite, or choose another --out")


def model_of(
    config: TrainConfig,
    data: dict[str, Any],
    report: dict[str, Any],
    history: list[dict[str, Any]],
) -> Model:
    """What a model folder tells of a run: no path, and no name of an identity or of a file."""
    split = config.split
    public = config.replace(
        dataset=OWN,
        **dict.fromkeys(("data_dir", "manual_dir", "label_key", "out", "weights")),
        pretrained=config.begins_with_weights,
        split=None if split is None or split.endswith(".json") else split,
    )
    told = {
        "dataset": data.get("dataset", config.title),
        "examples": data["examples"],
        "example_shape": data["example_shape"],
        "example_dtype": data["example_dtype"],
        "counts": data.get("counts", {p: len(data["identities"][p]) for p in _PARTS}),
    }
    records = [{name: record[name] for name in _HISTORY} for record in history]
    return Model(public, told, report, records, {})


def write_model(folder: Path, model: Model) -> None:
    """Writes ``model.json``, with the digests of what is in the folder."""
    test = model.report["test"]
    others = [folder / name for name in (WEIGHTS, STABLEHLO, ONNX)]
    described = {
        "format": _FORMAT,
        "input": input_of(model),
        "distance": model.config.distance,
        "threshold": test["threshold"],
        "threshold_rule": f"at most this distance is the same; {threshold_rule(model)}",
        "config": model.config.experiment(),
        "data": model.data,
        "report": model.report,
        "history": model.history,
        "versions": {"margin-jax": __version__, "jax": jax.__version__},
        "sha256": {path.name: sha256(path.read_bytes()) for path in others if path.exists()},
    }
    write_text(folder / MODEL, to_json(described, indent=2) + "\n")


def threshold_rule(model: Model) -> str:
    """How the threshold was chosen, in words, and the error rates that it had on the test."""
    rule, test = _RULE, model.report["test"]
    if model.config.fmr is not None:
        rule = f"the largest whose false match rate on validation pairs is {model.config.fmr:g}"
    if "fmr" in test:  # not in reports of earlier versions
        rule += f"; on the test, FMR {test['fmr']:.2%} and FNMR {test['fnmr']:.2%}"
    return rule


def input_of(model: Model) -> dict[str, Any]:
    """What the encoder is given, for people who do not have margin-jax."""
    shape, dtype = model.data["example_shape"], model.data["example_dtype"]
    if dtype != "uint8":
        return {
            "shape": ["n", *shape],
            "dtype": "float32",
            "normalisation": "(x - mean) / std, done by the encoder; both are among the weights",
        }
    return {
        "shape": ["n", *shape],
        "dtype": dtype,
        "range": [0, 255],
        "channels": "grey" if shape[-1] == 1 else "red, green, blue",
        "fit": model.config.fit,
        "resize": "bilinear over the area of a pixel, as Pillow's BILINEAR",
        "transparency": model.config.transparency,
        "bits": model.config.bits,
        "normalisation": (
            "(x / 255 - mean) / std, done by the encoder; both are among the weights"
        ),
    }


def read_model(folder: Path) -> Model:
    """What ``model.json`` says, checked.

    Raises:
        ValueError: in one line, for what this version does not know or take.
    """
    text = read_at_most(folder / MODEL, _MOST_TEXT)
    try:
        model = _checked(parse_json(text.decode()))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{MODEL} is damaged, or of another version: {short(error)}") from None
    except (OverflowError, RecursionError):
        raise ValueError(f"{MODEL} is damaged: numbers too large, or nested too deeply") from None
    for name in sorted(set(model.digests) - {WEIGHTS}):
        path = folder / name
        if path.exists() and sha256(read_at_most(path, _MOST_PROGRAM)) != model.digests[name]:
            raise ValueError(f"{name} is damaged: it is not the file that {MODEL} describes")
    return model


def _checked(found: Any) -> Model:
    """Raises several errors, for whatever is not as :func:`write_model` writes it."""
    _check_names("a model", found, _KEYS)
    if found["format"] != _FORMAT:
        raise ValueError(f"format must be {_FORMAT!r}; got {found['format']!r}")
    if max(map(len, _texts(found))) > _LONGEST:
        raise ValueError(f"no text may have more than {_LONGEST:,} characters")
    config = TrainConfig.from_json(to_json(found["config"]))
    unknown = set(found["config"]) - set(config.experiment())
    if unknown or (config.dataset, config.data_dir, config.weights) != (OWN, None, None):
        raise ValueError("config must name no dataset, path or file")
    if found["distance"] != config.distance:
        raise ValueError(f"distance must be {config.distance!r} as in config")
    data, digests = found["data"], found["sha256"]
    _check_data(data)
    history = [_record(record) for record in found["history"]]
    # The one that people see, and may have changed, is the one that counts.
    reported, threshold = found["report"]["test"], float(_number(found["threshold"]))
    if reported["threshold"] != threshold:
        told = f"{threshold:g}, and not the {_number(reported['threshold']):g} of its report"
        warnings.warn(f"{MODEL} has the threshold {told}", stacklevel=2)
    test = {**reported, "threshold": threshold}
    report = {**found["report"], "test": test}
    table(report_rows(test)), training_line(report, history)  # whatever shows it can
    if not {WEIGHTS} <= set(digests) <= {WEIGHTS, STABLEHLO, ONNX}:
        raise ValueError(f"sha256 must be of {WEIGHTS}, and of {STABLEHLO} and {ONNX} at most")
    return Model(config, data, report, history, digests)


def _check_names(what: str, found: Any, expected: set[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be an object; got {found!r}")
    if other := sorted(set(found) ^ expected):
        missing = "missing" if other[0] in expected else "not known"
        raise ValueError(f"{what}: {other[0]!r} is {missing}")


def _check_data(data: Any) -> None:
    _check_names("data", data, _DATA)
    _check_names("counts", data["counts"], set(_PARTS))
    shape, dtype = data["example_shape"], data["example_dtype"]
    for count in (data["examples"], *data["counts"].values(), *shape):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"counts and shapes must be whole numbers from 1 on; got {count!r}")
    if dtype not in ("uint8", "bfloat16", "float16", "float32", "float64"):
        raise ValueError(f"example_dtype must be uint8 or a float; got {dtype!r}")
    if not isinstance(shape, list) or not shape or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"example_shape must be a list of up to {_MOST_NUMBERS:,} in all")
    if dtype == "uint8" and (len(shape) != 3 or shape[2] not in (1, 3)):
        raise ValueError(f"pictures are [height, width, 1 or 3]; got {shape}")
    if not isinstance(data["dataset"], str):
        raise ValueError(f"dataset must be a name; got {data['dataset']!r}")


def _record(found: Any) -> dict[str, Any]:
    """Of an epoch, which has no share of easy triplets if it had no triplets."""
    easy = found["easy_fraction"]
    return {
        "epoch": _number(found["epoch"]),
        "margin": _number(found["margin"]),
        "easy_fraction": None if easy is None else _number(easy),
    }


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"expected a number; got {value!r}")
    return value


def _texts(value: Any) -> Iterator[str]:
    """The texts of a JSON value whose length is bounded, names too."""
    if isinstance(value, dict):
        yield from value
        value = [v for name, v in value.items() if name not in _MAY_BE_LONGER]
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
