"""The records and pictures of a run, for TensorBoard."""

from pathlib import Path
from typing import Any

from margin_jax.runs.folder import FIGURES, TENSORBOARD, read_history

_EVENTS = "events.out.tfevents.*"


class TensorBoard:
    """Writes events into the folder ``tensorboard`` of a run.

    They are written anew whenever a run begins or goes on, from its history: so no epoch is there
    twice, and none is missing that was trained without it.

    Args:
        folder: of the run.

    Raises:
        ValueError: if tensorboardX, which writes them, is not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "--tensorboard needs tensorboardX: pip install 'margin-jax[tensorboard]'"
            ) from error
        self._folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def on_epoch(self, record: dict[str, Any]) -> None:
        """As `on_epoch` of :func:`~margin_jax.fit`, whose history has the record already."""
        records = [record]
        if self._writer is None:
            for path in (self._folder / TENSORBOARD).glob(_EVENTS):
                path.unlink()
            self._writer = self._make(str(self._folder / TENSORBOARD))
            records = read_history(self._folder)
        for own in records:
            for tag, value in _scalars(own):
                self._writer.add_scalar(tag, value, own["epoch"])
        self._writer.flush()

    def finish(self) -> None:
        """Adds the pictures of a run that has ended, if it was trained."""
        import numpy as np
        from PIL import Image

        if self._writer is None:
            return
        for path in sorted((self._folder / FIGURES).glob("*.png")):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(path.stem, pixels, dataformats="HWC")
        self._writer.close()


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Numbers by tag, in two groups, which TensorBoard folds up: training and validation."""
    found = []
    for name, value in record.items():
        group, _, rest = name.partition("_")
        tag = f"{group}/{rest}" if group == "validation" else f"training/{name}"
        if isinstance(value, int | float) and name != "epoch":
            found.append((tag, float(value)))
    return found
