"""BEiT and BEiT v2 (Bao et al. 2022, Peng et al. 2022): a Vision Transformer with relative positions (spec 26.1)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.layers import Block, Dense, LayerNorm, kernel_init, prepend, run_block
from smke_jax.models.vision import PatchEmbed, hide, patchify

MOST_GRID = 96  # patches per side, 1,536 pixels by 16; the table of all pairs then has 85 million entries


def relative_position_index(grid: int) -> np.ndarray:
    """The row of BEiT's bias table for each pair of tokens (query, key) -> (1+N, 1+N) int32, N = grid² (spec 26.1).

    Of two patches it is (dy + grid-1)·(2·grid-1) + (dx + grid-1), where (dy, dx) = position of query - position of key.
    The last three rows of the table are for query [CLS] with a patch, a patch with key [CLS], and [CLS] with itself.
    Raises UserError for more than MOST_GRID patches per side.
    """
    if grid > MOST_GRID:
        raise UserError(
            f"images of {grid} × {grid} patches: a BEiT relates all pairs of them, which takes at most {MOST_GRID} per "
            "side; give a smaller image_size or a larger patch_size"
        )
    y, x = np.divmod(np.arange(grid * grid, dtype=np.int32), grid)
    span = 2 * grid - 1
    index = np.full((1 + grid * grid, 1 + grid * grid), span * span + 2, np.int32)
    index[1:, 1:] = (y[:, None] - y + grid - 1) * span + (x[:, None] - x + grid - 1)
    index[0, 1:] = span * span
    index[1:, 0] = span * span + 1
    return index


class RelativePositionBias(nn.Module):
    """BEiT's learned bias of attention logits, N = grid² -> (1, H, 1+N, 1+N)."""

    grid: int
    num_heads: int
    initial: nn.initializers.Initializer = kernel_init(0.02)

    @nn.compact
    def __call__(self):
        rows = (2 * self.grid - 1) ** 2 + 3
        table = self.param("table", self.initial, (rows, self.num_heads))
        return table[relative_position_index(self.grid)].transpose(2, 0, 1)[None]


class BeitEncoder(nn.Module):
    """BEiT and BEiT v2 (spec 0.2, 26.1): pre-norm, LayerScale, biases of q and v, relative position bias.

    Normalised images (B, image_size, image_size, 3) -> (B, 1 + N, D), float32, [CLS] first.
    With `shared_bias` all blocks share one bias table (pretraining checkpoints); without, each block has its own
    (fine-tuned checkpoints, timm, Hugging Face).
    Without `final_norm` the output is the last block's.  The memory bank run of the thesis uses it so (spec 15), and so
    do networks fine-tuned with mean pooling, whose last LayerNorm belongs to the mean.
    `num_classes` is of `Beit` alone.
    `added` (D,) is added to every token, also to [CLS], before the first block.  `hidden`: see `vision.hide`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: float = 0.1
    shared_bias: bool = True
    final_norm: bool = True
    num_classes: int = 0
    dropout: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, added=None, hidden=None, deterministic: bool = True):
        return self.last_norm()(self.stream(images, added, hidden, deterministic=deterministic))

    def stream(self, images, added=None, hidden=None, *, deterministic: bool = True):
        """The output of the last block, (B, 1 + N, D), float32.  It is called once, inside the compact method."""
        embed = PatchEmbed(self.patch_size, self.width, self.init_std, self.dtype, name="patch_embed")
        patches = embed(patchify(images, self.patch_size))
        self.sow("intermediates", "patches", patches)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.residual_dtype)
        x = prepend(cls, hide(patches, hidden).astype(self.residual_dtype))
        if added is not None:
            x += added.astype(self.residual_dtype)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        self.sow("intermediates", "layer_0", x)
        grid = self.image_size // self.patch_size
        shared = RelativePositionBias(grid, self.num_heads, name="relative_bias")() if self.shared_bias else None
        for i in range(self.depth):
            name = f"relative_bias_{i}"
            bias = shared if self.shared_bias else RelativePositionBias(grid, self.num_heads, name=name)()
            block = Block(
                self.num_heads,
                self.mlp_dim,
                norm_order="pre",
                norm_eps=self.norm_eps,
                activation=self.activation,
                attention_biases="qv",
                layer_scale=self.layer_scale,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                residual_dtype=self.residual_dtype,
                name=f"block_{i}",
            )
            made = run_block(block, self.remat, x, bias=bias, deterministic=deterministic)
            x = made.out
            self.sow("intermediates", f"layer_{i + 1}", x)
            self.sow("intermediates", f"mlp_{i + 1}", made.mlp)
        return x.astype(jnp.float32)

    def last_norm(self):
        """The last LayerNorm, or what leaves its input as it is."""
        return LayerNorm(self.norm_eps, name="norm") if self.final_norm else lambda x: x


class Beit(BeitEncoder):
    """The same as a teacher: its feature is the output at [CLS], and it sows 'tokens' (B, N, D), that at patches.

    `num_classes` above 0 adds that classifier: a LayerNorm and a linear layer on the mean of the patches.
    """

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        """Normalised images (B, S, S, 3) -> [CLS] feature (B, D), float32."""
        x, norm = self.stream(images, deterministic=deterministic), self.last_norm()
        self.sow("intermediates", "tokens", norm(x[:, 1:]))
        if self.num_classes:
            pooled = LayerNorm(self.norm_eps, name="fc_norm")(x[:, 1:].mean(axis=1))
            self.sow("intermediates", "logits", Dense(self.num_classes, name="head")(pooled))
        return norm(x[:, 0])
