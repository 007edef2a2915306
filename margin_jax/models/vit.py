"""Vision transformers, and the smallest, ViT-Tiny; submodules are named as in timm."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from margin_jax.models.convolution import conv_general_dilated
from margin_jax.models.efficientnet import published_head
from margin_jax.models.heads import Siamese

# Blocks; of the small ones of all who publish weights.
DEPTH = 12


class Patches(nn.Module):
    """Squares of the images, side by side, as vectors.

    Attributes:
        size: of a square, in pixels.
        width: of a vector.
        dtype: of the computation.
    """

    size: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[batch, H, W, C] to [batch, ⌈H / size⌉, ⌈W / size⌉, width]; what is missing is 0."""
        missing = [(0, -side % self.size) for side in images.shape[1:3]]
        proj = nn.Conv(
            self.width,
            (self.size, self.size),
            self.size,
            padding="VALID",
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="proj",
        )
        return proj(jnp.pad(images, [(0, 0), *missing, (0, 0)]))


class Attention(nn.Module):
    """Every vector becomes a mean of all, weighed by how their queries and keys agree.

    Vaswani et al., arXiv 1706.03762.

    Attributes:
        heads: among which the numbers of a vector are divided.
        dtype: of the computation.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, n, width] to the same."""
        width = x.shape[-1]
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        mean = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(width, dtype=self.dtype, name="proj")(mean.reshape(x.shape))


class MLP(nn.Module):
    """Two linear layers, the inner one four times as wide, with GELU between them."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., width] to the same."""
        y = nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="fc1")(x)
        y = jax.nn.gelu(y, approximate=False)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class LayerScale(nn.Module):
    """A factor for each number of a vector, small at first (arXiv 2103.17239)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., width] to the same."""
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:], jnp.float32)
        return x * gamma.astype(x.dtype)


class Block(nn.Module):
    """Attention and MLP, each of what is normalised, each added to what came.

    Attributes:
        heads: of the attention.
        layer_scale: what is added is scaled.
        dtype: of the computation; parameters are float32.
    """

    heads: int
    layer_scale: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, n, width] to the same."""
        y = Attention(self.heads, self.dtype, name="attn")(layer_norm(self.dtype, "norm1")(x))
        x = x + (LayerScale(name="ls1")(y) if self.layer_scale else y)
        y = MLP(self.dtype, name="mlp")(layer_norm(self.dtype, "norm2")(x))
        return x + (LayerScale(name="ls2")(y) if self.layer_scale else y)


class ViT(nn.Module):
    """A vision transformer of twelve blocks without its classifier.

    Dosovitskiy et al., arXiv 2010.11929; as timm's ``VisionTransformer``, whose weights fit. The
    features are the class token's. Pictures may be of any size: the embeddings of places, learned
    for `grid` × `grid` patches, are resized (bicubic, as timm's ``dynamic_img_size`` does), and
    patches that the picture does not fill are filled with zeros.

    Attributes:
        width: numbers of a vector, and so features.
        heads: of each attention.
        patch: pixels a side.
        grid: patches a side of the pictures that it was published for.
        layer_scale: see :class:`LayerScale`.
        dtype: of the computation; parameters are float32.
    """

    width: int = 192
    heads: int = 3
    patch: int = 16
    grid: int = 14
    layer_scale: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """float[batch, H, W, channels] to float32[batch, width]; the same in training."""
        x = Patches(self.patch, self.width, self.dtype, name="patch_embed")(images)
        batch, *grid, _ = x.shape
        normal = nn.initializers.normal(0.02)
        token = self.param("cls_token", normal, (1, 1, self.width), jnp.float32)
        positions = (1, 1 + self.grid**2, self.width)
        position = self.param("pos_embed", normal, positions, jnp.float32)
        position = resized(position, (self.grid, self.grid), (grid[0], grid[1]))
        tokens = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, self.width))
        x = jnp.concatenate([tokens, x.reshape(batch, -1, self.width)], axis=1)
        x = x + position.astype(x.dtype)
        for i in range(DEPTH):
            x = Block(self.heads, self.layer_scale, self.dtype, name=f"blocks_{i}")(x)
        features: Array = layer_norm(self.dtype, "norm")(x[:, 0])
        return features.astype(jnp.float32)


def resized(position: Array, grid: tuple[int, int], to: tuple[int, int]) -> Array:
    """[1, 1 + h · w, width] to [1, 1 + H · W, width]: the class token's, then those of places."""
    if grid == to:
        return position
    places = position[:, 1:].reshape(1, *grid, -1)
    places = jax.image.resize(places, (1, *to, places.shape[-1]), "cubic")
    return jnp.concatenate([position[:, :1], places.reshape(1, to[0] * to[1], -1)], axis=1)


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """LayerNorm with the ε of transformers' authors."""
    return nn.LayerNorm(1e-6, dtype, use_fast_variance=False, name=name)


def build(embedding_size: int, *, dtype: DTypeLike) -> Siamese:
    """ViT-Tiny of 5.5 million parameters with the published head of EfficientNet-B0."""
    return Siamese(ViT(dtype=dtype), published_head(embedding_size, dtype))
