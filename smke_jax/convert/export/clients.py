"""What transformers, sentence-transformers and CLIP_benchmark look for in a directory, and how the card says it."""

import shutil
from pathlib import Path

from smke_jax.convert.export import pytorch

METADATA = ("library_name: transformers", "pipeline_tag: zero-shot-image-classification")
ADAPTER = "clip_benchmark_adapter.py"
FILES = {
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
USAGE = """
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
`pipeline("zero-shot-image-classification", model=".", trust_remote_code=True)` classifies; a transparent or 16-bit
picture goes to the processor instead, since the pipeline makes it RGB before the model sees it. With
sentence-transformers, `SentenceTransformer(".", trust_remote_code=True).encode` takes texts and pictures. The model
cuts a text of more tokens than it reads.

`clip_benchmark_adapter.py` measures it with CLIP_benchmark's own functions (`pip install clip-benchmark`), retrieval on
lines of JSON that name a photo and its captions, zero-shot classification on a folder of one folder for each class:

```bash
python clip_benchmark_adapter.py retrieval captions.jsonl
python clip_benchmark_adapter.py classification flowers --template "a photo of a {c}"
```

Pictures are decoded as in training: the orientation that a camera notes is applied, transparency is laid over white,
and greys of 16 bits keep their high byte. {WITHOUT}

`logit_scale` in `config.json` is the natural logarithm of what cosines of the exported level are multiplied with;
`logit_scales` has those of all losses and levels. `sha256sum -c SHA256SUMS` says whether the weights arrived whole.
"""


def usage(without: str) -> str:
    """Markdown for the card; `without`: a sentence on pictures without the export's own code."""
    return USAGE.replace("{WITHOUT}", without)


def auto_map(module: str, model: str, config: str) -> dict[str, str]:
    """For config.json: the classes that AutoModel and others take, `model` and `config` in the file `module`."""
    return {
        "AutoConfig": f"{module}.{config}",
        "AutoModel": f"{module}.{model}",
        "AutoModelForZeroShotImageClassification": f"{module}.{model}",
    }


def write(directory: Path) -> None:
    """The files of all clients, beside config.json."""
    for name, content in FILES.items():
        pytorch.write_json(directory / name, content)
    shutil.copyfile(pytorch.SOURCE.parent / ADAPTER, directory / ADAPTER)
