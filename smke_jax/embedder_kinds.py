"""How models of each type are used: their preprocessing and their vocabulary.  Imports no Flax."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from smke_jax.data.clip_tokenizer import load_clip_tokenizer, load_vocabulary
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer
from smke_jax.data.transforms import centre_crop, squash
from smke_jax.errors import UserError

NETWORK = "embedder"  # what the passes call the model


def kind_of(description: dict) -> "Kind":
    if description["type"] not in KINDS:
        raise UserError(f"a model of type {description['type']!r} cannot be loaded: known are {', '.join(KINDS)}")
    return KINDS[description["type"]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How models of one type are used.

    view:      (image, size) -> uint8 (size, size, 3): what the network sees of an image
    normalise: whether embeddings are L2-normalised
    load_tokenizer: of the vocabulary in a directory
    vocabulary: the files that it needs there
    """

    view: Callable[[np.ndarray, int], np.ndarray] = squash
    normalise: bool = False
    load_tokenizer: Callable[[Path], Tokenizer] = load_vocabulary
    vocabulary: str = "vocab.txt or tokenizer.json"


TEACHERS = ("beit", "data2vec2", "efficientnet_lite", "resnet", "vit")  # as smke_jax.models.teachers has them
KINDS = {
    **dict.fromkeys(("student", "fused_towers", "aligned"), Kind(normalise=True)),
    "clip": Kind(
        centre_crop,
        normalise=True,
        load_tokenizer=load_clip_tokenizer,
        vocabulary="tokenizer.json, or vocab.json and merges.txt",
    ),
    **dict.fromkeys(("classifier", *TEACHERS), Kind(centre_crop)),
    "bert": Kind(load_tokenizer=load_tokenizer),
}
