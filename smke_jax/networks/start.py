"""What a network begins with, read from files that `smke convert` or `smke export` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.interpolate import fitted
from smke_jax.convert.params_file import TOKENIZER, digests, fit, load_params, read_description
from smke_jax.convert.temperatures import by_level
from smke_jax.data.clip_tokenizer import load_vocabulary
from smke_jax.errors import UserError
from smke_jax.models.fields import defaults_of
from smke_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS
from smke_jax.networks.base import Start
from smke_jax.networks.encoders import describe_encoder, load_encoder
from smke_jax.networks.inherit import kept_layers, narrower_words, said

RANDOM = "random"  # what a config says where nothing is read from a file

# The encoders that each tower can be made of, by the type in their descriptions.
FITTING = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}
CLASSIFIER = ("fc", "fc_norm", "head")  # parameters of an encoder that a tower does without
# What may differ from the network that is read: how it was and is trained, and the size of the images.
MAY_DIFFER = {
    "head", "start", "image_start", "text_start", "trained", "target_dim", "vocab_size", "level", "max_length",
    "logit_scales", "image_size", "pooler", "dropout", "token_drop", "drop_path", "init_std", "dtype", "residual_dtype",
    "remat", "num_classes", "mean", "std", "parent", "name", "init",
}  # fmt: skip


def student_start(path: str, shapes: Any, description: Mapping[str, Any]) -> Start:
    """The whole student of an export, and the temperatures that it was trained to, for terms of the same names.

    shapes: of the student's parameters; description: of the student that is trained here.
    Raises UserError for another architecture.
    """
    model = read_description(path).get("model", {})
    if model.get("type") != "student":
        raise UserError(
            f"start: {path} holds a model of type {model.get('type')!r}: give what `smke export` wrote of a run with a "
            "student"
        )
    parts = {"": (model, description)}
    parts |= {f"{part}.": (model[part], description[part]) for part in ("image", "text", "shared")}
    wrong = [line for prefix, pair in parts.items() for line in differences(*pair, prefix=prefix)]
    if wrong:
        raise UserError(f"the student is not that of {path}: {'; '.join(wrong)}; set them alike")
    ours, theirs = shapes["head"]["kernel"].shape[-1], model["target_dim"]
    if ours != theirs:
        raise UserError(f"the head of {path} has {theirs} channels, not {ours}: set head={theirs}")
    params, size = load_params(path), description["image"]["image_size"]
    params["image_encoder"] = fitted(params["image_encoder"], model["image"], size)
    loaded = fit(shapes, params, source=path)
    scales = {name: {"logit_scale": values} for name, values in by_level(model.get("logit_scales", {})).items()}
    origins = {"": f"{len(jax.tree.leaves(loaded))} tensors from {path}"}
    return Start(loaded, origins, {"weights": digests(path)["weights"], **_source(path)}, scales, vocabulary_of(path))


def tower_start(tower: str, path: str, shapes: Any, fields: Mapping[str, Any], keep: str = "first") -> Start:
    """Some layers of an encoder for the 'image' or 'text' tower of a student; of a CLIP, of that tower of it.

    shapes: of the tower's parameters; fields: of the tower; keep: which layers, a key of `inherit.KEEP`.  What an
    encoder learned for each place in the image is interpolated where the tower's image_size is another.
    Raises UserError where the file is of another architecture, or has fewer layers than the tower.
    """
    model = describe_encoder(path, tower)
    if model.get("type") not in FITTING[tower]:
        raise UserError(
            f"{tower}_start: {path} holds a model of type {model.get('type')!r}; this tower starts from "
            f"{' or '.join(FITTING[tower])}"
        )
    if model["type"] != fields["type"]:
        raise UserError(
            f"{tower}_start: {path} holds a {model['type']}, and the {tower} tower is a {fields['type']}: make it a "
            f"part {model['type']!r}"
        )
    theirs = {k: v for k, v in {**defaults_of(FITTING[tower][model["type"]]), **model}.items() if k != "depth"}
    narrower = 0 if theirs.get("word_width") else fields.get("word_width", 0)
    wrong = differences(theirs | ({"word_width": narrower} if narrower else {}), fields)
    if wrong:
        raise UserError(f"the {tower} tower cannot start from {path}: {'; '.join(wrong)}; set them alike")
    if "depth" in fields and model["depth"] < fields["depth"]:
        raise UserError(f"{path} has {model['depth']} layers: the depth of the {tower} tower is {fields['depth']}")
    if tower == "text" and (words := model["vocab_size"]) != (ours := shapes["word_embedding"].shape[0]):
        raise UserError(
            f"{path} has {words} words and the tokenizer {ours}: set config.task.tokenizer to the folder of the "
            f"vocabulary that it was trained with, such as {path}/tokenizer; of running text, --tokenizer of "
            "`smke prepare text`"
        )
    params = {name: x for name, x in load_encoder(path, tower).items() if name not in CLASSIFIER}
    if narrower:
        params = narrower_words(params, narrower)
    if "depth" in fields:
        params = kept_layers(params, keep, model["depth"], fields["depth"])
    if tower == "image":
        params = fitted(params, model, fields["image_size"])
    params = fit(shapes, params, source=path)
    layers = f", {said(keep, model['depth'], fields['depth'])}" if "depth" in fields else ""
    origin = f"{len(jax.tree.leaves(params))} tensors from {path} ({model['type']}{layers})"
    expects = vocabulary_of(path) if tower == "text" else {}
    return Start(params, {"": origin}, {"weights": digests(path)["weights"], **_source(path)}, expects=expects)


def vocabulary_of(path) -> dict[str, str]:
    """What a run has to read text with that begins from `path`, where a vocabulary lies beside its weights."""
    folder = Path(path) / TOKENIZER
    return {"tokenizer": load_vocabulary(folder).digest} if folder.is_dir() else {}


def _source(path) -> dict[str, str]:
    return {what: digest for what, digest in digests(path).items() if what != "weights"}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'field is 1 there and 2 here' of the fields that both have and that have to agree."""
    both = [key for key in theirs if key in ours and key not in MAY_DIFFER and not isinstance(ours[key], Mapping)]
    return [f"{prefix}{k} is {theirs[k]!r} there and {ours[k]!r} here" for k in both if theirs[k] != ours[k]]


def started(params: Any, start: Start | None) -> Any:
    """`params` (arrays on devices) with what `start` has in its place, laid out as before."""
    return params if start is None else _replaced(params, start.params)


def _replaced(old, new):
    if isinstance(new, Mapping):
        return {**old, **{name: _replaced(old[name], x) for name, x in new.items() if name in old}}
    return jax.device_put(jnp.asarray(np.asarray(new), old.dtype), old.sharding)


def describe_origins(name: str, params: Any, start: Start | None) -> list[str]:
    """One line for each part of the parameters of the network `name`: the file it starts from, or that it is random.

    A network that starts from one file as a whole gets one line.
    """
    origins = start.origins if start else {}
    if set(origins) == {""}:
        return [f"{name}: {origins['']}"]
    return [
        f"{name}/{part}: {origins.get(part, origins.get('', RANDOM))}"
        for part in params
        if jax.tree.leaves(params[part])
    ]


def together(found: Mapping[str, Start]) -> Start:
    """The starts of several parts of a network, by the names of these parts among its parameters, as one."""
    return Start(
        {name: part.params for name, part in found.items()},
        {name: part.origins[""] for name, part in found.items()},
        {f"{name} {what}": digest for name, part in found.items() for what, digest in part.digests.items()},
        {term: scales for part in found.values() for term, scales in part.terms.items()},
        {what: digest for part in found.values() for what, digest in part.expects.items()},
        made_by={array: fields for part in found.values() for array, fields in part.made_by.items()},
    )


def lost_temperatures(name: str, terms: Any, start: Start | None) -> list[str]:
    """One line for each term whose learned temperature came along with the network `name` and finds no place.

    terms: {term: its parameters} of the run
    """
    of_run = {term: set(own.get("logit_scale", ())) for term, own in terms.items()}
    came = {term: own["logit_scale"] for term, own in (start.terms if start else {}).items() if "logit_scale" in own}
    return [
        f"{name}: its learned temperature of {term!r} ({', '.join(levels)}) is of no term here, and is left out"
        for term, levels in came.items()
        if not of_run.get(term, set()) & set(levels)
    ]
