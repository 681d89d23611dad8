"""An image encoder with a projector on it, as self-supervised training wants it."""

import flax.linen as nn
import jax


class ProjectedEncoder(nn.Module):
    """Encoder and projector MLP.  Images (B, S, S, 3) -> ([CLS] (B, D), projection (B, projector[-1]))."""

    encoder: nn.Module
    projector: tuple[int, ...]

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        # Other encoders do not tell the two apart, and some do not have the option.
        random = any(getattr(self.encoder, name, 0) for name in ("token_drop", "dropout", "drop_path"))
        options = {"deterministic": False} if train and random else {}
        cls = self.encoder(images, **options)
        x = nn.LayerNorm(name="projector_norm")(cls)
        for i, width in enumerate(self.projector):
            x = nn.Dense(width, name=f"projector_{i}")(jax.nn.relu(x) if i else x)
        return cls, x
