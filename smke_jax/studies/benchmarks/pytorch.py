"""The step that smke_jax is compared with: the same networks, losses, bank and optimiser in plain PyTorch.

The student is the module that `smke export --format=hf` ships; what it lacks for training stands here.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from smke_jax.convert.export.pytorch import import_modeling, smke_config, tensor
from smke_jax.convert.layouts.beit import UNILM
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch
from smke_jax.models.beit import relative_position_index
from smke_jax.objectives.base import INITIAL_LOG_SCALE
from smke_jax.objectives.memory_bank import RANDOM, UNFILLED
from smke_jax.passes.base import MEAN, STD
from smke_jax.training.optimizer import MAX_LOG_SCALE

# `training.optimizer.NO_DECAY` by the names of the twin's parameters: [CLS] and embedding tables.
NO_DECAY = re.compile(r"(^|\.)(cls_token|\w+_embedding\.weight)$")


LEVELS = ("fc1", "out")  # of the contrast between image and text


class Attention(nn.Module):
    """BEiT's: one product for q, k and v, biases on q and v, a bias (1, H, L, L) on the logits."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x, bias):
        biases = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, biases).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """BEiT's: pre-norm with LayerScale."""

    def __init__(self, fields):
        super().__init__()
        width = fields.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, fields.norm_eps) for _ in range(2))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), fields.layer_scale)) for _ in range(2))
        self.attn = Attention(width, fields.num_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, fields.mlp_dim), "fc2": nn.Linear(fields.mlp_dim, width)})

    def forward(self, x, bias):
        x = x + self.gamma_1 * self.attn(self.norm1(x), bias)
        return x + self.gamma_2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Beit(nn.Module):
    """A BEiT with one position table and no last norm.  Normalised pixels (B, 3, S, S) -> [CLS] (B, D)."""

    def __init__(self, fields):
        super().__init__()
        grid = fields.image_size // fields.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, fields.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, fields.width, fields.patch_size, fields.patch_size)})
        table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, fields.num_heads))
        self.rel_pos_bias = nn.ParameterDict({"relative_position_bias_table": table})
        self.register_buffer("index", torch.from_numpy(relative_position_index(grid)).long(), persistent=False)
        self.blocks = nn.ModuleList(Layer(fields) for _ in range(fields.depth))

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        bias = self.rel_pos_bias["relative_position_bias_table"][self.index].permute(2, 0, 1)[None]
        for block in self.blocks:
            x = block(x, bias)
        return x[:, 0].float()


def description(config: ConfigDict) -> dict:
    """What the converters call the student of `config`."""
    student = config.networks.student.to_dict()
    sizes = {"vocab_size": config.task.vocab_size, "target_dim": student["head"]}
    use = {"level": "out", "max_length": config.task.max_length, "logit_scales": {}}
    return {**student, **sizes, **use, "type": "student"}


class Twin(nn.Module):
    """Student, teacher, bank and temperatures of a `benchmarks.sizes` config; random until `load`."""

    def __init__(self, config: ConfigDict):
        super().__init__()
        modeling, teacher = import_modeling(), config.networks.teacher.model
        sys.modules[modeling.__name__] = modeling  # torch.compile imports the modules of functions by name
        self.config = config
        self.student = modeling.SmkeModel(modeling.SmkeConfig(**smke_config(description(config))))
        self.teacher = Beit(teacher).requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.full((2,), INITIAL_LOG_SCALE))
        size = config.terms.target_itc.bank_size
        self.register_buffer("bank", F.normalize(torch.rand(size, teacher.width), dim=1))
        self.register_buffer("bank_ids", torch.full((size,), RANDOM))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.head = 0

    def load(self, params: Mapping[str, Any], teacher: Any, slots: Mapping[str, Any]) -> None:
        """Copies the parameters and slots of a TrainState, and the teacher's parameters, as NumPy arrays."""
        state = {
            f"student.{k}": tensor(x) for k, x in to_torch(SMKE_HF, params["student"], description(self.config)).items()
        }
        beit = {**self.config.networks.teacher.model.to_dict(), "final_norm": False}
        state |= {f"teacher.{k}": tensor(x) for k, x in to_torch(UNILM, teacher, beit).items()}
        scales = params["terms"]["itc"]["logit_scale"]
        state["logit_scale"] = torch.tensor([float(scales[level]) for level in LEVELS])
        bank = slots["target_itc"]
        state |= {"bank": torch.tensor(bank.features), "bank_ids": torch.tensor(bank.ids).long()}
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert set(missing) <= {"mean", "std"} and not unexpected, (missing, unexpected)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """'image' uint8 (B, 3, S, S), 'text', 'text_mask' (B, L), 'id' (B,) -> (loss, targets (B, D) normalised)."""
        device, half = self.bank.device.type, self.config.networks.student.dtype == "bfloat16"
        pixels = (batch["image"].float() / 255 - self.mean) / self.std
        with torch.autocast(device, torch.bfloat16, enabled=half):
            with torch.no_grad():
                target = self.teacher(pixels)
            image = self.student.encode_image(pixels)
            text = self.student.encode_text(batch["text"], batch["text_mask"])
        scales = self.logit_scale.exp()
        itc = sum(_itc(image[level], text[level], scales[i]) for i, level in enumerate(LEVELS)) / len(LEVELS)
        target = F.normalize(target, dim=1)
        negatives = (self.bank_ids != UNFILLED) & (self.bank_ids != batch["id"][:, None])
        rows = torch.arange(len(target), device=target.device)
        losses = []
        for head in (image["head"], text["head"]):
            head = F.normalize(head, dim=1)
            more = (head @ self.bank.T).masked_fill(~negatives, -torch.inf)
            logits = np.exp(INITIAL_LOG_SCALE) * torch.cat([head @ target.T, more], 1)
            losses.append(F.cross_entropy(logits, rows))
        return itc + sum(losses) / 2, target

    @torch.no_grad()
    def push(self, target: torch.Tensor, ids: torch.Tensor) -> None:
        """Writes the batch's targets into the bank."""
        slots = (self.head + torch.arange(len(ids), device=ids.device)) % len(self.bank)
        self.bank[slots], self.bank_ids[slots] = target, ids
        self.head = (self.head + len(ids)) % len(self.bank)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to that parameter of the student."""
    return parameter.ndim > 1 and not NO_DECAY.search(name)


def _itc(a, b, scale):
    logits = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    rows = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def to_batch(batch: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """A batch of `made_up_batch` as `Twin` takes it: channels first, ids as int64."""
    channels_first = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
    tensors = {name: torch.from_numpy(x).long() for name, x in batch.items() if name != "image"}
    return {name: x.to(device) for name, x in {"image": torch.from_numpy(channels_first), **tensors}.items()}


class Trainer:
    """`Twin` with AdamW; `rates` has the learning rate of every step."""

    def __init__(self, twin: Twin, rates: Sequence[float], *, compiled: bool = False):
        self.twin, self.rates, self.steps = twin, rates, 0
        trained = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
        optimizer = twin.config.optimizer
        groups = [
            {"params": [p for name, p in trained if decays(name, p) == decayed], "weight_decay": decay}
            for decayed, decay in ((True, optimizer.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
        self.forward = torch.compile(twin) if compiled else twin

    def step(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One update -> the loss before it, not yet waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.steps]
        loss, target = self.forward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.twin.logit_scale.clamp_(0.0, MAX_LOG_SCALE)
        self.twin.push(target, batch["id"])
        self.steps += 1
        return loss.detach()
