"""The Vision Transformer of Dosovitskiy et al. 2021, as in DINO, DINOv2, AugReg and CLIP's image tower."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.models.layers import LayerNorm, kernel_init, prepend, run_blocks
from smke_jax.models.vision import PatchEmbed, hide, patchify, some_patches


class VitEncoder(nn.Module):
    """[CLS] token, learned absolute positions, pre-norm blocks with biases of q, k and v, LayerNorm at the end.

    Normalised images (B, image_size, image_size, 3) -> (B, 1 + N, D), [CLS] first.
    `norm_embeddings` adds a LayerNorm before the first block.
    In training a random share `token_drop` of the patches is left out.
    `added` (D,) is added to every token, also to [CLS], before the first LayerNorm.  `hidden`: see `vision.hide`.
    It sows 'patches' (B, N, D), the embedded patches without positions.
    It equals transformers' ViTModel; with `layer_scale`, Dinov2Model; with `patch_bias` False and `norm_embeddings`,
    CLIPVisionModel.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: float | None = None
    patch_bias: bool = True
    norm_embeddings: bool = False
    dropout: float = 0.0
    token_drop: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    norm_order = "pre"  # `run_blocks` reads it too.  It is the same for the whole family, so it is no field.

    @nn.compact
    def __call__(self, images, *, added=None, hidden=None, deterministic: bool = True):
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape[1:]}, this encoder takes ({size}, {size}, 3)")
        x = patchify(images, self.patch_size)
        table = self.param("position_embedding", kernel_init(0.02), (1 + x.shape[1], self.width))
        table = table.astype(self.residual_dtype)
        positions = table[1:]
        if self.token_drop and not deterministic:
            x, positions = some_patches(self.make_rng("dropout"), x, positions, self.token_drop)
        embed = PatchEmbed(
            self.patch_size, self.width, self.init_std, self.dtype, use_bias=self.patch_bias, name="patch_embed"
        )
        patches = embed(x)
        self.sow("intermediates", "patches", patches)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.residual_dtype)
        x = prepend(cls + table[0], hide(patches, hidden).astype(self.residual_dtype) + positions)
        if added is not None:
            x += added.astype(self.residual_dtype)
        if self.norm_embeddings:
            x = LayerNorm(self.norm_eps, self.residual_dtype, name="embedding_norm")(x)
        return run_blocks(self, x, layer_scale=self.layer_scale, deterministic=deterministic)


class Vit(VitEncoder):
    """The same as a teacher: its feature is the output at [CLS], and it sows 'tokens' (B, N, D), that at patches."""

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        """Normalised images (B, S, S, 3) -> [CLS] feature (B, D), fp32."""
        x = super().__call__(images, deterministic=deterministic).astype(jnp.float32)
        self.sow("intermediates", "tokens", x[:, 1:])
        return x[:, 0]
