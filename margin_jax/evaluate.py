"""A finished run put to use: other pairs, folders of images, two images."""

import csv
from pathlib import Path

import numpy as np

from margin_jax.data import folder as image_folder
from margin_jax.data.pairs import Pairs, sample_pairs
from margin_jax.evaluation.verification import VerificationReport
from margin_jax.run import PAIRS, Run
from margin_jax.training import prepare_data


def evaluate_run(
    run: Run,
    *,
    data_dir: str | Path | None = None,
    pairs: str | Path | None = None,
    count: int = 100_000,
    seed: int = 0,
) -> VerificationReport:
    """Verification with a run's best weights, at its threshold.

    Args:
        run: from :func:`~margin_jax.load_run`.
        data_dir: a folder of images for each identity. Default: the run's own saved test pairs.
        pairs: a csv file of lines ``FIRST,SECOND,1`` (same) or ``0``, the files relative to
            `data_dir`. Default: pairs drawn evenly over all identities of `data_dir`.
        count, seed: of the pairs that are drawn.

    Raises:
        ValueError: files that are missing or unreadable, or pairs of one kind only.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 pairs; got {count}")
    if data_dir is None:
        if pairs is not None:
            raise ValueError("pairs need data_dir, the folder that their files are relative to")
        dataset = prepare_data(run.config).dataset
        with np.load(run.path / PAIRS) as saved:
            if tuple(saved["files"]) != dataset.files:
                raise ValueError(f"the images are not those that {run.path} was tested on")
            return run.evaluate(dataset.images, Pairs(saved["test_rows"], saved["test_same"]))
    if pairs is not None:
        return _evaluate_csv(run, Path(data_dir), Path(pairs))
    size, _, channels = run.data["image_shape"]
    dataset = image_folder.load(Path(data_dir), size, channels=channels)
    return run.evaluate(dataset.images, sample_pairs(dataset.labels, count, seed=seed))


def embed_folder(run: Run, root: str | Path) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """``(files, float32[files, dim], "path: reason" of unreadable ones)`` of all images below.

    Raises:
        ValueError: if there is no readable image.
    """
    if not Path(root).is_dir():
        raise ValueError(f"expected a folder of images; there is no folder {root}")
    paths = image_folder.find_images(Path(root))
    size, _, channels = run.data["image_shape"]
    images, kept, skipped = image_folder.read_images(paths, size, channels)
    if not kept:
        reason = f" (first: {skipped[0]})" if skipped else ""
        raise ValueError(f"no readable images below {root}{reason}")
    return [str(path.relative_to(root)) for path in kept], run.embed(images), skipped


def verify_images(run: Run, first: str | Path, second: str | Path) -> float:
    """The distance between two image files; at most ``run.threshold`` means the same identity.

    Raises:
        ValueError: if one of them can not be read.
    """
    images = _read(run, [Path(first), Path(second)])
    return float(run.distances(images, np.array([[0, 1]]))[0])


def _read(run: Run, paths: list[Path]) -> np.ndarray:
    size, _, channels = run.data["image_shape"]
    images, _, skipped = image_folder.read_images(paths, size, channels)
    if skipped:
        raise ValueError(f"{len(skipped)} of {len(paths)} images unreadable, first {skipped[0]}")
    return images


def _evaluate_csv(run: Run, root: Path, path: Path) -> VerificationReport:
    index: dict[str, int] = {}
    rows, same = [], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, fields in enumerate(csv.reader(file), start=1):
            if not fields:
                continue
            cells = [field.strip() for field in fields]
            if len(cells) != 3 or cells[2] not in ("0", "1"):
                raise ValueError(
                    f"{path}, line {number}: expected FIRST,SECOND,1 or 0; got {','.join(fields)!r}"
                )
            rows.append([index.setdefault(name, len(index)) for name in cells[:2]])
            same.append(cells[2] == "1")
    if not rows:
        raise ValueError(f"no pairs in {path}")
    images = _read(run, [root / name for name in index])
    return run.evaluate(images, Pairs(np.array(rows), np.array(same)))
