"""Random weights for PyTorch networks that hide no mistake: no bias 0, no norm or LayerScale trivial."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers.core_model_loading import revert_weight_conversion


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`network` in evaluation mode, every parameter drawn anew so that activations keep the scale of trained ones.

    Those on the meta device stay without values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, x in network.named_parameters():
        if x.is_meta:
            continue
        centre, std = 0.0, x[0].numel() ** -0.5 if x.ndim else 1.0  # of a matrix or convolution: by its fan-in
        if name.endswith("table"):
            std = 0.5
        elif x.ndim == 3:  # tokens
            std = 1.0
        elif x.ndim == 1 and name.endswith("weight"):  # of a norm
            centre, std = 1.0, 0.2
        elif x.ndim == 1:
            std = 0.1
        if "gamma" in name or "lambda" in name:  # LayerScale
            torch.nn.init.uniform_(x, 0.1, 1.0, generator=generator)
        else:
            torch.nn.init.normal_(x, centre, std, generator=generator)
    return network.eval()


def state_of(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """What `torch.save(network.state_dict())` holds; zeros that take no room for what is on the meta device."""
    return arrays(network.state_dict())


def arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {
        name: np.broadcast_to(np.float32(0), tuple(x.shape)) if x.is_meta else x.detach().numpy().copy()
        for name, x in state.items()
    }


def saved(network) -> tuple[dict[str, np.ndarray], dict]:
    """(state, config) as `save_pretrained` of transformers writes them; on the meta device the state it would write."""
    if any(x.is_meta for x in network.parameters()):
        state = arrays(revert_weight_conversion(network, network.state_dict()))
        return state, json.loads(network.config.to_json_string())
    with tempfile.TemporaryDirectory() as directory:
        network.save_pretrained(directory)
        config = json.loads(Path(directory, "config.json").read_text())
        return load_file(Path(directory, "model.safetensors")), config


def images(batch: int, size: int) -> np.ndarray:
    """Normalised images (batch, size, size, 3)."""
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


def pixels(images: np.ndarray) -> torch.Tensor:
    """The same for PyTorch, (batch, 3, size, size)."""
    return torch.tensor(images.transpose(0, 3, 1, 2))
