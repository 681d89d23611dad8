"""Two views of each image through one encoder and a projector: self-supervised training of a teacher."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, to_network


class ProjectedEncoder(nn.Module):
    """Encoder and projector MLP.  Images (B, S, S, 3) -> ([CLS] (B, D), projection (B, projector[-1]))."""

    encoder: nn.Module
    projector: tuple[int, ...]

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        # Only an encoder that leaves out patches in training tells the two apart.
        options = {"deterministic": False} if train and getattr(self.encoder, "token_drop", 0) else {}
        cls = self.encoder(images, **options)
        x = nn.LayerNorm(name="projector_norm")(cls)
        for i, width in enumerate(self.projector):
            x = nn.Dense(width, name=f"projector_{i}")(jax.nn.relu(x) if i else x)
        return cls, x


def views_pass(model: ProjectedEncoder, mean=MEAN, std=STD) -> Pass:
    """'view{1,2}/{cls,projection,pixels}' of batch['view1'] and batch['view2'].

    `mean` and `std` (3,) normalise pixels in [0, 1].
    """

    def init(key, batch):
        return model.init(key, to_network(batch["view1"], mean, std))["params"]

    def run(params, batch, key, train):
        views = [name for name in ("view1", "view2") if name in batch]
        # One forward over all views keeps the matrices large; interleaving them keeps every example on its device.
        both = jnp.stack([batch[name] for name in views], axis=1)  # (B, V, S, S, 3)
        pixels = to_network(both.reshape(-1, *both.shape[2:]), mean, std)
        cls, projection = model.apply({"params": params}, pixels, train=train, rngs={"dropout": key} if train else None)
        reps = {}
        for i, name in enumerate(views):
            rows = slice(i, None, len(views))
            reps |= {f"{name}/cls": cls[rows], f"{name}/projection": projection[rows], f"{name}/pixels": pixels[rows]}
        return reps

    provides = tuple(f"view{i}/{what}" for i in (1, 2) for what in ("cls", "projection", "pixels"))
    return Pass("views", provides, True, init, run, watched=("view1/cls",))
