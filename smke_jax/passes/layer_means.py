"""What all layers of an encoder say of every token, in one array: the target of distilling one modality (spec 1, 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, apply_with_tokens, mode, to_network
from smke_jax.standardise import standardised

OUTPUTS = {"mlp": "mlp_", "stream": "layer_"}  # of a layer: {what a config says: the name under which it is sown}


def image_layers(
    model: nn.Module, network: str, *, makes: str, image: str = "image", mean=MEAN, std=STD, trained: bool = True,
    **options,
) -> Pass:  # fmt: skip
    """'<makes>/layers' (B, 1 + N, D) of the array `image`, [CLS] first; see `mean_of_layers`.

    mean, std: (3,) of the pixels in [0, 1] that the encoder was trained with
    trained:   whether its dropout is on while the run is trained
    options:   output, layers and layer_norm of `layer_means`
    """

    def run(params, arrays, key, train):
        pixels = to_network(arrays[image], mean, std)
        _, sown = apply_with_tokens(model, params[network], pixels, **mode(key, train and trained))
        return {f"{makes}/layers": layer_means(sown, model.depth, **options)}

    return Pass(f"{network}/layers", (network,), (image,), (f"{makes}/layers",), run)


def text_layers(
    model: nn.Module, network: str, *, makes: str, padding: bool = True, trained: bool = True, **options
) -> Pass:
    """'<makes>/layers' (B, L, D) of 'text' and 'text_mask' (B, L), padding included.

    padding: whether padding counts among the positions that a channel is normalised over
    The others are those of `image_layers`.
    """

    def run(params, arrays, key, train):
        ids, mask = arrays["text"], arrays["text_mask"]
        _, sown = apply_with_tokens(model, params[network], ids, mask, **mode(key, train and trained))
        return {f"{makes}/layers": layer_means(sown, model.depth, mask=None if padding else mask, **options)}

    return Pass(f"{network}/layers", (network,), ("text", "text_mask"), (f"{makes}/layers",), run)


def layer_means(
    sown: dict[str, jax.Array], depth: int, *, output: str = "mlp", layers: Sequence[int] = (),
    layer_norm: bool = True, mask: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """`mean_of_layers` of what an encoder of `depth` layers sowed.

    output: a key of OUTPUTS; layers: counted from 1, () is all of them; 0 is what the first layer gets
    """
    chosen = layers or range(1, depth + 1)
    return mean_of_layers([sown[f"{OUTPUTS[output]}{i}"] for i in chosen], mask, layer_norm=layer_norm)


def mean_of_layers(outputs: Sequence[jax.Array], mask: jax.Array | None = None, *, layer_norm: bool) -> jax.Array:
    """The mean over layers of their outputs, each normalised by itself; fp32.

    Every channel of every example gets the mean 0 and the variance 1 over its tokens (instance normalisation), so that
    no layer and no channel outweighs the others.  `layer_norm` then normalises every token over its channels, without
    parameters.  This is the target of data2vec (Baevski et al. 2022, section 3.3) as the thesis uses it (spec 1, 2).
    outputs: (B, L, D) of each layer
    mask:    (B, L), 1 = token: statistics are those of the tokens alone.  None takes all positions
    -> (B, L, D)
    """
    total = sum(_over_tokens(x.astype(jnp.float32), mask) for x in outputs) / len(outputs)
    return standardised(total) if layer_norm else total


def _over_tokens(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return standardised(x, lambda x: x.mean(axis=1, keepdims=True))
    kept = mask[:, :, None].astype(jnp.float32)
    count = jnp.maximum(kept.sum(axis=1, keepdims=True), 1)
    return standardised(x, lambda x: (x * kept).sum(axis=1, keepdims=True) / count)
