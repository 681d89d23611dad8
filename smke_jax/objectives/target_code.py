"""Both modalities name the code of the image, from a frozen codebook of the teacher's features (spec 17)."""

import jax.numpy as jnp
import optax

from smke_jax.objectives.base import Term, no_state


def target_code() -> Term:
    """½ CE(image head, code) + ½ CE(text head, code); needs 'image/head', 'text/head' (B, J), 'target/code' (B,)."""

    def value(params, slots, reps, scope):
        code, metrics = reps["target/code"], {}
        for side in ("image", "text"):
            logits = reps[f"{side}/head"].astype(jnp.float32)
            loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, code))
            accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == code).astype(jnp.float32))
            metrics |= {f"loss_{side}": loss, f"accuracy_{side}": accuracy}
        return (metrics["loss_image"] + metrics["loss_text"]) / 2, metrics

    return Term(("image/head", "text/head", "target/code"), no_state, value)
