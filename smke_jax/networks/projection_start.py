"""The projection of one modality from a file: of an export with projections, or of a CLIP."""

from collections.abc import Mapping
from typing import Any

from smke_jax.convert.params_file import digests, fit, load_params, read_description
from smke_jax.convert.temperatures import by_level
from smke_jax.errors import UserError
from smke_jax.networks.base import Start
from smke_jax.networks.encoders import CLIP, FEATURE

# The term whose temperature comes along.  Where others learn theirs, their field `temperature` says where it starts.
CONTRAST = "itc"


def projection_start(path: str, side: str, shapes: Any, description: Mapping[str, Any]) -> Start:
    """The projection of the modality `side`, 'image' or 'text', in the file `path`, and its temperature of CONTRAST.

    shapes: of the projection's parameters; description: of the projections that they belong to.
    Raises UserError for a file without such a projection, and for a projection of other sizes.
    """
    model = read_description(path).get("model", {})
    if model.get("type") not in _READERS:
        raise UserError(
            f"{side}_start: {path} holds a model of type {model.get('type')!r}, which has no projections: give a CLIP, "
            "or what `smke export` wrote of a run with projections"
        )
    params, scales = _READERS[model["type"]](load_params(path), model, side, path)
    ours, theirs = (sorted(tree) for tree in (shapes["linear"], params["linear"]))
    if ours != theirs:
        raise UserError(
            f"{side}_start: the projection of {path} has {' and '.join(theirs)}: set bias={'bias' in theirs}"
        )
    (inputs, width), (their_inputs, their_width) = (tree["linear"]["kernel"].shape for tree in (shapes, params))
    if width != their_width:
        raise UserError(
            f"{side}_start: {path} projects into {their_width} channels, not {width}: set width={their_width}"
        )
    if inputs != their_inputs:
        raise UserError(
            f"{side}_start: {path} projects features of {their_inputs} channels, and {' and '.join(description[side])} "
            f"have {inputs}: leave {side}_start out, so that the projection begins at random"
        )
    loaded = fit(shapes, params, source=f"the projection of {side} in {path}")
    origin = f"the projection of {side} in {path}"
    return Start(
        loaded, {"": origin}, {"weights": digests(path)["weights"]}, scales, made_by=_made_by(model, side, description)
    )


def _made_by(model: Mapping[str, Any], side: str, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{feature that `description` reads: fields of the network that made the one in its place in an export}."""
    networks = model.get("networks", {}).values()
    theirs = next((own[side] for own in networks if own["type"] == "projections"), ())
    makers = {f"{own['makes']}/feature": {"close_up": 1.0} | dict(own) for own in networks if "makes" in own}
    plain = lambda x: tuple(x) if isinstance(x, list) else x  # noqa: E731  JSON has no tuples
    return {
        ours: {field: plain(makers[their][field]) for field in FEATURE if field in makers[their]}
        for ours, their in zip(description[side], theirs, strict=False)
        if their in makers
    }


def _of_aligned(params, model, side, path):
    ((name, own),) = ((name, own) for name, own in model["networks"].items() if own["type"] == "projections")
    if not own[side]:
        raise UserError(f"{side}_start: {path} has no projection of {side}: give another export")
    if own["shared"] or own["head"]:
        raise UserError(
            f"{side}_start: {path} has layers after its projections, which would be lost: give another export"
        )
    scales = by_level(model.get("logit_scales", {}))
    return params[name][side], {term: {"logit_scale": own} for term, own in scales.items() if term == CONTRAST}


def _of_clip(params, model, side, path):
    scales = {CONTRAST: {"logit_scale": {"out": params["logit_scale"]}}}
    return {"linear": params[f"{side}_projection"]}, scales


_READERS = {"aligned": _of_aligned, CLIP: _of_clip}
