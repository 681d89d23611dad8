"""The image from its [CLS] feature alone: a bottleneck that makes [CLS] carry what the whole picture shows."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.objectives.base import Term


def reconstruct(hidden: int = 256, size: int = 32) -> Term:
    """MSE between each view, shrunk to size × size, and a two-layer MLP of its [CLS].

    Needs 'view{1,2}/cls' (B, D) and 'view{1,2}/pixels' (B, S, S, 3), S a multiple of `size`.
    In the spirit of BEiT v2's [CLS] pretraining (Peng et al. 2022, section 3.3), which has masked patches predicted
    through [CLS] so that it aggregates the image; here nothing but [CLS] reaches the decoder.
    """

    def init(key, shapes):
        width, pixels = shapes["view1/cls"].shape[-1], (size, size, 3)
        keys = jax.random.split(key)
        dense = jax.nn.initializers.lecun_normal()
        return {
            "fc1": {"kernel": dense(keys[0], (width, hidden)), "bias": jnp.zeros(hidden)},
            "fc2": {"kernel": dense(keys[1], (hidden, size * size * 3)), "bias": jnp.zeros(pixels)},
        }, ()

    def value(params, slots, reps, scope):
        losses = []
        for view in ("view1", "view2"):
            x = jax.nn.relu(reps[f"{view}/cls"] @ params["fc1"]["kernel"] + params["fc1"]["bias"])
            x = (x @ params["fc2"]["kernel"]).reshape(-1, size, size, 3) + params["fc2"]["bias"]
            losses.append(mean_squared_error(x, _shrink(reps[f"{view}/pixels"], size)))
        return sum(losses) / 2, {}

    return Term(("view1/cls", "view2/cls", "view1/pixels", "view2/pixels"), init, value)


def _shrink(images: jax.Array, size: int) -> jax.Array:
    """Means over equal squares.  (B, S, S, 3) -> (B, size, size, 3)."""
    factor = images.shape[1] // size
    if factor * size != images.shape[1]:
        raise UserError(f"reconstruct.size {size} does not divide the image size {images.shape[1]}")
    return images.reshape(-1, size, factor, size, factor, 3).mean(axis=(2, 4))
