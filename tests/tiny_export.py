"""The smallest image-text model, as a directory that `smke_jax.load` opens; and what an export says of its run."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from smke_jax.convert.export.base import Record
from smke_jax.convert.export.pytorch import smke_config, write_json, write_weights
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import TOKENIZER, save_params
from smke_jax.convert.rules import to_torch
from smke_jax.data.tokenizer import Tokenizer, train_wordpiece
from smke_jax.models.build import param_shapes

TOWER = {"width": 8, "depth": 0, "num_heads": 2, "mlp_dim": 12, "activation": "gelu", "norm_order": "post"}
# What a model card tells of a run.
RECORD = Record(
    run={
        "command": ["smke", "train"], "identity": {"data": "0" * 64}, "config": {}, "started": "today",
        "devices": ["cpu"], "host": "a host", "versions": {"jax": "1"},
    },
    config={
        "total_steps": 2, "batch_size": 4, "terms": {"itm": {"type": "fused_itm"}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "reference_batch": 0, "weight_decay": 0.0},
        "task": {"type": "pairs", "data": "x"}, "networks": {"towers": {"type": "fused_towers", "start": "random"}},
    },
    step=2,
)  # fmt: skip


def _made_up(seed: int, **changes: Any) -> tuple[Tokenizer, dict, Any]:
    words = train_wordpiece(["a red dog runs over the blue snow"], 60)
    description = {
        "type": "student", "vocab_size": words.vocab_size, "target_dim": 6, "token_types": True, "dtype": "float32",
        "image": {"type": "data2vec2", "image_size": 16, "patch_size": 8, "norm_eps": 1e-6, **TOWER},
        "text": {"max_positions": 8, "norm_eps": 1e-12, **TOWER},
        "shared": {"num_heads": 2, "mlp_dim": 12, "norm_eps": 1e-6, "activation": "gelu", "layer_scale": 0.2,
                   "init_std": 0.02},
        "mean": [0.5] * 3, "std": [0.25] * 3, "level": "out", "max_length": 8, **changes,
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
    return words, description, params


def save_model(folder: Path, seed: int = 0) -> Path:
    """A student of random weights, as `smke export` writes one."""
    words, description, params = _made_up(seed)
    save_params(folder / "params.safetensors", params, {"model": description})
    words.save(folder / TOKENIZER)
    return folder


def save_hf(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A student of random weights, as `smke export --format=hf` writes one; `changes` to what is said of it."""
    words, description, params = _made_up(seed, logit_scales={}, **changes)
    write_weights(folder, to_torch(LAYOUTS["smke-hf"], params, description))
    write_json(folder / "config.json", smke_config(description))
    words.save(folder)
    return folder
