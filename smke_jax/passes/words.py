"""One vector of a caption, from a text encoder."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.passes.base import Pass, mode

POOLS = ("mean", "cls")


def words(model: nn.Module, network: str, *, makes: str = "words", pool: str = "mean") -> Pass:
    """'<makes>/feature' (B, D) of 'text' and 'text_mask' (B, L): the mean over the tokens, or the first one, [CLS]."""

    def run(params, arrays, key, train):
        mask = arrays["text_mask"]
        tokens = model.apply({"params": params[network]}, arrays["text"], mask, **mode(key, train))
        tokens = tokens.astype(jnp.float32)
        if pool == "cls":
            return {f"{makes}/feature": tokens[:, 0]}
        seen = mask[:, :, None].astype(jnp.float32)
        return {f"{makes}/feature": (tokens * seen).sum(1) / seen.sum(1)}

    return Pass(network, (network,), ("text", "text_mask"), (f"{makes}/feature",), run)
