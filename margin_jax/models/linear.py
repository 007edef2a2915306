"""One linear map: the Mahalanobis distance of classical metric learning, but for the length."""

from jax.typing import DTypeLike

from margin_jax.models.head import Given
from margin_jax.models.heads import Head, Siamese


def build(embedding_size: int, *, dtype: DTypeLike) -> Siamese:
    """One linear layer."""
    return Siamese(Given(), Head(embedding_size, dtype=dtype))
