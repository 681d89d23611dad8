"""The frozen teacher's forward."""

from collections.abc import Callable

import flax.linen as nn
import jax

from smke_jax.passes.base import MEAN, STD, Pass, apply_and_reveal, to_network


def teacher_pass(model: nn.Module, mean=MEAN, std=STD, *, head: Callable[[jax.Array], jax.Array] | None = None) -> Pass:
    """'target/cls' (B, D) of batch['teacher_image'], or of batch['image'] where student and teacher share the view.

    A teacher that cuts the image in patches also makes 'target/tokens' (B, N, D), one of every patch, and
    'target/patches' (B, N, D), what it begins with: the embedded patches, without positions.
    Of a model that classifies also 'target/logits' (B, classes); `head` makes them of [CLS] for one that does not.
    `mean` and `std` (3,) are those of the pixels in [0, 1] that the teacher was trained with.
    """

    def images(batch):
        return to_network(batch.get("teacher_image", batch["image"]), mean, std)

    def init(key, batch):
        return model.init(key, images(batch))["params"]

    def run(params, batch, key, train):
        cls, sown = apply_and_reveal(model, params, images(batch))
        reps = {"target/cls": cls} | {f"target/{name}": x for name, x in sown.items()}
        return reps if head is None else reps | {"target/logits": head(cls)}

    cut = hasattr(model, "patch_size")
    made = {
        "target/cls": True,
        "target/logits": head is not None or getattr(model, "num_classes", 0),
        "target/tokens": cut,
        "target/patches": cut,
    }
    return Pass("teacher", tuple(name for name, there in made.items() if there), False, init, run)


def kept_pass(provides: tuple[str, ...]) -> Pass:
    """What a frozen pass has made before, read from the batch under the same names."""
    return Pass("teacher", provides, False, lambda key, batch: {}, lambda params, batch, key, train: {
        name: batch[name] for name in provides
    })  # fmt: skip
