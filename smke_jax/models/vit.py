"""The Vision Transformer of Dosovitskiy et al. 2021, as in DINO, DINOv2, AugReg and CLIP's image tower."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.models.layers import LayerNorm, kernel_init, prepend, run_blocks
from smke_jax.models.vision import PatchEmbed, patchify


class Vit(nn.Module):
    """[CLS] token, learned absolute positions, pre-norm blocks with biases of q, k and v, LayerNorm at the end.

    `norm_embeddings` adds a LayerNorm before the first block.
    It sows 'patches' (B, N, D), the embedded patches without positions, and 'tokens' (B, N, D), the output at patches.
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
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    # `run_blocks` reads these too.  They are the same for the whole family, so they are no fields.
    norm_order = "pre"
    dropout = 0.0
    remat = "none"

    @nn.compact
    def __call__(self, images):
        """Normalised images (B, S, S, 3) -> [CLS] feature (B, D), fp32."""
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {images.shape[1:]}, this encoder takes ({size}, {size}, 3)")
        embed = PatchEmbed(
            self.patch_size, self.width, self.init_std, self.dtype, use_bias=self.patch_bias, name="patch_embed"
        )
        patches = embed(patchify(images, self.patch_size))
        self.sow("intermediates", "patches", patches)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.residual_dtype)
        x = prepend(cls, patches.astype(self.residual_dtype))
        x += self.param("position_embedding", kernel_init(0.02), x.shape[1:]).astype(self.residual_dtype)
        if self.norm_embeddings:
            x = LayerNorm(self.norm_eps, self.residual_dtype, name="embedding_norm")(x)
        x = run_blocks(self, x, layer_scale=self.layer_scale).astype(jnp.float32)
        self.sow("intermediates", "tokens", x[:, 1:])
        return x[:, 0]
