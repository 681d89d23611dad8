"""The frozen teacher's forward."""

import flax.linen as nn

from smke_jax.passes.base import Pass, to_network


def teacher_pass(model: nn.Module) -> Pass:
    """'target/cls' (B, D) of batch['teacher_image'], or of batch['image'] where student and teacher share the view."""

    def images(batch):
        return to_network(batch.get("teacher_image", batch["image"]))

    def init(key, batch):
        return model.init(key, images(batch))["params"]

    def run(params, batch, key, train):
        return {"target/cls": model.apply({"params": params}, images(batch))}

    return Pass("teacher", ("target/cls",), False, init, run)
