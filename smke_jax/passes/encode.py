"""Image and text through a student's towers and what they share."""

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.attention import kept_weights
from smke_jax.models.student import Student
from smke_jax.passes.base import MEAN, STD, Pass, apply_with_tokens, mode, to_network

LEVELS = ("fc1", "out", "head")
TOKENS = ("tokens", "head_tokens")


def encode_image(model: Student, network: str, *, mean=MEAN, std=STD, makes: str = "", image: str = "image") -> Pass:
    """'image/{fc1,out,head}' (B, D) of 'image', and 'image/{tokens,head_tokens}' (B, N, D) of every patch.

    `network` is the name of the network that `model` runs with.  `mean` and `std` (3,) are those of the pixels in
    [0, 1] that the image tower was trained with.  `makes` 'teacher' calls all of it 'teacher_image/…'; `image` is the
    array that it reads.
    """
    side = _side(makes, "image")

    def run(params, arrays, key, train):
        pixels = to_network(arrays[image], mean, std)
        found, sown = apply_with_tokens(model, params[network], pixels, method="encode_image", **mode(key, train))
        return {f"{side}/{name}": x for name, x in {**found, **sown}.items()}

    provides = tuple(f"{side}/{name}" for name in (*LEVELS, *TOKENS))
    return Pass(f"{network}/image", (network,), (image,), provides, run, watched=(f"{side}/out",))


def _side(makes: str, modality: str) -> str:
    return f"{makes}_{modality}" if makes else modality


def image_attention(model: Student, network: str, *, mean=MEAN, std=STD) -> Pass:
    """'image/attention' (B, N + 1, N + 1) of 'image': how much [CLS] and every patch look at each other.

    It is the mean over the heads of the last layer with attention, which is the shared block; every row sums to 1.
    `model` must not rematerialise its layers.
    """

    def run(params, arrays, key, train):
        pixels = to_network(arrays["image"], mean, std)
        with kept_weights() as weights:
            model.apply({"params": params[network]}, pixels, method="encode_image", **mode(key, train))
        if not weights:
            raise UserError(f"the network {network!r} has no attention that could be shown")
        return {"image/attention": weights[-1].astype(jnp.float32).mean(axis=1)}

    return Pass(f"{network}/image_attention", (network,), ("image",), ("image/attention",), run)


def encode_text(model: Student, network: str, *, makes: str = "") -> Pass:
    """'text/{fc1,out,head}' (B, D) of 'text' and 'text_mask', and of every token of the caption but [CLS]:

    'text/{tokens,head_tokens}' (B, L - 2, D), and 'text/mask' (B, L - 2), which is 1 at its words: at neither [SEP] nor
    padding.  `makes` as of `encode_image`.
    """
    side = _side(makes, "text")

    def run(params, arrays, key, train):
        ids, mask = arrays["text"], arrays["text_mask"]
        text, sown = apply_with_tokens(model, params[network], ids, mask, method="encode_text", **mode(key, train))
        # The last position is no word, and any other is one if a token follows it: [SEP] ends every caption.
        sown = {name: x[:, :-1] for name, x in sown.items()} | {"mask": mask[:, 2:]}
        return {f"{side}/{name}": x for name, x in {**text, **sown}.items()}

    provides = tuple(f"{side}/{name}" for name in (*LEVELS, *TOKENS, "mask"))
    return Pass(f"{network}/text", (network,), ("text", "text_mask"), provides, run, watched=(f"{side}/out",))
