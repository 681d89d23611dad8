"""The S-SMKE steps that are measured: their configs, a batch in memory, and how many operations an example takes."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from smke_jax.parts import base, beit, bert, data2vec2, frozen, itc, pairs, target_itc, transformer, two_towers


class Size(NamedTuple):
    """One step: batch on a CPU and on a GPU, tokens per caption, words, entries of the bank, fields of the towers."""

    batch: int
    gpu_batch: int
    max_length: int
    vocab_size: int
    bank_size: int
    fields: dict[str, int]


def _towers(image_size: int, patch_size: int, width: int, depth: int, num_heads: int) -> dict[str, int]:
    sizes = {"image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth}
    return {**sizes, "num_heads": num_heads, "mlp_dim": 4 * width}


# The teacher is a BEiT of the student's width and twice its depth, as BEiT v2-B is to the thesis' student: 'base'.
SIZES = {
    "micro": Size(16, 1024, 8, 1_000, 256, _towers(16, 8, 32, 2, 2)),
    "tiny": Size(128, 1024, 16, 4_000, 4_096, _towers(32, 4, 128, 3, 4)),
    "small": Size(64, 1024, 32, 8_000, 16_384, _towers(64, 8, 192, 4, 3)),
    "base": Size(8, 512, 64, 30_522, 65_536, _towers(224, 16, 768, 6, 12)),
}


def step_config(size: str, *, dtype: str = "float32", batch_size: int = 0, gpu: bool = False) -> ConfigDict:
    """The config of one of SIZES; `batch_size` 0 takes the size's own."""
    known = SIZES[size]
    images = known.fields
    layers = {name: images[name] for name in ("num_heads", "mlp_dim")}
    c = base()
    c.batch_size = batch_size or (known.gpu_batch if gpu else known.batch)
    c.total_steps = 10_000
    c.num_devices = 1
    c.task = pairs(max_length=known.max_length, vocab_size=known.vocab_size)
    model = beit(**images | {"depth": 2 * images["depth"]})
    c.networks.teacher = frozen(start="random", model=model, final_norm=False, dtype=dtype)
    c.networks.student = two_towers(
        image=data2vec2(**images),
        text=bert(width=images["width"], depth=images["depth"], **layers),
        shared=transformer(**layers),
        head=images["width"],
        dtype=dtype,
    )
    c.terms.itc = itc(levels=("fc1", "out"))
    # Filled from the start: an empty bank would leave most of the work out of the first loss.
    c.terms.target_itc = target_itc(bank_size=known.bank_size, random_bank=True)
    return c


def made_up_batch(config: ConfigDict, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise in the shapes of a batch: 'image' uint8 (B, S, S, 3), 'text' and 'text_mask' (B, L) int32, 'id' (B,)."""
    rng = np.random.default_rng(seed)
    count, length, size = config.batch_size, config.task.max_length, config.networks.student.image.image_size
    words = rng.integers(length // 3, length + 1, count)
    image = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    captions = made_up_captions(rng, words, length, config.task.vocab_size)
    return {"image": image, "id": np.arange(count, dtype=np.int32), **captions}


def made_up_captions(
    rng: np.random.Generator, lengths: np.ndarray, width: int, vocab_size: int
) -> dict[str, np.ndarray]:
    """Noise as 'text' and 'text_mask' (B, width) int32, of as many tokens as `lengths` (B,) says."""
    mask = (np.arange(width) < lengths[:, None]).astype(np.int32)
    return {"text": mask * rng.integers(1, vocab_size, mask.shape, dtype=np.int32), "text_mask": mask}


def _layers(depth: int, tokens: int, width: int, mlp_dim: int) -> int:
    """Forward of `depth` Transformer layers over one sequence: q, k, v, out and the MLP; logits and weighted sum."""
    return depth * (2 * tokens * (4 * width**2 + 2 * width * mlp_dim) + 4 * tokens**2 * width)


def flops_per_example(config: ConfigDict) -> dict[str, int]:
    """Floating-point operations of all matrix products for one example of a step, 2·m·n·k each, by part.

    A trained network counts three times its forward (the gradients by weights and by inputs are a forward each), the
    frozen teacher once, products with the bank twice.  Norms, softmax, GELU and the optimiser are left out.
    """
    teacher, student = config.networks.teacher.model, config.networks.student
    image, text, shared = student.image, student.text, student.shared
    patches = (image.image_size // image.patch_size) ** 2
    embed = 2 * patches * 3 * image.patch_size**2 * image.width
    lengths = (1 + patches, config.task.max_length)
    forward = {
        "image tower": embed + _layers(image.depth, lengths[0], image.width, image.mlp_dim),
        "text tower": _layers(text.depth, lengths[1], text.width, text.mlp_dim),
        "shared block": sum(_layers(1, tokens, image.width, shared.mlp_dim) for tokens in lengths),
        "head": 2 * 2 * image.width * teacher.width,
    }
    batch, bank = config.batch_size, config.terms.target_itc.bank_size
    return {
        "teacher": embed + _layers(teacher.depth, lengths[0], teacher.width, teacher.mlp_dim),
        **{name: 3 * count for name, count in forward.items()},
        "itc": 3 * 2 * 2 * batch * (shared.mlp_dim + image.width),
        "target_itc": 2 * 2 * teacher.width * (3 * batch + 2 * bank),
    }
