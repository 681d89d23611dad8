"""Distillation token by token: patches learn the teacher's, words the teacher's patch nearest to them (spec 13)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.collective import mean, total
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.losses.tokens import best_patches
from smke_jax.objectives.base import Term

NEEDS = ("image/head_tokens", "text/head_tokens", "text/mask", "target/tokens")


def target_cmli(width: int = 32) -> Term:
    """½ MSE(image head's patches, teacher's) + ½ MSE(g(word), g(the teacher's patch most like it)).

    Needs 'image/head_tokens' and 'target/tokens' (B, N, D), 'text/head_tokens' (B, L, D) and 'text/mask' (B, L).  g is
    a learned linear map to `width` dimensions shared by words and patches, without the bias of the author's code, which
    starts at 0, cancels in the difference and so never moves; the nearest patch is that of the largest cosine after g;
    means are over all words of the global batch (register 22).  Gradients reach g on both sides, so it may collapse:
    the metric 'spread' is the standard deviation of g(patch) over the global batch, mean over dimensions.
    """

    def init(key, shapes):
        return {"kernel": jax.nn.initializers.normal(0.02)(key, (shapes["target/tokens"].shape[-1], width))}, ()

    def value(params, slots, reps, scope):
        patches, words, target = (reps[name] for name in ("image/head_tokens", "text/head_tokens", "target/tokens"))
        if patches.shape != target.shape:
            raise UserError(
                f"target_cmli compares patches {patches.shape[1:]} of the student with {target.shape[1:]} of the "
                "teacher: set token_drop=0 of the image tower, and image_size and patch_size to the teacher's grid"
            )
        image = mean_squared_error(patches, target)

        words, target = (x @ params["kernel"] for x in (words, target))
        nearest = best_patches(normalise(words), normalise(target))
        found = jnp.take_along_axis(target, nearest[:, :, None], axis=1)  # (b, L, width)
        mask = reps["text/mask"].astype(jnp.float32)
        errors = total(jnp.sum(jnp.mean(jnp.square(words - found), axis=2) * mask), scope)
        text = errors / jnp.maximum(total(jnp.sum(mask), scope), 1.0)
        return (image + text) / 2, {"loss_image": image, "loss_text": text, "spread": _spread(target, scope)}

    return Term(NEEDS, init, value)


def _spread(x, scope):
    """Standard deviation over examples and tokens, mean over dimensions.  (b, N, D) -> ()."""
    centred = x - mean(jnp.mean(x, axis=(0, 1)), scope)
    return jnp.mean(jnp.sqrt(mean(jnp.mean(jnp.square(centred), axis=(0, 1)), scope)))
