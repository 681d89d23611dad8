"""Masked representations: fused tokens of a masked pair like those of the whole pair (MAMO, Zhao et al. 2023)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.masked import mean_at, spread_at
from smke_jax.objectives.base import Term
from smke_jax.perceptron import init_layers, through_layers
from smke_jax.standardise import standardised

VIEWS = {"masked_image": "image", "masked_text": "text"}  # {masked view: the modality whose tokens are masked in it}


def mrm(target: str = "momentum/", views: tuple[str, ...] = tuple(VIEWS), hidden: int = 0) -> Term:
    """Mean over `views` of the MSE between predicted and averaged tokens at the masked places.

    The prediction is a two-layer MLP of '<view>/fused' (B, L, D), on the online side alone.  The target is
    '<target>pair/<modality>' of the clean pair, without gradient, each token standardised over its channels.
    Needs '<view>/chosen' (B, L) bool.
    target: the prefix of the averaged network's representations
    views:  'masked_image', at masked patches, and 'masked_text', at masked words
    hidden: channels of the MLP; 0 is as many as the tokens have
    The metrics 'embedding_std/…' say how different the predicted tokens are, and the targets before they are
    standardised: 0 where all are the same.  The loop warns of that.
    Source: spec B.1 and B.8.  The seed's code had the projector on both sides, with gradient, and collapsed to 2e-7.
    """
    if not views or not set(views) <= set(VIEWS):
        raise UserError(f"mrm.views is {views!r}: give {' or '.join(VIEWS)}, or both")
    needs = tuple(name for v in views for name in (f"{v}/fused", f"{v}/chosen", f"{target}pair/{VIEWS[v]}"))

    def init(key, shapes):
        width = shapes[f"{views[0]}/fused"].shape[-1]
        return init_layers(key, (width, hidden or width, width)), ()

    def value(params, slots, reps, scope):
        losses, metrics = [], {}
        for view in views:
            chosen, clean = reps[f"{view}/chosen"], jax.lax.stop_gradient(reps[f"{target}pair/{VIEWS[view]}"])
            predicted = through_layers(params, reps[f"{view}/fused"])
            squares = jnp.mean(jnp.square(predicted - standardised(clean)), axis=-1)
            losses.append(mean_at(squares, chosen, scope))
            metrics |= {
                f"loss_{view}": losses[-1],
                f"embedding_std/{view}_target": spread_at(clean, chosen, scope),
                f"embedding_std/{view}_prediction": spread_at(jax.lax.stop_gradient(predicted), chosen, scope),
            }
        return sum(losses) / len(losses), metrics

    return Term(needs, init, value)
