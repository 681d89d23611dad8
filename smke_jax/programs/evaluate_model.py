"""`smke evaluate` of what is no run: retrieval or zero-shot classification with an export or with converted weights."""

import argparse
import itertools
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smke_jax import atomic
from smke_jax.config import base
from smke_jax.config_files import override, override_key
from smke_jax.data.damage import DamagedImage
from smke_jax.data.gallery import gallery_of
from smke_jax.data.labelled import LabelledSource, open_labelled
from smke_jax.data.sources import has_split, open_prepared
from smke_jax.data.transforms import squash
from smke_jax.embedder import load
from smke_jax.errors import UserError
from smke_jax.evaluators.own_images import without_rows
from smke_jax.evaluators.recalls import format_table, retrieval_metrics
from smke_jax.evaluators.zero_shot import class_prompts, zero_shot_figures
from smke_jax.parts import part
from smke_jax.tasks.labelled_images import labelled_split

OF_RUNS = ("step", "level")  # flags that choose among what a run has
SPLITS = ("test", "dev")  # the first that --data has, where --split does not say
ZERO_SHOT = "zero_shot"
WEIGHTS = ("*.safetensors", "*.ckpt", "*.bin", "*.onnx")


def holds_no_run(path: Path) -> bool:
    """Whether weights lie at `path`, and no run of `smke train`."""
    if not path.is_dir():
        return path.is_file()
    return not (path / "run.json").exists() and any(any(path.glob(pattern)) for pattern in WEIGHTS)


def evaluate_model(arguments: argparse.Namespace) -> int:
    """Embeds a split of a prepared folder by `smke_jax.load`, prints recalls, and writes them where asked.

    With --evaluator=zero_shot it embeds labelled images and sentences about their classes, and prints the accuracy.
    """
    if given := [f"--{name}" for name in OF_RUNS if getattr(arguments, name) is not None]:
        raise UserError(f"{arguments.workdir} is no run of `smke train`: leave {given[0]} out")
    if arguments.evaluator == ZERO_SHOT:
        return _zero_shot(arguments)
    if arguments.evaluator not in (None, "retrieval"):
        raise UserError(f"{arguments.workdir} is no run of `smke train`: --evaluator is retrieval or {ZERO_SHOT}")
    if arguments.overrides:
        raise UserError(f"{arguments.workdir} is no run of `smke train`: leave {arguments.overrides[0]} out")
    if arguments.data is None:
        raise UserError(f"{arguments.workdir} names no data: give --data, a folder written by `smke prepare`")
    model = load(arguments.workdir)
    split = arguments.split or next((name for name in SPLITS if has_split(arguments.data, name)), SPLITS[0])
    source = open_prepared(arguments.data, split)
    gallery = gallery_of(source, operator.attrgetter("image"))
    images = model.encode_images(gallery.pictures, progress=True)
    texts = model.encode_texts(gallery.texts, progress=True)
    if images.shape[1] != texts.shape[1]:
        raise UserError(f"{arguments.workdir} embeds images and texts in different spaces: it retrieves nothing")
    protocol = f"{source.dataset} {source.split}, any-of-n, cosine of what `smke_jax.load` embeds"
    protocol += f", {source.about}" if source.about else ""
    metrics = retrieval_metrics(images, texts, gallery.caption_image, protocol=protocol)
    return _told(format_table(metrics), metrics, arguments.out)


def _zero_shot(arguments: argparse.Namespace) -> int:
    config = base()
    config.evaluators[ZERO_SHOT] = part(ZERO_SHOT)
    wrong = [
        key for key in map(override_key, arguments.overrides) if not key.startswith(f"config.evaluators.{ZERO_SHOT}.")
    ]
    if wrong:
        raise UserError(f"{arguments.workdir} is no run of `smke train`: leave {wrong[0]} out")
    fields = override(config, arguments.overrides).evaluators[ZERO_SHOT]
    for name in ("split", "level", "every"):
        if fields[name] != part(ZERO_SHOT)[name]:
            raise UserError(f"config.evaluators.{ZERO_SHOT}.{name} is for runs of `smke train`: leave it out")
    data, split = str(arguments.data or fields.data), arguments.split or fields.part
    source = open_labelled(fields.layout, data, split, share=fields.held_back)
    sentences, protocol = class_prompts(source, fields.templates, fields.class_names)
    model = load(arguments.workdir)
    if not model.reads_texts:
        raise UserError(
            f"{arguments.workdir} embeds no texts, or its vocabulary is missing: zero-shot classification is for "
            "image-text models with their tokenizer/"
        )
    images, skipped = model.encode_images(map(_stored, itertools.repeat(source), range(len(source))),
                                          on_error="skip", progress=True)  # fmt: skip
    photos = without_rows(labelled_split(source, {}, squash, ""), source, np.array([x.position for x in skipped], int))
    texts = model.encode_texts(sentences, progress=True)
    if images.shape[1] != texts.shape[1]:
        raise UserError(f"{arguments.workdir} embeds images and texts in different spaces: it classifies nothing")
    figures = zero_shot_figures(images, texts, photos, f"{protocol}, cosine of what `smke_jax.load` embeds")
    return _told(figures.summary, figures.record, arguments.out)


def _told(text: str, figures: Mapping[str, Any], out: Path | None) -> int:
    print(text)
    if out:
        try:
            atomic.write_text(out, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from None
        print(f"wrote {out}")
    return 0


def _stored(source: LabelledSource, row: int) -> bytes | np.ndarray:
    """An image as it is stored; b'', which is none, where its file cannot be opened."""
    try:
        return source[row].image
    except DamagedImage:
        return b""
