"""Both modalities name the code of the image, from a frozen codebook of the teacher's features (spec 17)."""

import jax.numpy as jnp
import optax

from smke_jax.errors import UserError
from smke_jax.facts import FromTask
from smke_jax.objectives.base import Term, no_state


def target_code(num_codes: FromTask) -> Term:
    """½ CE(image head, code) + ½ CE(text head, code), of J = `num_codes` codes.

    Needs 'image/head' and 'text/head' (B, J), 'target/code' (B,).
    """

    def init(key, shapes):
        if (have := shapes["image/head"].shape[-1]) != num_codes:
            raise UserError(
                f"config.terms.target_code: image/head has {have} channels for {num_codes} codes: set the student's "
                f"head={num_codes}"
            )
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        code, metrics = reps["target/code"], {}
        for side in ("image", "text"):
            logits = reps[f"{side}/head"].astype(jnp.float32)
            loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, code))
            accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == code).astype(jnp.float32))
            metrics |= {f"loss_{side}": loss, f"accuracy_{side}": accuracy}
        return (metrics["loss_image"] + metrics["loss_text"]) / 2, metrics

    return Term(("image/head", "text/head", "target/code"), init, value)
