"""DINOv2's small vision transformer."""

from jax.typing import DTypeLike

from margin_jax.models.efficientnet import published_head
from margin_jax.models.heads import Siamese
from margin_jax.models.vit import ViT


def build(embedding_size: int, *, dtype: DTypeLike) -> Siamese:
    """ViT-Small with the published head of EfficientNet-B0.

    Its weights were learned without labels, from 142 million pictures (Oquab et al., arXiv
    2304.07193): 384 features, 22.1 million parameters; as timm's ``vit_small_patch14_dinov2``.
    """
    trunk = ViT(width=384, heads=6, patch=14, grid=37, layer_scale=True, dtype=dtype)
    return Siamese(trunk, published_head(embedding_size, dtype))
