"""A codebook for images: the teacher's [CLS] rebuilt from one code of it (spec 16)."""

import jax
import jax.numpy as jnp

from smke_jax.losses import codebook
from smke_jax.losses.collective import total
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.margin import matching_cosine_loss
from smke_jax.objectives.base import Term


def image_vq(commitment: float = 1.0, decay: float = 0.99, dead_below: float = 0.01, restart: bool = False) -> Term:
    """1 - cos(reconstruction, target) + commitment · mean((latent - its code)²).

    Needs 'code/latent' (B, S), 'code/similarity' (B, J), its cosines with all codes, and 'code/reconstruction',
    'target/cls' (B, D).  The codes are slots that follow the latents by a moving average; k-means on the latents of the
    first global batch replaces the random ones that the first step runs with, so let the learning rate warm up from 0.
    `usage` is the moving average of each code's share of the batch.  A code is dead with less than
    `dead_below` of an equal share; with `restart` it becomes a latent of the batch that the others describe badly.
    """

    def init(key, shapes):
        size, width = shapes["code/similarity"].shape[1], shapes["code/latent"].shape[1]
        return {}, {
            "codes": normalise(jax.random.normal(key, (size, width))),
            "usage": jnp.full(size, 1 / size, jnp.float32),
            "started": jnp.zeros((), jnp.bool),
        }

    def dead(usage):
        return usage * len(usage) < dead_below

    def value(params, slots, reps, scope):
        nearest = jnp.argmax(reps["code/similarity"], axis=-1)
        rebuilt = matching_cosine_loss(normalise(reps["code/reconstruction"]), normalise(reps["target/cls"]))
        distance = jnp.mean(jnp.square(reps["code/latent"] - slots["codes"][nearest]))
        used = total(codebook.counts(nearest, len(slots["codes"])), scope) > 0
        return rebuilt + commitment * distance, {
            "loss_reconstruction": rebuilt,
            "loss_commitment": distance,
            "codes_in_batch": jnp.mean(used.astype(jnp.float32)),
            "perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(slots["usage"]))),
            "dead_codes": jnp.mean(dead(slots["usage"]).astype(jnp.float32)),
        }

    def begin(slots, latents, nearest):
        return slots | {"codes": codebook.k_means(latents, len(slots["codes"])), "started": jnp.ones((), jnp.bool)}

    def go_on(slots, latents, nearest):
        codes = codebook.follow(slots["codes"], latents, nearest, decay=decay)
        share = codebook.counts(nearest, len(codes)) / len(nearest)
        usage = decay * slots["usage"] + (1 - decay) * share
        if restart:
            codes, renewed = codebook.restart(codes, dead(usage), latents, nearest)
            usage = jnp.where(renewed, 1 / len(codes), usage)
        return {"codes": codes, "usage": usage, "started": slots["started"]}

    def update(slots, reps):
        nearest = jnp.argmax(reps["code/similarity"], axis=-1)
        return jax.lax.cond(slots["started"], go_on, begin, slots, reps["code/latent"], nearest)

    return Term(("code/latent", "code/similarity", "code/reconstruction", "target/cls"), init, value, update)
