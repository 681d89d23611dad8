"""An encoder in a file of weights: the model that the file holds, or the tower of the CLIP in it."""

from typing import Any

from smke_jax.convert.params_file import load_params, read_description
from smke_jax.errors import UserError
from smke_jax.models.clip import tower_of

CLIP = "clip"
IMAGENETS = ("data2vec2",)  # families whose files need not say it: all were trained with ImageNet's statistics


def describe_encoder(path: str, tower: str) -> dict[str, Any]:
    """The description {'type': …, fields} of the encoder in `path`; `tower` 'image' or 'text' is that of a CLIP."""
    model = read_description(path).get("model", {})
    return tower_of(model, tower) if model.get("type") == CLIP else dict(model)


def load_encoder(path: str, tower: str) -> Any:
    """Its parameters, a nested dict of fp32 arrays."""
    params = load_params(path)
    is_clip = read_description(path).get("model", {}).get("type") == CLIP
    return params[f"{tower}_encoder"] if is_clip else params


def check_pixels(path: str, description: dict[str, Any]) -> None:
    """Raises UserError where the description of an image encoder does not say what its pixels were normalised with."""
    missing = [name for name in ("mean", "std") if name not in description]
    if missing and description["type"] not in IMAGENETS:
        raise UserError(
            f"{path} does not say the {' and '.join(missing)} of its pixels: convert it again, with --mean and --std"
        )
