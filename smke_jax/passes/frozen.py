"""The frozen teacher's forward."""

from collections.abc import Callable

import flax.linen as nn
import jax

from smke_jax.passes.base import MEAN, STD, Pass, to_network


def teacher_pass(model: nn.Module, mean=MEAN, std=STD, *, head: Callable[[jax.Array], jax.Array] | None = None) -> Pass:
    """'target/cls' (B, D) of batch['teacher_image'], or of batch['image'] where student and teacher share the view.

    Of a model that classifies also 'target/logits' (B, classes); `head` makes them of [CLS] for one that does not.
    `mean` and `std` (3,) are those of the pixels in [0, 1] that the teacher was trained with.
    """

    def images(batch):
        return to_network(batch.get("teacher_image", batch["image"]), mean, std)

    def init(key, batch):
        return model.init(key, images(batch))["params"]

    def run(params, batch, key, train):
        cls, sown = model.apply({"params": params}, images(batch), mutable=["intermediates"])
        reps = {"target/cls": cls} | {f"target/{name}": x for name, (x,) in sown.get("intermediates", {}).items()}
        return reps if head is None else reps | {"target/logits": head(cls)}

    classifies = head is not None or getattr(model, "num_classes", 0)
    return Pass("teacher", ("target/cls", *(["target/logits"] if classifies else [])), False, init, run)


def kept_pass(provides: tuple[str, ...]) -> Pass:
    """What a frozen pass has made before, read from the batch under the same names."""
    return Pass("teacher", provides, False, lambda key, batch: {}, lambda params, batch, key, train: {
        name: batch[name] for name in provides
    })  # fmt: skip
