"""Whether an export embeds images and captions as the network it was made from."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.convert.export.base import Batch
from smke_jax.data.datasets import open_source
from smke_jax.data.pipeline import pixels
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.passes.base import MEAN, STD, only
from smke_jax.passes.frozen import teacher_pass
from smke_jax.passes.student import LEVELS, student_pass

log = logging.getLogger("smke_jax")

COUNT = 8  # images, and captions
# The smallest cosine allowed, by the precision of the exported weights. With 16 bits every weight keeps 11 (float16) or
# 8 (bfloat16) binary digits: full-size random students came to 0.999999 and 0.9999.
BARS = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99}
SENTENCES = ("a dog runs across the grass", "two people sit on a bench", "a red car", "children play in the snow")


class Samples(NamedTuple):
    """What is embedded: uint8 images (N, S, S, 3), captions, and what to call them."""

    images: np.ndarray
    captions: Sequence[str]
    origin: str


class Likeness(NamedTuple):
    """Of one representation, over all samples: the smallest cosine, and max |Δ| of the L2-normalised rows."""

    cosine: float
    delta: float


def draw_samples(data, splits: Sequence[str], image_size: int) -> Samples:
    """The first images and captions of the first of `splits` that `data` (config.data) still has, else made-up ones."""
    data = data.copy_and_resolve_references()
    data.in_memory = False
    for split in filter(None, splits):
        try:
            source = open_source(data, split)
            examples = [source[i] for i in range(min(COUNT, len(source)))]
            images = np.stack([squash(pixels(example), image_size) for example in examples])
        except (UserError, OSError) as error:
            log.info("the split %s cannot be read: %s", split, error)
        else:
            captions = [example.captions[0] for example in examples]
            return Samples(images, captions, f"{len(images)} images of {source.dataset} {split} with a caption each")
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, image_size, image_size, 3), dtype=np.uint8)
    return Samples(noise, SENTENCES, f"{COUNT} pictures of noise and {len(SENTENCES)} sentences, as the data is gone")


def make_batch(samples: Samples, tokenizer: Tokenizer | None, max_length: int) -> Batch:
    """`samples` as a network takes them; without text where there is no `tokenizer`."""
    if tokenizer is None:
        return {"image": samples.images}
    ids, mask = tokenizer.encode(samples.captions, max_length)
    return {"image": samples.images, "text": ids, "text_mask": mask}


def embed(description: dict, params: Any, batch: Batch) -> dict[str, np.ndarray]:
    """Every representation (N, D) of `batch`, computed in fp32.

    Of a student '{image,text}/{fc1,out,head}', and what retrieval compares as '{image,text}_embeds'; of an encoder
    'target/cls'.
    """
    model = build_model({**description, "dtype": "float32"})
    is_student = description["type"] == "student"
    if is_student:
        p, names = student_pass(model), [f"{modality}/{level}" for modality in ("image", "text") for level in LEVELS]
    else:
        p, names = teacher_pass(model, description.get("mean", MEAN), description.get("std", STD)), ["target/cls"]
    run = only(p, names).run
    with jax.default_matmul_precision("highest"):
        reps = jax.device_get(jax.jit(lambda params, batch: run(params, batch, None, False))(params, batch))
    if is_student:
        reps |= {f"{modality}_embeds": reps[f"{modality}/{description['level']}"] for modality in ("image", "text")}
    return reps


def compare(original: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> dict[str, Likeness]:
    """How like every exported representation is to the original of the same name."""
    return {name: _likeness(original[name], x) for name, x in exported.items()}


def _likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return Likeness(float((a * b).sum(1).min()), float(np.abs(a - b).max()))
