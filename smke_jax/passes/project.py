"""Features of images and captions through projections into one space, each by itself or mixed with another row's."""

import jax
import jax.numpy as jnp

from smke_jax.models.projections import Projections
from smke_jax.passes.base import Pass, mode

MIXUP = "mixup"  # the array of a selection: for every row, the row that it is mixed with


def project(
    model: Projections, network: str, *, image: tuple[str, ...], text: tuple[str, ...], mixup_alpha: float = 1.0,
    makes: str = "",
    watched: tuple[str, ...] = ("image", "text"),
) -> tuple[Pass, ...]:  # fmt: skip
    """Three passes; one where there are features of one modality alone.

    'image/{out,fc1,head}' of the features `image`, side by side, and 'text/{out,fc1,head}' of the features `text`, as
    far as the model has them.
    'mixed_image/…' and 'mixed_text/…' of λ · x + (1 - λ) · x' for the features x of each row and x' of the row that
    'mixup' names.  λ is drawn for each row from Beta(mixup_alpha, mixup_alpha), and is the same for images and captions
    (latent mixup: FuseMix, Vouitsis et al. 2024).
    makes: 'teacher' calls all of it 'teacher_image/…' and so on.
    watched: the modalities whose embeddings are watched for collapse: those that are trained.
    """
    prefix = makes and f"{makes}_"
    levels = ("out", *(("fc1",) if model.shared is not None else ()), *(("head",) if model.head else ()))

    def side_by_side(arrays, names):
        return jnp.concatenate([arrays[name].astype(jnp.float32) for name in names], axis=1)

    def apply(params, method, x, key, train):
        return model.apply({"params": params[network]}, x, method=method, **mode(key, train))

    def alone(modality, names):
        def run(params, arrays, key, train):
            made = apply(params, f"project_{modality}", side_by_side(arrays, names), key, train)
            return {f"{prefix}{modality}/{level}": made[level] for level in levels}

        provides = tuple(f"{prefix}{modality}/{level}" for level in levels)
        return Pass(
            f"{network}/{modality}",
            (network,),
            names,
            provides,
            run,
            watched=(f"{prefix}{modality}/out",) if modality in watched else (),
        )

    def mixed(params, arrays, key, train):
        key_mix, key_image, key_text = jax.random.split(key, 3)
        made = {}
        own = {"image": image, "text": text}
        rows = len(arrays[image[0]])
        share = jax.random.beta(key_mix, mixup_alpha, mixup_alpha, (rows, 1))
        for (modality, names), key in zip(own.items(), (key_image, key_text), strict=True):
            x, other = (side_by_side(arrays, own) for own in (names, [f"{name}@{MIXUP}" for name in names]))
            found = apply(params, f"project_{modality}", share * x + (1 - share) * other, key, train)
            made |= {f"{prefix}mixed_{modality}/{level}": found[level] for level in levels}
        return made

    needs = tuple(need for name in (*image, *text) for need in (name, f"{name}@{MIXUP}"))
    provides = tuple(f"{prefix}mixed_{modality}/{level}" for modality in ("image", "text") for level in levels)
    sides = tuple(alone(modality, names) for modality, names in (("image", image), ("text", text)) if names)
    return (*sides, Pass(f"{network}/mixed", (network,), needs, provides, mixed)) if len(sides) == 2 else sides
