"""Standard output and standard error that fail nothing: what cannot be shown is not shown."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, TextIO


class Shown:
    """A stream whose first failure is remembered, not raised; what follows goes nowhere.

    Args:
        stream: as Python has it, None if it is closed.
        number: of its file, as the system has it.

    Attributes:
        lost: why something could not be shown, if so.
    """

    def __init__(self, stream: TextIO | None, number: int) -> None:
        self._stream = stream or os.fdopen(number, "w", encoding="utf-8", closefd=False)
        self.lost: OSError | None = None
        # A sign that it cannot show is no failure either; other streams take all signs.
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any stream."""
        with self._remembering():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of any stream."""
        with self._remembering():
            self._stream.flush()

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError):  # or Python would try once more at its end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def hold_streams() -> None:
    """Keeps the numbers of closed streams, or a checkpoint gets one, and all that is said to it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
