"""The progress bar of a run, in terminals and notebooks alike."""

from tqdm.auto import tqdm


class ProgressBar:
    """Counts epochs in fractions, with the loss, the margin, the easy share and the validation."""

    def __init__(self, title: str, epochs: int, done: int, enabled: bool) -> None:
        self._bar = tqdm(
            desc=title,
            total=epochs,
            initial=done,
            disable=not enabled,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} epochs [{elapsed}<{remaining}]{postfix}",
        )
        self._figures: dict[str, str] = {}
        self._done, self._epoch, self._steps = float(done), done, 1

    def start(self, margin: float, steps: int) -> None:
        """An epoch begins, or goes on."""
        self._figures["margin"] = f"{margin:.2f}"
        self._steps = steps

    def step(self, steps_read: int, loss: float, easy_fraction: float) -> None:
        """As `on_step` of :func:`~margin_jax.train_epoch`."""
        self._figures |= {"loss": f"{loss:.3f}", "easy": f"{easy_fraction:.1%}"}
        self._show(self._epoch + steps_read / self._steps)

    def validated(self, auc: float) -> None:
        """An epoch is over."""
        self._figures["val AUC"] = f"{auc:.4f}"
        self._epoch += 1
        self._show(self._epoch)

    def _show(self, done: float) -> None:
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(done - self._done)
        self._done = done

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
