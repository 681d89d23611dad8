"""A directory for PyTorch: readable by itself, and through transformers."""

import shutil
from pathlib import Path

from smke_jax.convert.export import pytorch
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.convert.export.hf_aligned import MODELING, embed_aligned, write_aligned
from smke_jax.convert.export.hf_aligned import USAGE as ALIGNED_USAGE
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch

METADATA = ("library_name: transformers", "pipeline_tag: zero-shot-image-classification")
# What sentence-transformers and transformers' processors look for.
CLIENTS = {
    "processor_config.json": {"processor_class": "VisionTextDualEncoderProcessor"},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "text_embeds"},
            "image": {"method": "forward", "method_output_name": "image_embeds"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}
USAGE = (
    """
With PyTorch, safetensors, Pillow and tokenizers; `modeling_smke.py` is this directory's own and short:

"""
    + pytorch.example("modeling_smke", "SmkeModel")
    + """
With transformers:

```python
import PIL.Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
images, captions = [PIL.Image.open("photo.jpg")], ["a dog runs across the grass", "a red car"]
inputs = processor(text=captions, images=images, padding=True, truncation=True, return_tensors="pt")
outputs = model(**inputs)  # image_embeds and text_embeds, L2-normalised, and logits_per_image
print(outputs.image_embeds @ outputs.text_embeds.T)
```

`get_image_features` and `get_text_features` give the same embeddings one modality at a time, and
`pipeline("zero-shot-image-classification", model=".", trust_remote_code=True)` classifies. With sentence-transformers,
`SentenceTransformer(".", trust_remote_code=True).encode` takes texts and pictures.

Pictures are decoded as in training: the orientation that a camera notes is applied, transparency is laid over white,
and greys of 16 bits keep their high byte. Without `trust_remote_code`, transformers' own processor does not do this:
give it upright RGB pictures (`PIL.ImageOps.exif_transpose`).

`logit_scale` in `config.json` is the natural logarithm of what cosines of the exported level are multiplied with;
`logit_scales` has those of all losses and levels.
"""
)


def _write(directory: Path, network: Network, dtype: str) -> None:
    {"student": _write_student, "aligned": write_aligned}[network.description["type"]](directory, network, dtype)


def _write_student(directory: Path, network: Network, dtype: str) -> None:
    config = {
        "model_type": "smke",
        "architectures": ["SmkeModel"],
        "auto_map": {
            "AutoConfig": "modeling_smke.SmkeConfig",
            "AutoModel": "modeling_smke.SmkeModel",
            "AutoModelForZeroShotImageClassification": "modeling_smke.SmkeModel",
        },
        "dtype": dtype,
        **pytorch.smke_config(network.description),
    }
    pytorch.write_json(directory / "config.json", config)
    state = to_torch(SMKE_HF, network.params, network.description, dtype=dtype)
    pytorch.write_weights(directory, state)
    shutil.copyfile(pytorch.SOURCE, directory / pytorch.MODELING)
    pytorch.write_preprocessing(directory, network)
    for name, content in CLIENTS.items():
        pytorch.write_json(directory / name, content)


def _embed(directory: Path, batch: Batch):
    if (directory / MODELING).is_file():
        return embed_aligned(directory, batch)
    modeling = pytorch.import_modeling(directory / pytorch.MODELING)
    return pytorch.embed(modeling.SmkeModel.from_directory(directory), batch)


FORMAT = Format(
    _write, _embed,
    {"student": USAGE, "aligned": ALIGNED_USAGE}, metadata={"student": METADATA},
    types=("student", "aligned"),
)  # fmt: skip
