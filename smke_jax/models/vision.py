"""The student's image encoder: a Data2Vec2 ViT (spec 0.2), with an optional convolutional stem for small data."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from smke_jax.models.layers import ACTIVATIONS, Block, LayerNorm, kernel_init


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions of a square grid -> (grid², width), row-major.

    First half of the channels encodes x, second half y; each is [sin | cos] over frequencies 10000^(-i/(width/4)),
    as in MAE and Data2Vec2.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, not {width}")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = np.arange(grid)[:, None] * frequency  # (grid, width/4)
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (grid, width/2)
    x = np.tile(axis, (grid, 1))
    y = np.repeat(axis, grid, axis=0)
    return np.concatenate([x, y], axis=1).astype(np.float32)


class PatchEmbed(nn.Module):
    """Image (B, S, S, 3) -> patch embeddings (B, (S/patch)², D), row-major.

    `stem_widths` puts that many 3×3 stride-2 convolutions in front (Xiao et al. 2021, "Early Convolutions Help
    Transformers See Better"): () is the plain ViT projection that every pretrained tower has.
    """

    patch_size: int
    width: int
    stem_widths: tuple[int, ...] = ()
    activation: str = "gelu"
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        patch = self.patch_size
        for i, channels in enumerate(self.stem_widths):
            x = nn.Conv(channels, (3, 3), (2, 2), kernel_init=kernel_init(0), dtype=self.dtype, name=f"stem{i}")(x)
            x = ACTIVATIONS[self.activation](LayerNorm(self.norm_eps, self.dtype, name=f"stem_norm{i}")(x))
            patch //= 2
        if patch < 1:
            raise ValueError(f"{len(self.stem_widths)} stem layers halve more often than patch {self.patch_size} allows")
        x = nn.Conv(
            self.width,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            kernel_init=kernel_init(self.init_std),
            dtype=self.dtype,
            name="proj",
        )(x)
        return x.reshape(x.shape[0], -1, self.width)


class ImageEncoder(nn.Module):
    """Data2Vec2 image encoder.  (B, image_size, image_size, 3) normalised -> (B, 1 + N, D), [CLS] first.

    Patches get fixed positions, [CLS] gets none; post-norm puts a LayerNorm before the first block and none after
    the last (layer_norm_first=False), pre-norm the other way round.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_order: str = "post"
    norm_eps: float = 1e-6
    activation: str = "gelu"
    stem_widths: tuple[int, ...] = ()
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape[1:]}, this encoder takes ({size}, {size}, 3)")
        if size % self.patch_size:
            raise ValueError(f"image_size {size} is no multiple of patch_size {self.patch_size}")
        x = PatchEmbed(
            self.patch_size,
            self.width,
            self.stem_widths,
            self.activation,
            self.norm_eps,
            self.init_std,
            self.dtype,
            name="patch_embed",
        )(images.astype(self.dtype))
        x += sincos_positions(size // self.patch_size, self.width).astype(self.dtype)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)

        pre = self.norm_order == "pre"
        if not pre:
            x = LayerNorm(self.norm_eps, self.dtype, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        for i in range(self.depth):
            x = Block(
                self.num_heads,
                self.mlp_dim,
                norm_order=self.norm_order,
                norm_eps=self.norm_eps,
                activation=self.activation,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                name=f"block_{i}",
            )(x, deterministic=deterministic).out
        return LayerNorm(self.norm_eps, self.dtype, name="norm")(x) if pre else x
