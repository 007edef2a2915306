"""Heads without a trunk, for vectors that another network has made."""

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.heads import Head, Siamese


class Given(nn.Module):
    """The trunk of examples that are features already: it has no parameters."""

    @nn.compact
    def __call__(self, examples: Array, *, train: bool) -> Array:
        """float[batch, ...] to float[batch, features]."""
        return examples.reshape(examples.shape[0], -1)


def build(embedding_size: int, *, dtype: DTypeLike, hidden: str, dropout: str) -> Siamese:
    """The published head (arXiv 2603.26389): 512, 256 and the embedding, dropout .5 and .3.

    Args:
        embedding_size: of the last layer.
        dtype: of the computation.
        hidden: sizes of the layers before it, such as "512/256".
        dropout: the share that training drops at random of each of their outputs, "0.5/0.3".

    Raises:
        ValueError: for other texts, or another number of rates than of layers.
    """
    try:
        sizes, rates = [int(n) for n in hidden.split("/")], [float(r) for r in dropout.split("/")]
    except ValueError:
        sizes, rates = [], []
    fit = len(sizes) == len(rates) and sizes
    if not fit or not all(1 <= n <= 2**16 for n in sizes) or not all(0 <= r < 1 for r in rates):
        raise ValueError(
            "encoder head takes sizes up to 65,536 and as many rates from 0 on and below 1, as in "
            f"hidden=512/256,dropout=0.5/0.3; got hidden={hidden},dropout={dropout}"
        )
    head = Head(embedding_size, tuple(sizes), (0.0, *rates), dtype)
    return Siamese(Given(), head)
