"""A directory for PyTorch: readable by itself, and through transformers."""

import shutil
from pathlib import Path

import safetensors.numpy

from smke_jax import atomic
from smke_jax.convert.export import pytorch
from smke_jax.convert.export.base import DTYPES, Batch, Format, Network
from smke_jax.convert.export.hf_aligned import MODELING, embed_aligned, write_aligned
from smke_jax.convert.export.hf_aligned import USAGE as ALIGNED_USAGE
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch

USAGE = """
With PyTorch, safetensors, Pillow and tokenizers; `modeling_smke.py` is this directory's own and short:

```python
import PIL.Image
import tokenizers
import torch

from modeling_smke import SmkeModel

model = SmkeModel.from_directory(".")
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
encoding = tokenizer.encode("a dog runs across the grass")
with torch.inference_mode():
    image = model(model.preprocess([PIL.Image.open("photo.jpg")]))["image_embeds"]
    text = model(input_ids=torch.tensor([encoding.ids]))["text_embeds"]
print(image @ text.T)
```

With transformers:

```python
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("DIR", trust_remote_code=True).eval()
pixels = AutoImageProcessor.from_pretrained("DIR")(images, return_tensors="pt")
tokens = AutoTokenizer.from_pretrained("DIR", trust_remote_code=True)(
    captions, padding=True, truncation=True, return_tensors="pt"
)
outputs = model(**pixels, **tokens)  # image_embeds and text_embeds, L2-normalised
```
"""


def _write(directory: Path, network: Network, dtype: str) -> None:
    {"student": _write_student, "aligned": write_aligned}[network.description["type"]](directory, network, dtype)


def _write_student(directory: Path, network: Network, dtype: str) -> None:
    config = {
        "model_type": "smke",
        "architectures": ["SmkeModel"],
        "auto_map": {"AutoConfig": "modeling_smke.SmkeConfig", "AutoModel": "modeling_smke.SmkeModel"},
        "dtype": dtype,
        **pytorch.smke_config(network.description),
    }
    pytorch.write_json(directory / "config.json", config)
    state = to_torch(SMKE_HF, network.params, network.description, dtype=DTYPES[dtype])
    # Not save_file: it hides the system's reason for a failure and makes the file unreadable for others.
    atomic.write_bytes(directory / "model.safetensors", safetensors.numpy.save(state, metadata={"format": "pt"}))
    shutil.copyfile(pytorch.SOURCE, directory / pytorch.MODELING)
    pytorch.write_preprocessing(directory, network)


def _embed(directory: Path, batch: Batch):
    if (directory / MODELING).is_file():
        return embed_aligned(directory, batch)
    modeling = pytorch.import_modeling(directory / pytorch.MODELING)
    return pytorch.embed(modeling.SmkeModel.from_directory(directory), batch)


HF = Format(
    "directory for PyTorch, of a student also for transformers", _write, _embed,
    {"student": USAGE, "aligned": ALIGNED_USAGE}, metadata={"student": ("library_name: transformers",)},
    types=("student", "aligned"),
)  # fmt: skip
