"""Random weights for PyTorch networks that hide no mistake: no bias 0, no norm or LayerScale trivial."""

import numpy as np
import torch


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`network` in evaluation mode, every parameter drawn anew so that activations keep the scale of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in network.named_parameters():
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
    """What `torch.save(network.state_dict())` holds."""
    return {name: x.detach().numpy().copy() for name, x in network.state_dict().items()}


def images(batch: int, size: int) -> np.ndarray:
    """Normalised images (batch, size, size, 3)."""
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


def pixels(images: np.ndarray) -> torch.Tensor:
    """The same for PyTorch, (batch, 3, size, size)."""
    return torch.tensor(images.transpose(0, 3, 1, 2))
