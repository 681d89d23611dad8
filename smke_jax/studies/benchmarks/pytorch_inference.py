"""The PyTorch export of a model, and the same network in onnxruntime, as embedders of photos and texts.

Both are given what makes them fast: photos are read, decoded and made small in as many threads as there are cores,
while the batch before is embedded.  Texts are sorted by length, and a batch is padded to its longest.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import PIL.Image
import tokenizers
import torch

from smke_jax.convert.export import hf_aligned, pytorch

OPSET = 20


class Other(NamedTuple):
    """Embedders of others.

    images: (paths, batch size) -> (N, D)
    texts:  (texts, batch size) -> (N, D)
    """

    images: Callable[[Sequence[Path], int], np.ndarray]
    texts: Callable[[Sequence[str], int], np.ndarray]


def exported_model(export: Path) -> torch.nn.Module:
    """The model in a directory of `smke export --format=hf`, by the code that lies there."""
    if (export / hf_aligned.MODELING).is_file():
        modeling = pytorch.import_modeling(export / hf_aligned.MODELING, beside=(pytorch.MODELING,))
        return modeling.AlignedModel.from_directory(export)
    return pytorch.import_modeling(export / pytorch.MODELING).SmkeModel.from_directory(export)


def in_pytorch(export: Path) -> Other:
    """The export as its README.md says, in inference mode."""
    model, words = exported_model(export), Words(export)

    def images(paths, batch_size):
        with torch.inference_mode():
            return np.concatenate([model(x)["image_embeds"].numpy() for x in pixels_of(model, paths, batch_size)])

    def texts(given, batch_size):
        def embed(ids, mask):
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))["text_embeds"].numpy()

        with torch.inference_mode():
            return words.embedded(given, batch_size, embed)

    return Other(images, texts)


def in_onnxruntime(graphs: Path, export: Path) -> Other:
    """The two graphs that `write_graphs` made of the export."""
    model, words = exported_model(export), Words(export)  # the model makes the pixels
    image, text = (session(graphs / name) for name in ("image.onnx", "text.onnx"))
    names = [x.name for x in image.get_inputs()]

    def images(paths, batch_size):
        found = []
        for pixels in pixels_of(model, paths, batch_size):
            tensors = pixels.values() if isinstance(pixels, dict) else [pixels]
            found += image.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
        return np.concatenate(found)

    def texts(given, batch_size):
        def embed(ids, mask):
            return text.run(None, {"input_ids": ids, "attention_mask": mask})[0]

        return words.embedded(given, batch_size, embed)

    return Other(images, texts)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class Words:
    """The tokenizer of the export: texts -> (ids, mask), int64 (B, L), with L tokens in the longest of them."""

    def __init__(self, export: Path):
        self._tokenizer = tokenizers.Tokenizer.from_file(str(export / "tokenizer.json"))

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return np.array([x.ids for x in encodings]), np.array([x.attention_mask for x in encodings])

    def embedded(self, texts: Sequence[str], batch_size: int, embed: Callable) -> np.ndarray:
        """What `embed` makes of (ids, mask) of each batch, in the order of `texts`; texts of a length go together."""
        ids, mask = self(texts)
        lengths = mask.sum(1)
        order, parts = np.argsort(lengths, kind="stable"), []
        for rows in groups(order, batch_size):
            length = lengths[rows[-1]]
            parts.append(embed(ids[rows, :length], mask[rows, :length]))
        return np.concatenate(parts)[np.argsort(order)]


def groups(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def pixels_of(model: torch.nn.Module, paths: Sequence[Path], batch_size: int) -> Iterator:
    """What the model's `preprocess` makes of each batch of photos; the next one is made meanwhile, in threads."""

    def one(path):
        return model.preprocess([PIL.Image.open(path)])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        for group in groups(paths, batch_size):
            begun = [pool.submit(one, path) for path in group]
            if waiting:
                yield _together([x.result() for x in waiting])
            waiting = begun
        yield _together([x.result() for x in waiting])


def _together(pixels: list):
    if isinstance(pixels[0], dict):
        return {name: torch.cat([x[name] for x in pixels]) for name in pixels[0]}
    return torch.cat(pixels)


def write_graphs(export: Path, directory: Path) -> None:
    """The export's network as image.onnx and text.onnx; batches and texts may have any size."""
    model, rows = exported_model(export), torch.export.Dim.DYNAMIC
    pixels = model.preprocess([PIL.Image.new("RGB", (8, 8))] * 2)
    names = list(pixels) if isinstance(pixels, dict) else ["pixel_values"]

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *pixels):
            whole = dict(zip(names, pixels, strict=True))
            return self.model(whole if names != ["pixel_values"] else pixels[0])["image_embeds"]

    class Text(Image):
        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)["text_embeds"]

    tensors = tuple(pixels.values()) if isinstance(pixels, dict) else (pixels,)
    ids = torch.ones(2, 6, dtype=torch.int64)
    for module, name, given, shapes in (
        (Image(), "image.onnx", tensors, (tuple({0: rows} for _ in tensors),)),
        (Text(), "text.onnx", (ids, torch.ones_like(ids)), ({0: rows, 1: rows},) * 2),
    ):
        inputs = names if name == "image.onnx" else ["input_ids", "attention_mask"]
        torch.onnx.export(
            module.eval(), given, directory / name, input_names=inputs, dynamic_shapes=shapes,
            opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip
