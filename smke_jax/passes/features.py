"""What a teacher says of an image."""

from collections.abc import Callable

import flax.linen as nn
import jax

from smke_jax.passes.base import MEAN, STD, Pass, apply_with_tokens, to_network


def features(
    model: nn.Module,
    network: str,
    *,
    image: str = "image",
    mean=MEAN,
    std=STD,
    head: Callable[[jax.Array], jax.Array] | None = None,
) -> Pass:
    """'target/cls' (B, D) of the array `image`.

    A teacher that cuts the image in patches also makes 'target/tokens' (B, N, D), one of every patch, and
    'target/patches' (B, N, D), what it begins with: the embedded patches, without positions.  One that ends in a grid
    of cells also makes 'target/tokens', one of every cell.
    Of a model that classifies also 'target/logits' (B, classes); `head` makes them of [CLS] for one that does not.
    `mean` and `std` (3,) are those of the pixels in [0, 1] that the teacher was trained with.
    """

    def run(params, arrays, key, train):
        cls, sown = apply_with_tokens(model, params[network], to_network(arrays[image], mean, std))
        found = {"cls": cls, **sown} | ({} if head is None else {"logits": head(cls)})
        return {f"target/{name}": x for name, x in found.items()}

    in_patches = hasattr(model, "patch_size")
    made = {
        "cls": True,
        "logits": head is not None or getattr(model, "num_classes", 0),
        "tokens": in_patches or hasattr(model, "grid"),
        "patches": in_patches,
    }
    return Pass(network, (network,), (image,), tuple(f"target/{name}" for name, there in made.items() if there), run)
