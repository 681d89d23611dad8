"""BEiT as microsoft/unilm and timm have it, written here in PyTorch."""

import functools

import torch
import torch.nn.functional as F
from torch import nn


@functools.cache
def position_index(grid: int) -> torch.Tensor:
    """Spec 26.1, entry by entry; never on the meta device."""
    span, patches = 2 * grid - 1, grid * grid
    index = torch.empty(1 + patches, 1 + patches, dtype=torch.int64, device="cpu")
    for query in range(patches):
        for key in range(patches):
            dy, dx = query // grid - key // grid, query % grid - key % grid
            index[1 + query, 1 + key] = (dy + grid - 1) * span + dx + grid - 1
    index[0, :], index[:, 0], index[0, 0] = span**2, span**2 + 1, span**2 + 2
    return index


def add_positions(module: nn.Module, heads: int, grid: int) -> None:
    module.relative_position_bias_table = nn.Parameter(torch.empty((2 * grid - 1) ** 2 + 3, heads))
    module.register_buffer("relative_position_index", position_index(grid))


def bias_of(module: nn.Module) -> torch.Tensor:
    return module.relative_position_bias_table[module.relative_position_index].permute(2, 0, 1)  # (H, 1+N, 1+N)


class Attention(nn.Module):
    def __init__(self, width, heads, grid):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)
        if grid:
            add_positions(self, heads, grid)

    def forward(self, x, shared):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q + self.q_bias, k, v + self.v_bias))
        bias = bias_of(self) if shared is None else shared
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, -1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, mlp, grid):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.attn, self.mlp = Attention(width, heads, grid), Mlp(width, mlp)

    def forward(self, x, shared):
        x = x + self.gamma_1 * self.attn(self.norm1(x), shared)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class Unilm(nn.Module):
    """With one table and all that pretraining adds, or fine-tuned: a table in each block, and a mean-pooled head."""

    def __init__(self, *, width, depth, heads, mlp, grid, patch, finetuned):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, grid if finetuned else None) for _ in range(depth))
        if finetuned:
            self.fc_norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 5)
        else:
            self.rel_pos_bias = nn.Module()
            add_positions(self.rel_pos_bias, heads, grid)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            self.lm_head = nn.Linear(width, 7)
            self.cls_pt_layers = nn.ModuleList([Block(width, heads, mlp, None)])

    @torch.no_grad()
    def forward(self, x) -> list[torch.Tensor]:
        """The output of every block, then the feature, and the logits of a fine-tuned one."""
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        shared = bias_of(self.rel_pos_bias) if hasattr(self, "rel_pos_bias") else None
        hidden = []
        for block in self.blocks:
            x = block(x, shared)
            hidden.append(x)
        if hasattr(self, "head"):
            return [*hidden, x[:, 0], self.head(self.fc_norm(x[:, 1:].mean(1)))]
        return [*hidden, self.norm(x)[:, 0]]
