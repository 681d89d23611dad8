"""An encoder in a file of weights: the model that the file holds, or the tower of a model of several in it."""

from typing import Any

from smke_jax.convert.params_file import load_params, read_description
from smke_jax.errors import UserError
from smke_jax.models.clip import tower_of

CLIP = "clip"
# {type of a model: {tower: where its parameters lie}}
BOTH = {"image": "image_encoder", "text": "text_encoder"}
INSIDE = {CLIP: BOTH, "student": BOTH, "classifier": {"image": "encoder"}}
IMAGENETS = ("data2vec2",)  # families whose files need not say it: all were trained with ImageNet's statistics


def describe_encoder(path: str, tower: str) -> dict[str, Any]:
    """The description {'type': …, fields} of the encoder in `path`.

    tower: 'image' or 'text': which one of a CLIP's, of an image-text student's, or of a classifier's
    """
    model = read_description(path).get("model", {})
    if model.get("type") == CLIP:
        return tower_of(model, tower)
    if model.get("type") not in INSIDE or tower not in INSIDE[model["type"]]:
        return dict(model)
    of_whole = ("mean", "std") if tower == "image" else ("vocab_size",)
    return {**model[tower], **{name: model[name] for name in of_whole if name in model}}


def load_encoder(path: str, tower: str) -> Any:
    """Its parameters, a nested dict of fp32 arrays."""
    params = load_params(path)
    kind = read_description(path).get("model", {}).get("type")
    return params[INSIDE[kind][tower]] if tower in INSIDE.get(kind, ()) else params


def check_pixels(path: str, description: dict[str, Any]) -> None:
    """Raises UserError where the description of an image encoder does not say what its pixels were normalised with."""
    missing = [name for name in ("mean", "std") if name not in description]
    if missing and description["type"] not in IMAGENETS:
        raise UserError(
            f"{path} does not say the {' and '.join(missing)} of its pixels: convert it again, with --mean and --std"
        )
