"""The run of `tiny.py` with matrices in place of a student and a teacher, for tests of what surrounds them.

The data are the same images with captions, and so are the terms and the evaluator.  Its step compiles in a fraction of
the time.
"""

from pathlib import Path

import jax
from tiny import tiny_config
from two_matrices import WIDTH

from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Network
from smke_jax.parts import part
from smke_jax.passes.base import Pass, to_network

SIDE = 32  # pixels


def pixels_and_words(*, width: int = WIDTH, words: int = 60) -> Network:
    """'image/out' (B, width), a matrix times the pixels, and 'text/out', the mean of the vectors of its tokens.

    They are 'image/head' and 'text/head' too.  `words` is the size of the vocabulary.
    """

    def init(key, specs):
        keys = jax.random.split(key)
        shapes = {"image": (3 * SIDE**2, width), "text": (words, width)}
        return {side: {"kernel": jax.random.normal(k, shapes[side])} for side, k in zip(shapes, keys)}

    def image(params, arrays):
        pixels = to_network(arrays["image"])
        return pixels.reshape(len(pixels), -1) @ params["image"]["kernel"]

    def text(params, arrays):
        mask = arrays["text_mask"][..., None]
        return (params["text"]["kernel"][arrays["text"]] * mask).sum(1) / mask.sum(1)

    def encode(name, side, needs, function):
        def run(params, arrays, key, train):
            x = function(params[name], arrays)
            return {f"{side}/out": x, f"{side}/head": x}

        return Pass(f"{name}/{side}", (name,), needs, (f"{side}/out", f"{side}/head"), run, watched=(f"{side}/out",))

    def forward(name, specs):
        return encode(name, "image", ("image",), image), encode(name, "text", ("text", "text_mask"), text)

    return Network(init, forward, sizes={"image": SIDE})


NETWORKS["pixels_and_words"] = pixels_and_words


def tiny_pairs():
    """`tiny_config` with the networks 'net' and 'target'."""
    c = tiny_config()
    del c.networks.student, c.networks.teacher
    c.networks.net, c.networks.target = part("pixels_and_words"), part("one_matrix", pixels=SIDE)
    c.terms.itc.levels = ("out",)
    c.optimizer.update(learning_rate=1e-3, reference_batch=0, warmup_fraction=0.0)  # every step changes the next loss
    return c


CONFIG_FILE = f"""'''The tiny pairs.'''
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_pairs import tiny_pairs as get_config
"""
