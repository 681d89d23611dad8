"""Two ONNX graphs, one for each modality, for onnxruntime and what builds on it."""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smke_jax.convert.export import hf_aligned, pytorch
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError

IMAGE, TEXT, PREPROCESSOR = "image.onnx", "text.onnx", "preprocessor_config.json"
OPSET = 20
USAGE = """
Batches may have any size, captions any length up to the number of positions; the graph cuts what is longer than the
model reads.

- `image.onnx`: `pixel_values` float32, the whole picture squashed to a square, bicubic, normalised with the mean and
  deviation in `preprocessor_config.json`, gives `image_embeds` float32 (B, D). SHAPE
- `text.onnx`: `input_ids` and `attention_mask` int64 (B, L), 1 = token, give `text_embeds` float32 (B, D).

Both are L2-normalised: their products are cosines.

```python
import numpy as np
import onnxruntime
import tokenizers

encoding = tokenizers.Tokenizer.from_file("tokenizer.json").encode("a dog runs across the grass")
text = onnxruntime.InferenceSession("text.onnx")
inputs = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
(embedding,) = text.run(["text_embeds"], inputs)
```

In training, pictures were turned as the camera notes, transparency was laid over white, and greys of 16 bits kept
their high byte. These lines turn the picture; transparent and 16-bit pictures need lines of your own:

```python
import json

import numpy as np
import onnxruntime
import PIL.Image
import PIL.ImageOps

photo = PIL.ImageOps.exif_transpose(PIL.Image.open("photo.jpg")).convert("RGB")
with open("preprocessor_config.json") as file:
    said = json.load(file)
IMAGE
(embedding,) = image.run(["image_embeds"], {"pixel_values": pixels})
```

transformers.js finds the same two graphs as `onnx/text_model.onnx` and `onnx/vision_model.onnx`
(`CLIPTextModelWithProjection`, `CLIPVisionModelWithProjection`).PIXELS
"""
STUDENT = {
    "SHAPE": "They are (B, 3, S, S).",
    "IMAGE": """\
pixels = np.float32(photo.resize((said["size"]["width"], said["size"]["height"]), PIL.Image.Resampling.BICUBIC)) / 255
pixels = (pixels - np.float32(said["image_mean"])) / np.float32(said["image_std"])
pixels = pixels.transpose(2, 0, 1)[None]
image = onnxruntime.InferenceSession("image.onnx")""",
    "PIXELS": "",
}
ALIGNED = {
    "SHAPE": """The
  `views` of that file are the image towers, each with its size, mean and deviation. Of one tower `pixel_values` are
  (B, 3, S, S), of several (B, N), the pixels of each flattened, one after another in a row.""",
    "IMAGE": """\
rows = []
for view in said["views"]:
    pixels = np.float32(photo.resize((view["size"], view["size"]), PIL.Image.Resampling.BICUBIC)) / 255
    pixels = (pixels - np.float32(view["mean"])) / np.float32(view["std"])
    rows.append(pixels.transpose(2, 0, 1).reshape(-1))
image = onnxruntime.InferenceSession("image.onnx")
pixels = np.concatenate(rows).reshape(1, *image.get_inputs()[0].shape[1:])""",
    "PIXELS": " The\n`AutoProcessor` of transformers.js knows no `views`: make the pixels as the lines above do.",
}


def _usage(words: dict[str, str]) -> str:
    text = USAGE
    for mark, own in words.items():
        text = text.replace(mark, own)
    return text


def _write(directory: Path, network: Network, dtype: str) -> None:
    if dtype == "bfloat16":
        raise UserError("--dtype=bfloat16: onnxruntime computes in float32 or float16 on a CPU, give one of them")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytorch.require(package, "onnx")
    torch = pytorch.require("torch", "onnx")
    build = {"student": _student, "aligned": _aligned}[network.description["type"]]
    model, pixels, positions, config = build(directory, network, dtype)
    length, (_, end) = network.description["max_length"], network.tokenizer.marks()

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values)["image_embeds"]

    class Text(Image):
        def forward(self, input_ids, attention_mask):
            # What is longer is cut here, too, for clients that do not cut or, as transformers.js, lose the end mark.
            # By a mask, since the call of the model, which slices, would fix the length of all texts.
            place = torch.arange(input_ids.shape[1])
            ids = torch.where(place == length - 1, end, input_ids)
            embedding = self.model.encode_text(ids, attention_mask * (place < length))[self.model.config.level]
            return torch.nn.functional.normalize(embedding, dim=-1)

    rows, tokens = torch.export.Dim("batch"), torch.export.Dim("length", max=positions)
    # One tensor each: inputs that share one are taken for the same input.
    pixels = {"pixel_values": torch.zeros(2, *pixels)}
    captions = {name: torch.ones(2, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    _export(Image(), directory / IMAGE, pixels, dict.fromkeys(pixels, {0: rows}))
    _export(Text(), directory / TEXT, captions, dict.fromkeys(captions, {0: rows, 1: tokens}))
    _write_for_javascript(directory, config)


def _student(directory: Path, network: Network, dtype: str):
    """(PyTorch model, shape of its pixels, positions of its texts, config); writes its preprocessing."""
    model = pytorch.build(network.params, network.description, dtype)
    pytorch.write_preprocessing(directory, network)
    size, config = network.description["image"]["image_size"], pytorch.smke_config(network.description)
    config["max_length"] = config["text"]["max_length"]
    return model, (3, size, size), network.description["text"]["max_positions"], config


def _aligned(directory: Path, network: Network, dtype: str):
    """The same of towers and projections; the pixels of several image towers stand side by side in a row."""
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "hf"
        written.mkdir()
        hf_aligned.write_aligned(written, network, dtype)
        modeling = pytorch.import_modeling(written / hf_aligned.MODELING, beside=(pytorch.MODELING,))
        model = modeling.AlignedModel.from_directory(written)
        config = json.loads((written / "config.json").read_text(encoding="utf-8"))
        shutil.copyfile(written / PREPROCESSOR, directory / PREPROCESSOR)
    pytorch.write_tokenizer(directory, network)
    sizes = [view["size"] for view in model.views]
    pixels = (3, *sizes * 2) if len(sizes) == 1 else (sum(3 * size**2 for size in sizes),)
    texts = [own for own in network.description["networks"].values() if "max_positions" in own]
    return model, pixels, min(own["max_positions"] for own in texts), config


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
    pytorch.write_json(directory / "config.json", {"model_type": "clip", "max_length": config["max_length"], **sizes})


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
    pixels = onnx_pixels(directory, batch["image"], image.get_inputs()[0].shape)
    ids, mask = (batch[name].astype(np.int64) for name in ("text", "text_mask"))
    return {
        "image_embeds": image.run(None, {"pixel_values": pixels})[0],
        "text_embeds": text.run(None, {"input_ids": ids, "attention_mask": mask})[0],
    }


def onnx_pixels(directory: Path, images: Sequence[np.ndarray], shape: Sequence) -> np.ndarray:
    """What the graph of images in `directory` takes of uint8 images (H, W, 3), float32; `shape`: of its input."""
    said = json.loads((directory / PREPROCESSOR).read_text(encoding="utf-8"))
    one = {"size": said.get("size", {}).get("height"), "mean": said.get("image_mean"), "std": said.get("image_std")}
    rows = []
    for view in said.get("views", [one]):
        pixels = np.stack([squash(x, view["size"]) for x in images]).astype(np.float32) / 255
        pixels = (pixels - np.float32(view["mean"])) / np.float32(view["std"])
        rows.append(pixels.transpose(0, 3, 1, 2).reshape(len(images), -1))
    return np.concatenate(rows, axis=1).reshape(len(images), *shape[1:])


FORMAT = Format(_write, _embed, {"student": _usage(STUDENT), "aligned": _usage(ALIGNED)}, types=("student", "aligned"))
