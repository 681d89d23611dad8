"""Images as patches, and the student's image encoder: the Vision Transformer of Data2Vec2 (spec 0.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.layers import LayerNorm, flat_dot_general, kernel_init, prepend, run_blocks


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions of a square grid -> (grid², width), row-major.

    The first half of the channels encodes the column x, the second half the row y.  Each half is [sin | cos] of the
    frequencies 10000^(-i/(width/4)), as in MAE and Data2Vec2.  ValueError unless `width` divides by 4.
    """
    if width % 4:
        raise UserError(f"sine-cosine positions need a width divisible by 4, not {width}")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = np.arange(grid)[:, None] * frequency  # (grid, width/4)
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (grid, width/2)
    x = np.tile(axis, (grid, 1))
    y = np.repeat(axis, grid, axis=0)
    return np.concatenate([x, y], axis=1).astype(np.float32)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Square patches, row-major, each flattened as (row, column, channel).  (B, S, S, C) -> (B, N, p·p·C).

    ValueError unless the image size S is a multiple of `patch_size`.
    """
    batch, size, _, channels = images.shape
    if size % patch_size:
        raise UserError(f"image size {size} is no multiple of the patch size {patch_size}")
    grid = size // patch_size
    x = images.reshape(batch, grid, patch_size, grid, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch_size * patch_size * channels)


class PatchEmbed(nn.Module):
    """Linear projection of patches, (B, N, p·p·3) -> (B, N, D), in `dtype`.

    The kernel has the shape (p, p, 3, D) of the convolution that every checkpoint holds.  It is applied as one matrix
    product, because XLA's strided convolutions take several times as long on a CPU.
    """

    patch_size: int
    width: int
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, patches):
        shape = (self.patch_size, self.patch_size, 3, self.width)
        kernel = self.param("kernel", kernel_init(self.init_std), shape)
        out = flat_dot_general(patches.astype(self.dtype), kernel.reshape(-1, self.width).astype(self.dtype))
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        return out


class ImageEncoder(nn.Module):
    """Data2Vec2 image encoder.  Normalised images (B, image_size, image_size, 3) -> (B, 1 + N, D), [CLS] first.

    Patches get fixed positions; [CLS] gets none.  Post-norm has a LayerNorm before the first block and none after the
    last (fairseq's layer_norm_first=False); pre-norm has one after the last block and none before the first.
    In training a random share `token_drop` of the patches is left out (FLIP, Li et al. 2023).  That is faster, and a
    small set of photos is less easily memorised.
    `added` (D,) is added to every token, also to [CLS], before the first LayerNorm.  `hidden`: see `hide`.
    It sows 'patches' (B, N, D): the embedded patches without positions.  ValueError for images of another size.
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
    dropout: float = 0.0
    token_drop: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, added=None, hidden=None, deterministic: bool = True):
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape[1:]}, this encoder takes ({size}, {size}, 3)")
        x = patchify(images, self.patch_size)
        positions = jnp.asarray(sincos_positions(size // self.patch_size, self.width))
        if self.token_drop and not deterministic:
            x, positions = some_patches(self.make_rng("dropout"), x, positions, self.token_drop)
        x = PatchEmbed(self.patch_size, self.width, self.init_std, self.dtype, name="patch_embed")(x)
        self.sow("intermediates", "patches", x)
        x = hide(x, hidden).astype(self.residual_dtype) + positions.astype(self.residual_dtype)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.residual_dtype)
        x = prepend(cls, x)
        if added is not None:
            x += added.astype(self.residual_dtype)
        if self.norm_order != "pre":
            x = LayerNorm(self.norm_eps, self.residual_dtype, name="norm")(x)
        return run_blocks(self, x, deterministic=deterministic)


def hide(patches: jax.Array, hidden: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Embedded patches (B, N, D) with a mask token in place of the hidden ones, before positions are added.

    hidden: (bool (B, N), True where a patch is hidden; the token (D,)); None hides none.  Source: BEiT, SimMIM.
    """
    if hidden is None:
        return patches
    mask, token = hidden
    return jnp.where(mask[:, :, None], token.astype(patches.dtype), patches)


def some_patches(key: jax.Array, patches: jax.Array, positions: jax.Array, drop: float) -> tuple[jax.Array, jax.Array]:
    """Patches (B, N, ·) and their positions (N, D) without a random share `drop` of them -> (B, n, ·), (B, n, D)."""
    rows, total, _ = patches.shape
    count = round(total * (1 - drop))
    kept = jnp.argsort(jax.random.uniform(key, (rows, total)), axis=1)[:, :count]  # drawn without replacement
    return jnp.take_along_axis(patches, kept[:, :, None], axis=1), positions[kept]
