"""The card of a model: what it is, how well it does, and how it is used without margin-jax."""

from collections.abc import Collection, Mapping
from typing import Any

import jax

from margin_jax.choices import OWN
from margin_jax.config import TrainConfig
from margin_jax.evaluation.tables import report_rows, table, training_line
from margin_jax.runs.portable import (
    MODEL,
    ONNX,
    STABLEHLO,
    Model,
    threshold_rule,
)
from margin_jax.runs.weights import WEIGHTS

# The distance of two embeddings, a and b, as NumPy has it.
_DISTANCES = {
    "euclidean": "np.linalg.norm(a - b)",
    "squared_euclidean": "np.sum((a - b) ** 2)",
    "cosine": "1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))",
    "manhattan": "np.sum(np.abs(a - b))",
    "chebyshev": "np.max(np.abs(a - b))",
}
# A picture as a square, as `data.decode` makes it.
_FITS = {
    "pad": """    inner = [max(1, round(n * ({size} / max(image.size)))) for n in image.size]
    pixels = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
    around = [(({size} - n) // 2, {size} - n - ({size} - n) // 2) for n in pixels.shape[:2]]
    return np.pad(pixels, [*around, (0, 0)][:pixels.ndim], mode="edge").reshape({shape})
""",
    "crop": """    side = min(image.size)
    left, top = ((n - side) / 2 for n in image.size)
    box = (left, top, left + side, top + side)
    pixels = image.resize(({size}, {size}), Image.Resampling.BILINEAR, box)
    return np.asarray(pixels).reshape({shape})
""",
    "stretch": """    pixels = image.resize(({size}, {size}), Image.Resampling.BILINEAR)
    return np.asarray(pixels).reshape({shape})
""",
}
_USE = """import jax
import jax.export
import numpy as np
{imports}from safetensors.numpy import load_file

weights = load_file("{weights}")
with open("{program}", "rb") as file:
    embed = jax.jit(jax.export.deserialize(file.read()).call)

{read}a, b = np.asarray(embed(weights, {examples}))
distance = {distance}
print("same" if distance <= {threshold!r} else "different", distance)
"""
_READ = """def read(path):
    image = Image.open(path)
    image.draft(None, ({twice}, {twice}))
    image = ImageOps.exif_transpose(image).convert("{mode}")
{fit}
"""
_PICTURES = """Pictures are read as margin-jax reads them, but for transparent ones and 16 bits.
"""
_TAGS = ("jax", "metric-learning", "triplet-loss", "verification")
_CARD = """---
library_name: margin-jax
tags:{tags}{task}
---

# An encoder trained on {title}

Two examples are of the same identity if their embeddings are near each other.

| | |
|---|---|
{rows}

## How well it does

On identities that it was not trained on, of the same data. On other data all of this can be worse:
choose a threshold on pairs of your own.

{figures}{notes}

## How it is used

{bare}With margin-jax, `mj.load_pretrained(FOLDER)` gives a run that embeds, verifies and is
evaluated; `margin-jax verify FOLDER FIRST SECOND` and the other commands take the folder, too.
`{weights}` holds the arrays by name, `{description}` all that is said here.
"""
_BARE = """With JAX alone (`pip install {packages}`), in this folder:

```python
{use}```

{pictures}`{program}` is StableHLO by JAX {version}, for CPU, CUDA and TPU. Where a JAX refuses it,
as an older one may, it is made again from the weights: `margin-jax export FOLDER --out NEW`.

"""


def use(model: Model) -> str:
    """The lines of Python that a model folder is used with; nothing of them is margin-jax."""
    shape, config = model.data["example_shape"], model.config
    imports, examples = "", "examples[:2]"
    dtype = "uint8" if _pictures(model) else "float32"
    of = ", ".join(map(str, shape))
    read = f'examples = np.load("examples.npy").astype(np.{dtype})  # [n, {of}]\n'
    if _read_from_files(model):
        size, *_, channels = shape
        fit = _FITS[config.fit].format(size=size, shape=of)
        mode = "L" if channels == 1 else "RGB"
        imports = "from PIL import Image, ImageOps\n"
        read = _READ.format(twice=2 * size, mode=mode, fit=fit)
        examples = 'np.stack([read("a.jpg"), read("b.jpg")])'
    return _USE.format(
        imports=imports,
        weights=WEIGHTS,
        program=STABLEHLO,
        read=read,
        examples=examples,
        distance=_DISTANCES[config.distance],
        threshold=model.report["test"]["threshold"],
    )


def _pictures(model: Model) -> bool:
    return bool(model.data["example_dtype"] == "uint8")


def _read_from_files(model: Model) -> bool:
    """Whether a file of a picture gives an example: a square, as not all arrays are."""
    shape = model.data["example_shape"]
    return _pictures(model) and bool(shape[0] == shape[1])


def card(model: Model, programs: Collection[str]) -> str:
    """The text of ``README.md``.

    Args:
        model: what the folder's description says.
        programs: names of the files that there are besides.
    """
    config, data, test = model.config, model.data, model.report["test"]
    pictures = _pictures(model)
    shape, counts = " x ".join(map(str, data["example_shape"])), data["counts"]
    told = {
        "encoder": config.encoder,
        "takes": f"{'pictures, uint8' if pictures else 'float32'}, {shape}, any number at once",
        "returns": "embeddings, float32",
        "distance": config.distance,
        "threshold": f"{test['threshold']:.6g}, {threshold_rule(model)}",
        "data": f"{data['dataset']}: {data['examples']:,} {'images' if pictures else 'examples'}",
        "identities": f"{counts['train']:,} trained on, {counts['validation']:,} for validation, "
        f"{counts['test']:,} tested; none is in two of these",
        "loss": f"{config.loss}, reduction {config.reduction}, mining {config.mining}",
        "schedule": f"{_text(*config.schedule_parameters())}; "
        f"{training_line(model.report, model.history)}",
        "training": f"{_optimizer(config)}, batches of {config.identities_per_batch} identities "
        f"with {config.images_per_identity}, augmentation {config.augment}, seed {config.seed}"
        + (", from published weights" if config.pretrained else ""),
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in told.items())
    notes = "".join(f"\n- {warning}" for warning in test["warnings"])
    bare = ""
    if STABLEHLO in programs:
        bare = _BARE.format(
            packages="jax flatbuffers safetensors" + (" pillow" if _read_from_files(model) else ""),
            use=use(model),
            pictures=_PICTURES if _read_from_files(model) else "",
            program=STABLEHLO,
            version=jax.__version__,
        )
    if ONNX in programs:
        bare += f"`{ONNX}` is the same for runtimes of ONNX, with the weights inside.\n\n"
    return _CARD.format(
        tags="".join(f"\n- {tag}" for tag in _TAGS),
        task="\npipeline_tag: image-feature-extraction" if pictures else "",
        title=data["dataset"],
        rows=rows,
        figures=table(report_rows(test)),
        notes=f"\n{notes}" if notes else "",
        bare=bare,
        weights=WEIGHTS,
        description=MODEL,
    )


def _optimizer(config: TrainConfig) -> str:
    if config.optimizer == OWN:
        return "an optimiser of one's own"
    rate = f"learning rate {config.learning_rate:g} ({config.learning_rate_schedule})"
    return f"{config.optimizer}, {rate}"


def _text(name: str, parameters: Mapping[str, Any]) -> str:
    said = ",".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}:{said}" if said else name
