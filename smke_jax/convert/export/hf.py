"""A directory for PyTorch: readable by itself, and through transformers and what builds on it."""

import shutil
from pathlib import Path

from smke_jax.convert.export import clients, pytorch
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.convert.export.hf_aligned import MODELING, embed_aligned, write_aligned
from smke_jax.convert.export.hf_aligned import USAGE as ALIGNED_USAGE
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch

USAGE = (
    """
With PyTorch, safetensors, Pillow and tokenizers; `modeling_smke.py` is this directory's own and short:

"""
    + pytorch.example("modeling_smke", "SmkeModel")
    + clients.usage(
        "Without `trust_remote_code`, transformers' own processor does not do this:\n"
        "give it upright RGB pictures (`PIL.ImageOps.exif_transpose`)."
    )
)


def _write(directory: Path, network: Network, dtype: str) -> None:
    {"student": _write_student, "aligned": write_aligned}[network.description["type"]](directory, network, dtype)


def _write_student(directory: Path, network: Network, dtype: str) -> None:
    config = {
        "model_type": "smke",
        "architectures": ["SmkeModel"],
        "auto_map": clients.auto_map("modeling_smke", "SmkeModel", "SmkeConfig"),
        "dtype": dtype,
        **pytorch.smke_config(network.description),
    }
    pytorch.write_json(directory / "config.json", config)
    state = to_torch(SMKE_HF, network.params, network.description, dtype=dtype)
    pytorch.write_weights(directory, state)
    shutil.copyfile(pytorch.SOURCE, directory / pytorch.MODELING)
    pytorch.write_preprocessing(directory, network)
    clients.write(directory)


def _embed(directory: Path, batch: Batch):
    if (directory / MODELING).is_file():
        return embed_aligned(directory, batch)
    modeling = pytorch.import_modeling(directory / pytorch.MODELING)
    return pytorch.embed(modeling.SmkeModel.from_directory(directory), batch)


FORMAT = Format(
    _write, _embed, {"student": USAGE, "aligned": ALIGNED_USAGE},
    metadata=dict.fromkeys(("student", "aligned"), clients.METADATA), types=("student", "aligned"),
)  # fmt: skip
