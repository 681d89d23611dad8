"""The frozen teacher's forward."""

import flax.linen as nn

from smke_jax.passes.base import MEAN, STD, Pass, to_network


def teacher_pass(model: nn.Module, mean=MEAN, std=STD) -> Pass:
    """'target/cls' (B, D) of batch['teacher_image'], or of batch['image'] where student and teacher share the view.

    `mean` and `std` (3,) are those of the pixels in [0, 1] that the teacher was trained with.
    """

    def images(batch):
        return to_network(batch.get("teacher_image", batch["image"]), mean, std)

    def init(key, batch):
        return model.init(key, images(batch))["params"]

    def run(params, batch, key, train):
        return {"target/cls": model.apply({"params": params}, images(batch))}

    return Pass("teacher", ("target/cls",), False, init, run)


def kept_pass(provides: tuple[str, ...]) -> Pass:
    """What a frozen pass has made before, read from the batch under the same names."""
    return Pass("teacher", provides, False, lambda key, batch: {}, lambda params, batch, key, train: {
        name: batch[name] for name in provides
    })  # fmt: skip
