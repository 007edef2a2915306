"""TensorFlow Datasets: read without TensorFlow, which only their preparation needs, once.

They are kept as array_record files below ``data_dir/NAME/CONFIG/VERSION``. TFDS writes them in a
folder of another name, which gets this one when all is written, so half a data set is never read.
"""

import contextlib
import difflib
import importlib.util
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from margin_jax.choices import check_choice
from margin_jax.data.dataset import Dataset
from margin_jax.data.decode import USUAL, Reading
from margin_jax.data.images import load_images
from margin_jax.data.presets import get_preset

PREFIX = "tfds:"
DEFAULT_SIZE = 64
_FORMAT = "array_record"
_WHOLE = "dataset_info.json"  # TFDS writes it last
_NO_TENSORFLOW = (
    "preparing tfds:{} needs TensorFlow, once; reading it does not: pip install "
    "'margin-jax[prepare]'"
)
_DAMAGED = "{} is damaged: {}; delete it to prepare it anew"
_NO_LABEL = -1  # what TFDS puts for an unknown class
_BLOCK = 1024  # records that are read at a time
_FEW = 8  # files that are named in an error

_Read: TypeAlias = Callable[[np.ndarray], list[Any]]


def load(
    name: str,
    data_dir: Path | None = None,
    image_size: int | None = None,
    strict: bool = False,
    *,
    manual_dir: Path | None = None,
    label_key: str | None = None,
    memory_limit: float = float("inf"),
    reading: Reading = USUAL,
) -> Dataset:
    """A data set by its name in TFDS, prepared first if it is not.

    Images without a label, as in the test parts of contests, are left out.

    Args:
        name: NAME or NAME:CONFIG; it may be one of your own that lies prepared in `data_dir`.
        data_dir: where data sets are prepared. Default: that of TFDS, ``~/tensorflow_datasets``.
        image_size: height and width in pixels. Default: the preset's, or 64.
        strict: an unreadable image is an error instead of being skipped and listed.
        manual_dir: a folder of files that TFDS would download, or that only you can.
        label_key: the feature that names the identity, ``outer/inner`` for a nested one. Default:
            "label", or the only ClassLabel.
        memory_limit: in bytes; larger sets are decoded anew whenever images are asked for.
        reading: what is done to images on the way.

    Raises:
        ValueError: for a name, a configuration or a feature that does not exist, fewer than two
            identities, or whatever ends the preparation, a missing TensorFlow or file, say.
    """
    import tensorflow_datasets as tfds

    preset = get_preset(name)
    builder = _builder(name, data_dir)
    features = builder.info.features
    image_key, label_key = _keys(name, features, label_key)
    if not (Path(builder.data_path) / _WHOLE).is_file():
        _prepare(name, builder, manual_dir)
    read, count = _reader(builder, preset.parts if preset else "all", image_key)
    named = np.array(_names(read, count, label_key))
    label = _flat(features)[label_key]
    is_class = isinstance(label, tfds.features.ClassLabel)
    rows = np.flatnonzero(named != _NO_LABEL) if is_class else np.arange(count)

    def encoded(chosen: np.ndarray) -> list[BinaryIO]:
        return [io.BytesIO(record[image_key]) for record in read(rows[chosen])]

    images, kept, unread, notes = load_images(
        encoded,
        len(rows),
        image_size or (preset.image_size if preset else DEFAULT_SIZE),
        preset.channels if preset else {1: 1, 3: 3}.get(features[image_key].shape[-1]),
        memory_limit,
        reading,
    )
    kept = rows[kept]
    skipped = tuple(f"image {rows[row]}: {reason}" for row, reason in unread.items())
    if skipped and strict:
        raise ValueError(f"{len(skipped)} unreadable image(s) in {name}, first {skipped[0]}")
    present, labels = np.unique(named[kept], return_inverse=True)
    if len(present) < 2:
        raise ValueError(
            f"expected at least two identities in {name}; got {len(present)}"
            + (f" (first unreadable: {skipped[0]})" if skipped else "")
        )
    text = label.int2str if is_class else str
    return Dataset(
        examples=images,
        labels=labels.astype(np.int32),
        identities=tuple(text(value) for value in present.tolist()),
        files=tuple(f"image {row}" for row in kept),
        groups=np.arange(len(present), dtype=np.int32),
        skipped=skipped,
        notes=notes,
    )


def prepared(data_dir: Path | None = None) -> list[str]:
    """Names, as NAME or NAME:CONFIG, of what lies prepared in `data_dir`."""
    root = default_folder() if data_dir is None else data_dir
    found = [*root.glob(f"*/*/{_WHOLE}"), *root.glob(f"*/*/*/{_WHOLE}")]
    folders = [path.parent for path in found if not path.parent.name.startswith("incomplete.")]
    names = {folder.parent.relative_to(root).as_posix() for folder in folders}
    return sorted(name.replace("/", ":") for name in names)


def default_folder() -> Path:
    """Where TFDS prepares data sets if no other folder is said."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _builder(name: str, data_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    base, _, configuration = name.replace(":", "/", 1).partition("/")
    where = os.fspath(data_dir or default_folder())
    known = tfds.list_builders(with_community_datasets=False)
    if base in known and configuration:
        configurations = list(tfds.builder_cls(base).builder_configs)
        if not configurations:
            raise ValueError(f"{PREFIX}{base} has no configurations; got {configuration!r}")
        check_choice(f"the configuration of {base}", configuration, configurations)
    try:
        full = f"{base}/{configuration}".rstrip("/")
        return tfds.builder(full, file_format=_FORMAT, data_dir=where)
    except Exception as error:
        reason = _first_line(error)
        if "No module named 'tensorflow'" in reason:
            raise ValueError(_NO_TENSORFLOW.format(name)) from error
        if "file format" in reason.lower():
            raise ValueError(
                f"{PREFIX}{name} must be prepared as {_FORMAT}; in {where} it has a format that "
                "only TensorFlow reads: prepare it in another data_dir"
            ) from error
        if base in known:
            raise ValueError(f"could not open {PREFIX}{name}: {reason}") from error
        near = difflib.get_close_matches(base, known)
        hint = f". Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"no {PREFIX}{name}, neither among the {len(known)} of TensorFlow Datasets nor "
            f"prepared in {where}: {reason}{hint}"
        ) from error


def _keys(name: str, features: Any, label_key: str | None) -> tuple[str, str]:
    """The features with the image and with what names its identity."""
    import tensorflow_datasets as tfds

    def of(kind: type, among: Any) -> list[str]:
        return [key for key, feature in among.items() if isinstance(feature, kind)]

    images = of(tfds.features.Image, features)
    if len(images) != 1 and "image" not in images:
        raise ValueError(
            f"{PREFIX}{name} must have one feature that is an image, or one that is called image; "
            f"got {', '.join(sorted(images)) or 'none'}"
        )
    labels = {  # each is one whole number or one text
        key: feature
        for key, feature in _flat(features).items()
        if feature.shape == () and np.dtype(feature.np_dtype).kind in "iuO"
    }
    classes = of(tfds.features.ClassLabel, labels)
    if label_key is None and ("label" in labels or len(classes) == 1):
        label_key = "label" if "label" in labels else classes[0]
    if label_key not in labels:
        raise ValueError(
            f"label_key must be the feature of {PREFIX}{name} that names the identity, one of "
            f"{', '.join(sorted(labels)) or 'none'}; got {label_key}"
        )
    return "image" if "image" in images else images[0], label_key


def _flat(nested: Any) -> dict[str, Any]:
    """Features, or the values of a record, by their keys; those of nested ones as outer/inner."""
    import tensorflow_datasets as tfds

    flat: dict[str, Any] = {}
    for key, inner in nested.items():
        more = isinstance(inner, dict | tfds.features.FeaturesDict)
        flat |= {f"{key}/{k}": v for k, v in _flat(inner).items()} if more else {key: inner}
    return flat


def _reader(builder: Any, parts: str, image_key: str) -> tuple[_Read, int]:
    """What reads the records of some rows, with images as they were encoded; how many there are."""
    import tensorflow_datasets as tfds

    encoded_only = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    source = builder.as_data_source(parts, decoders=encoded_only)
    lock = threading.Lock()  # old versions of array_record open files without one

    def read(rows: np.ndarray) -> list[Any]:
        try:
            with lock:
                records: list[Any] = source.__getitems__(rows.tolist())
        except RuntimeError as error:  # array_record has no other kind
            raise ValueError(_DAMAGED.format(builder.data_path, _first_line(error))) from error
        if not all(record[image_key] for record in records):  # so it reads a file cut short
            raise ValueError(_DAMAGED.format(builder.data_path, "there are empty records"))
        return records

    return read, len(source)


def _names(read: _Read, count: int, label_key: str) -> list[str | int]:
    """What names the identity of each record: the number of a class, another number, or a text."""
    names = []
    for start in range(0, count, _BLOCK):
        for record in read(np.arange(start, min(start + _BLOCK, count))):
            value = _flat(record)[label_key]
            text = isinstance(value, bytes)
            names.append(value.decode(errors="backslashreplace") if text else int(value))
    return names


def _prepare(name: str, builder: Any, manual_dir: Path | None) -> None:
    """Downloads what `manual_dir` does not have, and writes array_record files."""
    import tensorflow_datasets as tfds

    if Path(builder.data_path).exists():
        raise ValueError(_DAMAGED.format(builder.data_path, f"there is no {_WHOLE}"))
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"{_NO_TENSORFLOW.format(name)} (not in {builder.data_path} yet)")
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise ValueError(f"manual_dir must be a folder; there is no folder {manual_dir}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    where = tfds.download.DownloadConfig(manual_dir=manual_dir and os.fspath(manual_dir))
    try:
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.set_visible_devices([], "GPU")  # or it would take all of the memory
        builder.download_and_prepare(download_config=where, file_format=_FORMAT)
    except Exception as error:  # each builder has its own kinds
        hint = builder.MANUAL_DOWNLOAD_INSTRUCTIONS or ""
        files = [url.filename for url in (builder.url_infos or {}).values() if url.filename]
        if files and not hint:
            names = ", ".join(files[:_FEW] + ["…"] * (len(files) > _FEW))
            hint = f"Missing or wrong files can be put by hand into a folder, manual_dir: {names}"
        reason = f"{type(error).__name__}: {_first_line(error)}. {' '.join(hint.split())}".strip()
        raise ValueError(f"could not prepare {PREFIX}{name}: {reason}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(":.")
