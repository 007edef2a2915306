"""Features of all examples of a dataset, made once and kept in a file that heads train on."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from margin_jax import __version__
from margin_jax.choices import check_choice
from margin_jax.config.option import MOST
from margin_jax.data.augmentation import Augment, make_augment
from margin_jax.data.dataset import Dataset, read_rows
from margin_jax.data.loader import read_ahead
from margin_jax.data.splits import Split
from margin_jax.devices.meshes import check_devices, make_mesh
from margin_jax.files import parse_json, sha256, to_json
from margin_jax.models.encoder import Encoder
from margin_jax.runs.feature_file import Growing, check_vacant, finish, stored, text, unfinished
from margin_jax.runs.progress import RowBar
from margin_jax.runs.run_data import check_identities
from margin_jax.runs.trunk import Trunk, prepare

FEATURE_DTYPES = ("float32", "float16")
# How far two computations of one feature may be apart, on other devices or in other batches.
_APART = 1e-2


def extract_features(
    dataset: Dataset | Callable[[], Dataset],
    encoder: str | Encoder | Trunk,
    out: str | Path,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    views: int = 0,
    augment: str = "none",
    seed: int = 0,
    feature_dtype: str = "float32",
    batch_size: int = 64,
    devices: int | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes the features of all examples to an npz file, in batches and bounded memory.

    The arrays of the file: ``features`` float[n, d]; ``labels`` and ``files``, text[n]; ``groups``
    int32[n], if the dataset has groups of several identities; ``splits`` text[n], if it has its own
    split; ``views`` float[n, views, d], if requested; and ``about``, which describes in JSON how
    the file was made. Nothing is compressed, and ``load_dataset("vectors", OUT)`` reads the file.

    If it is interrupted, the same call continues from the folder ``OUT.partial``. A view depends
    only on the seed, its number and the row, not on batches or devices.

    Args:
        dataset: the examples, for instance from :func:`load_dataset`; or a function that loads
            them.
        encoder: one of these:

            - a name, ``NAME`` or ``NAME:KEY=VALUE,...``, as in a configuration: features are the
              outputs of the trunk, before the head;
            - an :class:`Encoder`, such as one with a trained NNX module: features are its outputs;
              its input is normalised by the statistics of all examples;
            - a function of uint8[batch, height, width, channels] or float32[batch, ...], a NumPy
              array, that returns floats [batch, d]: ``run.embed``, or a network of another
              framework. It gets at most `batch_size` rows, which are not normalised.
        out: the file, ``NAME.npz``.
        pretrained: for an encoder given by name, use pretrained weights from the Hugging Face hub.
        weights: for an encoder given by name, a safetensors file with the same tensors. With
            either, the input is normalised as in pretraining. Without, weights are drawn at random,
            and the input is normalised by the statistics of all examples.
        views: how many augmented copies of each image to compute features for.
        augment: how the copies are made; see :func:`make_augment`.
        seed: the random seed of views and random weights.
        feature_dtype: "float32" or "float16" (half the size).
        batch_size: examples per batch.
        devices: how many devices share a batch. Default: all accelerators, or one CPU.
        about: further entries for the array ``about``, as JSON values, such as the source of the
            examples or the weights of a function. To continue, a call must give the same.
        overwrite: replace an existing file, or an unfinished one of another call.
        progress: show a progress bar.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the file exists, an unfinished one is of another call, the encoder has no
            trunk or does not take the examples, or features are not finite.
        TypeError: for any other encoder.

    Example:
        >>> import tempfile, numpy as np, margin_jax as mj
        >>> images = np.zeros((4, 8, 8, 1), np.uint8)
        >>> mine = mj.Dataset.from_arrays(images, np.array(["bo", "bo", "al", "al"]))
        >>> out = tempfile.mkdtemp() + "/brightness.npz"
        >>> with np.load(mj.extract_features(mine, lambda x: x.mean(axis=(1, 2)), out)) as file:
        ...     file["features"].shape, file["labels"].tolist()
        ((4, 1), ['bo', 'bo', 'al', 'al'])
    """
    check_devices()
    if jax.process_count() > 1:
        raise ValueError(
            f"features are made by one process; this is one of {jax.process_count()}, which could "
            "make those of a part of the examples each"
        )
    check_choice("feature_dtype", feature_dtype, FEATURE_DTYPES)
    move = make_augment(augment)
    if (move is None) != (views == 0) or views < 0:
        raise ValueError(
            "views and augment need each other, such as 4 and flip,crop:0.8; "
            f"got {views} and {augment!r}"
        )
    if not 1 <= batch_size <= MOST:
        raise ValueError(f"batch_size must be at least 1 and at most {MOST:,}; got {batch_size}")
    target = check_vacant(out, overwrite)
    mesh = make_mesh(devices, batch_size)
    ready = prepare(encoder, pretrained, weights, seed)
    data = dataset() if callable(dataset) else dataset
    check_identities(data)
    if isinstance(encoder, str) and not data.pictures:
        raise ValueError(
            f"encoders by name are for pictures, uint8; got examples of {data.examples.dtype}"
        )
    compute, told = ready(data, mesh, batch_size)
    job = {
        "encoder": told,
        **(about or {}),
        "examples": len(data.labels),
        "example_shape": list(data.examples.shape[1:]),
        "sha256": data.digest(),
        "sha256_files": sha256("\n".join(data.files).encode(errors="surrogatepass")),
        "views": views,
        "augment": augment,
        "seed": seed,
        "feature_dtype": feature_dtype,
        "margin_jax": __version__,
    }

    def make(rows: np.ndarray, read: np.ndarray) -> dict[str, np.ndarray]:
        checked = functools.partial(_checked, data, rows, feature_dtype)
        made = {"features": checked(compute(read))}
        if move is not None:
            copies = _views(move, read, rows, seed, views, batch_size)
            made["views"] = np.stack([checked(compute(copy)) for copy in copies], axis=1)
        return made

    with (
        unfinished(target, parse_json(to_json(job)), overwrite) as folder,
        RowBar(str(target), len(data.labels), progress) as bar,
    ):
        arrays = _grow(folder, data, make, batch_size, bar)
        labels, files = text(data.identities, data.labels), text(data.files)
        whole = {**arrays.stored(), "labels": labels, "files": files}
        if len(np.unique(data.groups)) < len(data.groups):
            whole["groups"] = stored(data.groups[data.labels])
        if data.parts is not None:
            whole["splits"] = text(Split._fields, data.parts)
        finish(folder, target, {**whole, "about": stored(np.array(to_json(job)))})
    return target


def _grow(
    folder: Path,
    data: Dataset,
    make: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
    batch_size: int,
    bar: RowBar,
) -> Growing:
    """All rows, each batch written as it comes; those that are there are not made again."""
    everything = np.arange(len(data.labels))
    start = everything[:batch_size]
    made = make(start, read_rows(data.examples, start))
    arrays = Growing(folder, made)
    if arrays.done == 0:
        arrays.append(made)
    elif not _alike(arrays.first(min(arrays.done, len(start))), made):
        raise ValueError(
            f"{folder} has features of another network: add --overwrite, or choose another --out"
        )
    bar.show(arrays.done)
    left = everything[arrays.done :]
    plan = [left[first : first + batch_size] for first in range(0, len(left), batch_size)]
    for rows, read in zip(plan, read_ahead(data.examples, plan), strict=True):
        arrays.append(make(rows, read))
        bar.show(arrays.done)
    return arrays


def _alike(earlier: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> bool:
    """Whether rows are the same, but for the order in which numbers were added up."""
    pairs = [(a.astype(float), now[name][: len(a)]) for name, a in earlier.items()]
    return all(np.abs(a - b).max() <= _APART * np.abs(a).max() for a, b in pairs)


def _views(
    move: Augment, read: np.ndarray, rows: np.ndarray, seed: int, views: int, size: int
) -> Iterator[np.ndarray]:
    """Copies of pictures, one after another; of `size` rows, so that one program serves all."""
    missing = size - len(rows)
    padded = np.pad(read, [(0, missing)] + [(0, 0)] * (read.ndim - 1))
    numbers = np.pad(rows, (0, missing))
    for view in range(views):
        key = jax.random.fold_in(jax.random.key(seed), view)
        yield np.asarray(_moved(move, padded, numbers, key))[: len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _moved(move: Augment, pictures: Array, rows: Array, key: Array) -> Array:
    """Each by a key of its own, so that it comes out the same in any company."""

    def of_one(picture: Array, row: Array) -> Array:
        return move(picture[None], jax.random.fold_in(key, row))[0]

    moved: Array = jax.vmap(of_one)(pictures, rows)
    return moved


def _checked(data: Dataset, rows: np.ndarray, dtype: str, computed: ArrayLike) -> np.ndarray:
    """The features of some rows as they are kept.

    Raises:
        ValueError: for another shape, or what is not finite.
    """
    found = np.asarray(computed)
    if found.ndim != 2 or len(found) != len(rows) or found.shape[1] == 0:
        raise ValueError(f"features must have shape ({len(rows)}, d); got {found.shape}")
    with np.errstate(over="ignore"):
        found = found.astype(dtype)
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"features must be finite numbers of {dtype}; those of "
            f"{data.files[rows[np.argmin(finite)]]} are not"
        )
    return found
