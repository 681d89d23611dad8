"""`smke evaluate` of what is no run: retrieval with an export, or with weights that `smke convert` wrote."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smke_jax import atomic
from smke_jax.data.sources import PreparedSource, open_prepared
from smke_jax.embedder import load
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import format_table, retrieval_metrics

OF_RUNS = ("evaluator", "step", "level")  # flags that choose among what a run has
SPLIT = "test"
WEIGHTS = ("*.safetensors", "*.ckpt", "*.bin", "*.onnx")


def holds_no_run(path: Path) -> bool:
    """Whether weights lie at `path`, and no run of `smke train`."""
    if not path.is_dir():
        return path.is_file()
    return not (path / "run.json").exists() and any(any(path.glob(pattern)) for pattern in WEIGHTS)


def evaluate_model(arguments: argparse.Namespace) -> int:
    """Embeds a split of a prepared folder by `smke_jax.load`, prints recalls, and writes them where asked."""
    if given := [f"--{name}" for name in OF_RUNS if getattr(arguments, name) is not None] + arguments.overrides:
        raise UserError(f"{arguments.workdir} is no run of `smke train`: leave {given[0]} out")
    if arguments.data is None:
        raise UserError(f"{arguments.workdir} names no data: give --data, a folder written by `smke prepare`")
    model = load(arguments.workdir)
    source = open_prepared(arguments.data, arguments.split or SPLIT)
    captions = source.all_captions()
    order = np.argsort(source.image_ids, kind="stable").tolist()
    images = model.encode_images(_Pictures(source, order), progress=True)
    texts = model.encode_texts([text for row in order for text in captions[row]], progress=True)
    if images.shape[1] != texts.shape[1]:
        raise UserError(f"{arguments.workdir} embeds images and texts in different spaces: it retrieves nothing")
    caption_image = np.repeat(np.arange(len(order)), source.num_captions[order])
    protocol = f"{source.dataset} {source.split}, any-of-n, cosine of what `smke_jax.load` embeds"
    protocol += f", {source.about}" if source.about else ""
    metrics = retrieval_metrics(images, texts, caption_image, protocol=protocol)
    print(format_table(metrics))
    if arguments.out:
        try:
            atomic.write_text(arguments.out, json.dumps(metrics, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {arguments.out}: {error.strerror}") from None
        print(f"wrote {arguments.out}")
    return 0


class _Pictures:
    """The files of a split's pictures in an order, read as they are asked for."""

    def __init__(self, source: PreparedSource, order: Sequence[int]):
        self.source, self.order = source, order

    def __length_hint__(self) -> int:
        return len(self.order)

    def __iter__(self):
        return (self.source[row].image for row in self.order)
