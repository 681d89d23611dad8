"""What model a network is of: a file of weights says it, or a part of the config where the weights are random."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn

from smke_jax.errors import UserError
from smke_jax.models.fields import check_fields, defaults_of
from smke_jax.models.towers import VITS
from smke_jax.networks.encoders import describe_encoder
from smke_jax.networks.start import RANDOM

UNSEEN = {"type", "init_std"}  # fields of a model that its file does not settle


def check_depth(start: str, there: int | None, wanted: int | None) -> None:
    """Raises UserError where more layers are `wanted` than the file `start` has; None is all, or an unknown number."""
    if wanted is not None and there is not None and wanted > there:
        raise UserError(f"{start} has {there} layers: set depth to {there} or less")


def of_every_patch(said: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The description `said` of a tower of VITS with these `fields`, where the tower leaves no patch out.

    Raises UserError for an `image_size` that does not divide into patches.
    """
    if fields["image_size"] % said["patch_size"]:
        raise UserError(
            f"image_size {fields['image_size']} is no multiple of the patch size {said['patch_size']}: set it to one"
        )
    own, known = {**fields, "token_drop": 0.0, "num_classes": 0}, VITS[said["type"]].__dataclass_fields__
    return {**said, **{name: x for name, x in own.items() if name in known}}


def described_by(
    start: str,
    model: Mapping[str, Any] | None,
    kinds: Mapping[str, type[nn.Module]],
    *,
    tower: str,
    what: str,
    example: str,
    remark: str = "",
    besides: Iterable[str] = (),
) -> dict[str, Any]:
    """The description {'type': …, fields} of the model in the file `start`; that of `model` where it is 'random'.

    kinds:   {type: module} of the models that the network can be of
    tower:   'image' or 'text': which one of a CLIP's
    what:    the network in messages; example: a part in messages; remark: which other files would do, in messages
    besides: names that a description may hold besides the fields of its module
    Raises UserError for a file of another kind, and for fields of `model` that someone has set and that are not those
    of the file.
    """
    if start == RANDOM:
        if model is None:
            raise UserError(f"a {what} of random weights needs a model, such as model=part({example!r})")
        check_fields("model", model, kinds, besides=besides)
        return dict(model)
    if not start:
        raise UserError(f"the {what}'s start is empty: give what `smke convert` wrote, or 'random' to try without")
    found = describe_encoder(start, tower)
    if found.get("type") not in kinds:
        raise UserError(
            f"{start} holds a model of type {found.get('type')!r}, which is no {what}: give a file of one of "
            f"{', '.join(sorted(kinds))}{remark}"
        )
    known = {"type", *besides, *kinds[found["type"]].__dataclass_fields__}
    for key in found:
        if key not in known:
            raise UserError(f"{start} describes its model by {key!r}, which no {what} here has: convert it again")
    if model is not None:
        check_fields("model", model, kinds, besides=besides)
        _check_agrees(start, model, found, kinds)
    return dict(found)


def _check_agrees(start: str, model: Mapping[str, Any], found: Mapping[str, Any], kinds) -> None:
    usual = defaults_of(kinds[model["type"]])
    theirs = defaults_of(kinds[found["type"]]) | found
    for key, value in model.items():
        if key in UNSEEN or _plain(value) == _plain(usual.get(key)):
            continue
        if model["type"] != found["type"]:
            other = f"is set for a {model['type']}, and {start} holds a {found['type']}"
            raise UserError(f"model.{key} {other}: leave it out")
        if _plain(value) != _plain(theirs.get(key)):
            raise UserError(f"model.{key} is {value!r}, and {start} says {theirs.get(key)!r}: leave it out")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
