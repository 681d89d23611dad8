"""Whether an export embeds images and captions as the network it was made from."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.convert.export.base import Batch
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.data.transforms import squash
from smke_jax.descriptions import image_sizes
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.models.fields import build_from
from smke_jax.models.quantizer import Down
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.passes.aligned import aligned, by_network, modalities
from smke_jax.passes.base import Pass, narrowed, statistics_of
from smke_jax.passes.classify import Mixing, classify_image
from smke_jax.passes.encode import LEVELS, encode_image, encode_text
from smke_jax.passes.features import features
from smke_jax.passes.fuse import towers
from smke_jax.passes.words import words
from smke_jax.tasks.base import Split, Task

log = logging.getLogger("smke_jax")

COUNT = 8  # images, and captions
LENGTH = 64  # tokens of a text
VECTORS = 64  # in place of the features of images
# The smallest cosine allowed, by the precision of the exported weights. With 16 bits every weight keeps 11 (float16) or
# 8 (bfloat16) binary digits: full-size random students came to 0.999999 and 0.9999.
BARS = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99, "int8": 0.98}
SENTENCES = ("a dog runs across the grass", "two people sit on a bench", "a red car", "children play in the snow")
NETWORK = "exported"  # what the passes call it


class Samples(NamedTuple):
    """What goes through both networks.

    arrays:   'image', a list of uint8 (H, W, 3) of any size; or 'cls' (N, D)
    captions: of these images or others; of a text encoder, texts
    origin:   what to call them
    """

    arrays: Mapping[str, Any]
    captions: Sequence[str]
    origin: str


class Likeness(NamedTuple):
    """Of one representation, over all samples: the smallest cosine, and max |Δ| of the L2-normalised rows."""

    cosine: float
    delta: float


def draw_samples(task: Task, splits: Sequence[str], description: Mapping[str, Any]) -> Samples:
    """What the network of this `description` is checked with.

    Of one that sees images: the first images and captions of the first of `splits` that can still be read, else made-up
    ones.  Of a text encoder the first texts, or captions, in the same way.  Of a quantizer: random
    vectors, as the teacher whose features it takes is another network.
    """
    reads_images = bool(image_sizes(description))
    if description["type"] == "quantizer":
        vectors = np.random.default_rng(0).normal(size=(VECTORS, description["width"])).astype(np.float32)
        return Samples({"cls": vectors}, (), f"{VECTORS} random vectors in place of a teacher's features")
    for name in splits:
        try:
            split = task.split(name)
            if not reads_images:
                texts = split.facts["texts" if "texts" in split.facts else "captions"]
                found = [texts[row] for row in range(min(COUNT, len(texts)))]
                return Samples({}, found, f"{len(found)} texts of {split.name}")
            images, captions = _first(split)
        except (UserError, OSError) as error:
            log.info("the split %s cannot be read: %s", name, error)
        else:
            beside = " with a caption each" if captions else ""
            return Samples({"image": images}, captions, f"{len(images)} images of {split.name}{beside}")
    if not reads_images:
        return Samples({}, SENTENCES, f"{len(SENTENCES)} sentences, as the data is gone")
    size = max(image_sizes(description).values())
    noise = list(np.random.default_rng(0).integers(0, 256, (COUNT, size, size, 3), dtype=np.uint8))
    origin = f"{COUNT} pictures of noise and {len(SENTENCES)} sentences, as the data is gone"
    return Samples({"image": noise}, SENTENCES, origin)


def _first(split: Split) -> tuple[list[np.ndarray], list[str]]:
    """The first COUNT images, as they are, and the first caption of each."""
    if "captions" not in split.facts:
        rows = range(min(COUNT, len(split.facts["labels"])))
        return [split.facts["pixels"](row) for row in rows], []
    captions, images = split.facts["captions"], split.facts["caption_image"]
    rows = np.unique(images, return_index=True)[1][:COUNT]
    return [split.facts["pixels"](images[row]) for row in rows], [captions[row] for row in rows]


def make_batch(samples: Samples, tokenizer: Tokenizer | None, max_length: int) -> Batch:
    """`samples` as a network takes them; without text where there is no `tokenizer`."""
    if tokenizer is None:
        return samples.arrays
    ids, mask = tokenizer.encode(samples.captions, max_length)
    return {**samples.arrays, "text": ids, "text_mask": mask}


def length_of(description: Mapping[str, Any]) -> int:
    """Tokens of a text that the network of this `description` is checked with; 0 of one that reads none.

    A text encoder by itself, which knows no length of its texts, gets LENGTH, or as many as it has positions.
    """
    return description.get("max_length", min(LENGTH, description.get("max_positions", 0)))


def embed(description: dict, params: Any, batch: Batch) -> dict[str, np.ndarray]:
    """Every representation (N, D) of `batch`, computed in fp32.

    Of an image-text model '{image,text}/{fc1,out,head}', as far as it has them, and what retrieval compares as
    '{image,text}_embeds'; of an image encoder 'target/cls', of a text encoder 'words/feature'; of a quantizer the
    'latent' of every vector, and its 'codes'.
    """
    if description["type"] == "quantizer":
        return _quantized(description, params, batch)
    description = _in_fp32(description)
    sizes = image_sizes(description)
    arrays = {array: np.stack([squash(image, size) for image in batch["image"]]) for array, size in sizes.items()}
    arrays |= {name: x for name, x in batch.items() if name != "image"}
    reps = _run(_passes(description), by_network(description, params, NETWORK), arrays)
    if "level" in description:
        reps |= {
            f"{modality}_embeds": reps[f"{modality}/{description['level']}"] for modality in modalities(description)
        }
    return reps


def _in_fp32(description: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: _in_fp32(own) for name, own in description.get("networks", {}).items()}
    return {**description, "dtype": "float32", "residual_dtype": "float32"} | ({"networks": inner} if inner else {})


def _passes(description: dict) -> Sequence[Pass]:
    """The passes that make what is compared, in the order in which they run."""
    levels = [f"{modality}/{level}" for modality in modalities(description) for level in LEVELS]
    if description["type"] == "aligned":
        return aligned(description, *levels)
    if description["type"] in TEXT_TOWERS:
        return [words(build_from(description, TEXT_TOWERS[description["type"]]), NETWORK)]
    model, pixels = build_model(description), statistics_of(description)
    if description["type"] == "fused_towers":
        return [narrowed(p, levels) for p in towers(model, NETWORK, **pixels)]
    if description["type"] == "student":
        return [narrowed(p, levels) for p in (encode_image(model, NETWORK, **pixels), encode_text(model, NETWORK))]
    if description["type"] == "classifier":
        return [narrowed(classify_image(model, NETWORK, mixing=Mixing(), **pixels)[0], ["class/logits"])]
    return [narrowed(features(model, NETWORK, **pixels), ["target/cls"])]


def _run(passes: Sequence[Pass], params: Mapping[str, Any], arrays: Batch) -> dict[str, np.ndarray]:
    """All that `passes` make and no other pass reads."""
    inner = {need for p in passes for need in p.needs}

    @jax.jit
    def run(params, arrays):
        for p in passes:
            arrays = arrays | p.run(params, arrays, None, False)
        return {name: arrays[name] for p in passes for name in p.provides if name not in inner}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(params, dict(arrays)))


def _quantized(description, params, batch) -> dict[str, np.ndarray]:
    # Not the numbers of the codes: with 16 bits, one of two that are almost equally near may win.
    with jax.default_matmul_precision("highest"):
        latent = jax.jit(Down(description["code_dim"]).apply)({"params": params["down"]}, batch["cls"])
    return {"latent": np.asarray(latent), "codes": np.asarray(params["codes"])}


def compare(original: dict[str, np.ndarray], exported: dict[str, np.ndarray]) -> dict[str, Likeness]:
    """How like every exported representation is to the original of the same name."""
    return {name: _likeness(original[name], x) for name, x in exported.items()}


def _likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return Likeness(float((a * b).sum(1).min()), float(np.abs(a - b).max()))
