"""Image-text matching: negatives drawn in proportion to their similarity (spec 10; ALBEF, Li et al. 2021)."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows
from smke_jax.losses.pairs import BLOCK, EXCLUDED, dot_products


def draw_negatives(
    key: jax.Array,
    queries: jax.Array,
    candidates: jax.Array,
    hardness: float,
    *,
    scope: Scope = ALONE,
    ids: jax.Array | None = None,
) -> jax.Array:
    """For each query one candidate of another row, as its position in the global batch -> (b,) int32.

    The probability of a candidate is proportional to exp(hardness · cosine), over the candidates of all devices.
    Hardness 0 draws uniformly.
    queries, candidates (b, D): L2-normalised rows of this device.
    ids (b,): ids of the images.  With them, no candidate of the query's image is drawn.
    The draw depends on `key` and on positions in the global batch, not on the number of devices.
    """
    rows = global_rows(len(queries), scope)
    ids = rows if ids is None else ids
    candidates, candidate_ids = gather(jax.lax.stop_gradient(candidates), scope), gather(ids, scope)

    def draw(query):
        row, own_id, features = query
        logits = hardness * dot_products(features[None], candidates)[0]
        logits = jnp.where(candidate_ids == own_id, EXCLUDED, logits)
        return jax.random.categorical(jax.random.fold_in(key, row), logits)

    together = max(1, BLOCK // len(candidates))
    return jax.lax.map(draw, (rows, ids, jax.lax.stop_gradient(queries)), batch_size=together)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax cross entropy.  (n, classes), (n,) int -> (mean loss, accuracy), float32."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(own), jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
