"""What a frozen image encoder says of an image."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.passes.base import MEAN, STD, Pass, apply_with_tokens, mode, to_network

POOLS = ("cls", "mean")  # parts of a feature: the encoder's own, and the mean over patches


def features(
    model: nn.Module,
    network: str,
    *,
    makes: str = "target",
    image: str = "image",
    mean=MEAN,
    std=STD,
    head: Callable[[jax.Array], jax.Array] | None = None,
    pools: tuple[str, ...] = ("cls",),
    layers: tuple[int, ...] = (),
    close_up: float = 1.0,
    trains: bool = False,
) -> Pass:
    """'<makes>/cls' (B, D) of the array `image`, and '<makes>/feature' (B, F).

    A feature is made of `pools`: 'cls' and 'mean', which is the mean over patches, each divided by its root mean square
    and all of them side by side.  With `layers` they are those of the residual stream after these layers, counted from
    1, in place of the encoder's output.  The [CLS] of a convolutional layer is the mean of its cells.
    An encoder that cuts the image in patches also makes '<makes>/tokens' (B, N, D), one of every patch, and
    '<makes>/patches' (B, N, D), what it begins with: the embedded patches, without positions.  One that ends in a grid
    of cells also makes '<makes>/tokens', one of every cell.
    Of a model that classifies also '<makes>/logits' (B, classes); `head` makes them of [CLS] for one that does not.
    close_up: below 1, a feature is the mean of that of the image and that of its `middle` of this share.
    `mean` and `std` (3,) are those of the pixels in [0, 1] that the encoder was trained with.
    `pools` and `layers` are checked by `check_pools`.
    trains: whether the model drops out some of its numbers while its network is trained.
    """

    in_patches = hasattr(model, "patch_size")

    def of_layer(x):
        return {"cls": x[:, 0], "mean": x[:, 1:].mean(1)} if in_patches else {"cls": x.mean(1)}

    def feature(cls, sown):
        if layers:
            outputs = [of_layer(sown[f"layer_{i}"].astype(jnp.float32)) for i in layers]
        else:
            outputs = [{"cls": cls, "mean": sown["tokens"].mean(1) if "mean" in pools else None}]
        return jnp.concatenate([_unit(own[pool]) for own in outputs for pool in pools], axis=1)

    made = {
        "cls": True,
        "feature": True,
        "logits": head is not None or getattr(model, "num_classes", 0),
        "tokens": in_patches or hasattr(model, "grid"),
        "patches": in_patches,
    }
    provides = tuple(f"{makes}/{name}" for name, there in made.items() if there)

    def run(params, arrays, key, train):
        options = mode(key, train) if trains else {}
        pixels = to_network(arrays[image], mean, std)
        cls, sown = apply_with_tokens(model, params[network], pixels, **options)
        found = {"cls": cls, "feature": feature(cls, sown), **sown} | ({} if head is None else {"logits": head(cls)})
        if close_up < 1:
            closer = apply_with_tokens(model, params[network], middle(pixels, close_up), **options)
            found["feature"] = (found["feature"] + feature(*closer)) / 2
        return {name: found[name.rpartition("/")[2]] for name in provides}

    return Pass(network, (network,), (image,), provides, run)


def middle(pixels: jax.Array, share: float) -> jax.Array:
    """The middle of `pixels` (B, S, S, 3), `share` of their sides, mirrored and enlarged to S × S (bilinear)."""
    size = pixels.shape[1]
    side = max(round(size * share), 1)
    first = (size - side) // 2
    cut = pixels[:, first : first + side, first : first + side][:, :, ::-1]
    return jax.image.resize(cut, pixels.shape, "bilinear", antialias=False)


def check_pools(model: nn.Module, pools: tuple[str, ...], layers: tuple[int, ...]) -> None:
    """Raises UserError for pools and layers that the encoder `model` does not have."""
    if not pools or set(pools) - set(POOLS):
        raise UserError(f"pools is {pools}: give {' or '.join(POOLS)}, or both")
    in_layers = hasattr(model, "depth")
    if "mean" in pools and not hasattr(model, "patch_size"):
        raise UserError(f"a {type(model).__name__} has no patches to take the mean of: set pools=('cls',)")
    if layers and not in_layers:
        raise UserError(f"a {type(model).__name__} has no layers to choose from: leave layers out")
    if wrong := [i for i in layers if not 1 <= i <= model.depth]:
        raise UserError(f"there is no layer {wrong[0]}: the encoder has layers 1 to {model.depth}")


def _unit(x: jax.Array) -> jax.Array:
    """x (B, D) divided by the root mean square of each row."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + 1e-12)
