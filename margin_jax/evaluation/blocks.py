"""Rows in blocks, each compared with all others at once: in bounded memory, by one program."""

from collections.abc import Iterator

import numpy as np

# Distances that are on the device at a time.
TILE = 2**22


def in_blocks(rows: np.ndarray, others: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each block of some rows; and the same, padded with its last row to the shape of the first.

    Args:
        rows: int[n], at least one.
        others: with how many each is compared.
    """
    size = max(1, min(len(rows), TILE // others))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield block, np.pad(block, (0, size - len(block)), mode="edge")
