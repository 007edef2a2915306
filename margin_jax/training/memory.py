"""Cross-batch memory: embeddings of earlier batches, to compare the rows of this one with.

A network moves slowly, so an embedding of some steps ago is nearly the one of today (Wang et al.
2020, `arXiv 1912.06798 <https://arxiv.org/abs/1912.06798>`_). A queue of them gives every anchor
many more positives and negatives than a batch has, for the price of their distances alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The embeddings of the last rows of training, as arrays, oldest first.

    Attributes:
        embeddings: float32[rows, dim], as computed at the time.
        labels: int32[rows].
        real: bool[rows], False for rows that are not filled yet or not finite.
    """

    embeddings: Array
    labels: Array
    real: Array

    @classmethod
    def empty(cls, rows: int, dim: int) -> "Memory":
        """An empty memory.

        Args:
            rows: how many embeddings it holds, at least 1.
            dim: the length of an embedding.

        Raises:
            ValueError: for `rows` or `dim` below 1.
        """
        if rows < 1 or dim < 1:
            raise ValueError(f"a memory needs at least 1 row of 1 number; got {rows} of {dim}")
        return cls(
            jnp.zeros((rows, dim), jnp.float32), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
        )

    def push(self, embeddings: Array, labels: Array) -> "Memory":
        """The memory after a batch, whose last row is the newest; the oldest rows are dropped.

        Args:
            embeddings: float[batch, dim]; of a batch larger than the memory, only the last rows are
                kept.
            labels: int[batch]; values must fit int32.

        Raises:
            ValueError: for embeddings of another length.
            TypeError: for labels of a type that does not fit int32.
        """
        rows, dim = self.embeddings.shape
        if embeddings.shape[1:] != (dim,):
            raise ValueError(
                f"embeddings must have the memory's {dim} numbers; got shape {embeddings.shape}"
            )
        if not jnp.can_cast(labels.dtype, self.labels.dtype):
            raise TypeError(f"labels in a memory must fit {self.labels.dtype}; got {labels.dtype}")
        batch = Memory(
            jax.lax.stop_gradient(embeddings).astype(self.embeddings.dtype),
            labels.astype(self.labels.dtype),
            # One step gone wrong, which an optimiser may skip, is not remembered.
            jnp.all(jnp.isfinite(embeddings), axis=1),
        )
        # It moves a few megabytes a step, and needs no place to write at.
        after: Memory = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new])[-rows:], self, batch
        )
        return after
