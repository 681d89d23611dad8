"""Two ONNX graphs, one for each modality, for onnxruntime and what builds on it."""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import numpy as np

from smke_jax.convert.export import pytorch
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError

IMAGE, TEXT = "image.onnx", "text.onnx"
OPSET = 20
USAGE = """
Batches may have any size, captions any length up to the number of positions.

- `image.onnx`: `pixel_values` float32 (B, 3, S, S), the whole picture squashed to a square, bicubic, and normalised
  with the mean and deviation in `preprocessor_config.json`, gives `image_embeds` float32 (B, D).
- `text.onnx`: `input_ids` and `attention_mask` int64 (B, L), 1 = token, give `text_embeds` float32 (B, D).

Both are L2-normalised: their products are cosines.

```python
import numpy as np
import onnxruntime
import tokenizers

# It cuts a longer text as the model needs it.
encoding = tokenizers.Tokenizer.from_file("tokenizer.json").encode("a dog runs across the grass")
text = onnxruntime.InferenceSession("text.onnx")
inputs = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
(embedding,) = text.run(["text_embeds"], inputs)
```

transformers.js finds the same two graphs as `onnx/text_model.onnx` and `onnx/vision_model.onnx`
(`CLIPTextModelWithProjection`, `CLIPVisionModelWithProjection`).
"""


def _write(directory: Path, network: Network, dtype: str) -> None:
    if dtype == "bfloat16":
        raise UserError("--dtype=bfloat16: onnxruntime computes in float32 or float16 on a CPU, give one of them")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytorch.require(package, "onnx")
    torch = pytorch.require("torch", "onnx")
    model = pytorch.build(network.params, network.description, dtype)
    size, length = network.description["image"]["image_size"], network.description["max_length"]
    positions = network.description["text"]["max_positions"]

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values)["image_embeds"]

    class Text(Image):
        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)["text_embeds"]

    rows, tokens = torch.export.Dim("batch"), torch.export.Dim("length", max=positions)
    # One tensor each: inputs that share one are taken for the same input.
    pixels = {"pixel_values": torch.zeros(2, 3, size, size)}
    captions = {name: torch.ones(2, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    _export(Image(), directory / IMAGE, pixels, dict.fromkeys(pixels, {0: rows}))
    _export(Text(), directory / TEXT, captions, dict.fromkeys(captions, {0: rows, 1: tokens}))
    pytorch.write_preprocessing(directory, network)
    _write_for_javascript(directory, pytorch.smke_config(network.description))


def _write_for_javascript(directory: Path, config: dict) -> None:
    """The names under which transformers.js looks for graphs; they are the same files, by links."""
    (directory / "onnx").mkdir()
    for name, own in (("text_model", TEXT), ("vision_model", IMAGE)):
        other = directory / "onnx" / f"{name}.onnx"
        try:
            os.link(directory / own, other)
        except OSError:  # a file system without links
            shutil.copyfile(directory / own, other)
    names = ("projection_dim", "hidden_size", "max_position_embeddings", "logit_scale")
    sizes = {key: config[key] for key in names}
    pytorch.write_json(
        directory / "config.json", {"model_type": "clip", "max_length": config["text"]["max_length"], **sizes}
    )


def _export(module, path: Path, inputs: dict, dynamic_shapes: dict) -> None:
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of every package that it does without
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module.eval(), kwargs=inputs, f=path, input_names=list(inputs), output_names=[f"{path.stem}_embeds"],
            dynamic_shapes=dynamic_shapes, opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip


def _embed(directory: Path, batch: Batch) -> dict[str, np.ndarray]:
    onnxruntime = pytorch.require("onnxruntime", "onnx")
    image, text = (
        onnxruntime.InferenceSession(directory / file, providers=["CPUExecutionProvider"]) for file in (IMAGE, TEXT)
    )
    size = image.get_inputs()[0].shape[-1]
    pixels = np.stack([squash(x, size) for x in batch["image"]]).astype(np.float32) / 255
    said = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (np.float32(said[f"image_{name}"]) for name in ("mean", "std"))
    pixels = ((pixels - mean) / std).transpose(0, 3, 1, 2)
    ids, mask = (batch[name].astype(np.int64) for name in ("text", "text_mask"))
    return {
        "image_embeds": image.run(None, {"pixel_values": pixels})[0],
        "text_embeds": text.run(None, {"input_ids": ids, "attention_mask": mask})[0],
    }


FORMAT = Format(_write, _embed, {"": USAGE})
