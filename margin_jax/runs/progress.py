"""The progress of a run: a bar in terminals and notebooks, a line an epoch everywhere else."""

import sys
import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # It is about notebooks without ipywidgets, where nothing needs them: lines are printed.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm


class ProgressBar:
    """Counts epochs in fractions, with the loss, the margin, the easy share and the validation.

    What cannot be drawn over, such as a file, gets a line after every epoch instead of a bar.
    """

    def __init__(self, title: str, epochs: int, done: int, enabled: bool) -> None:
        self._bar = tqdm(
            desc=title,
            total=epochs,
            initial=done,
            disable=not (enabled and _can_be_drawn()),
            bar_format="{l_bar}{bar}| {n:.1f}/{total} epochs [{elapsed}<{remaining}]{postfix}",
        )
        self._lines = enabled and self._bar.disable
        self._title, self._epochs = title, epochs
        self._figures: dict[str, str] = {}
        self._done, self._epoch, self._steps, self._loss = float(done), done, 1, 0.0

    def start(self, margin: float, steps: int, loss: float = 0.0) -> None:
        """An epoch begins, or goes on, with the sum of the losses of the steps that are done."""
        self._figures["margin"] = f"{margin:.2f}"
        self._steps, self._loss = steps, loss

    def step(self, steps_read: int, loss: float, easy_fraction: float) -> None:
        """As `on_step` of :func:`~margin_jax.train_epoch`; shows the mean of the losses so far."""
        self._loss += loss
        mean = self._loss / steps_read
        self._figures |= {"loss": f"{mean:.3f}", "easy": f"{easy_fraction:.1%}"}
        self._show(self._epoch + steps_read / self._steps)

    def validated(self, auc: float) -> None:
        """An epoch is over."""
        self._figures["val AUC"] = f"{auc:.4f}"
        self._epoch += 1
        self._show(self._epoch)
        if self._lines:
            told = ", ".join(f"{name}={figure}" for name, figure in self._figures.items())
            _print(f"{self._title}: {self._epoch}/{self._epochs} epochs, {told}")

    def _show(self, done: float) -> None:
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(done - self._done)
        self._done = done

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


class RowBar:
    """Counts examples; what cannot be drawn over gets some lines instead of a bar, usually ten."""

    def __init__(self, title: str, total: int, enabled: bool, lines: int = 10) -> None:
        self._bar = tqdm(
            desc=title,
            total=total,
            disable=not (enabled and _can_be_drawn()),
            bar_format="{l_bar}{bar}| {n:,}/{total:,} examples [{elapsed}<{remaining}, {rate_fmt}]",
        )
        self._lines = lines if enabled and self._bar.disable else 0
        self._title, self._total, self._done = title, total, 0

    def show(self, done: int) -> None:
        """So many are done; those of the first call do not count for the speed."""
        if self._done == 0:
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
        self._bar.update(done - self._bar.n)
        before, now = (self._lines * n // self._total for n in (self._done, done))
        if now > before:
            _print(f"{self._title}: {done:,}/{self._total:,} examples")
        self._done = done

    def __enter__(self) -> "RowBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _print(line: str) -> None:
    # A notebook marks what comes from stderr as if it were an error.
    print(line, file=sys.stdout if _in_notebook() else sys.stderr)


def _can_be_drawn() -> bool:
    """Whether a bar can be drawn over: as a widget of a notebook, or in a terminal."""
    widget = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    return widget or sys.stderr.isatty()


def _in_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules
