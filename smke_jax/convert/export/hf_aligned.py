"""A model of type 'aligned' as a directory for PyTorch: frozen towers, a text tower and projections."""

import shutil
from pathlib import Path

from smke_jax.convert.export import clients, pytorch
from smke_jax.convert.export.base import Batch, Network
from smke_jax.convert.layouts.aligned import MODEL_TYPE, RULES, aligned_rules
from smke_jax.convert.rules import state_of
from smke_jax.convert.temperatures import as_lists
from smke_jax.errors import UserError
from smke_jax.models.clip import ClipTextTower
from smke_jax.models.efficientnet import EfficientNetLite
from smke_jax.models.fields import defaults_of
from smke_jax.models.text import TextEncoder
from smke_jax.models.vit import Vit
from smke_jax.passes.aligned import modalities
from smke_jax.passes.base import MEAN, STD

MODELING = "modeling_aligned.py"
SOURCE = pytorch.SOURCE.parent / MODELING
USAGE = """
With PyTorch, safetensors, Pillow and tokenizers, in this directory; the two Python files are its own and short:

""" + pytorch.example("modeling_aligned", "AlignedModel") + clients.usage(
    "transformers has no processor of its own for this\nmodel: without `trust_remote_code` it is refused."
)  # fmt: skip
MODULES = {"efficientnet_lite": EfficientNetLite, "vit": Vit, "bert": TextEncoder, "clip_text": ClipTextTower}
# Forms of a network that the PyTorch file always has: {type: {field: value}}.
ALWAYS = {"bert": {"norm_order": "post"}}


def write_aligned(directory: Path, network: Network, dtype: str) -> None:
    """Weights, config.json, the tokenizer, the two PyTorch files and what clients look for."""
    description = _complete(network.description)
    _refuse_other_forms(description)
    width = _width(description)
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["AlignedModel"],
        "auto_map": clients.auto_map("modeling_aligned", "AlignedModel", "AlignedConfig"),
        "dtype": dtype,
        "networks": description["networks"],
        **{key: description[key] for key in ("level", "max_length", "vocab_size")},
        # under the names by which others look for them
        "projection_dim": width,
        "hidden_size": width,
        "max_position_embeddings": description["max_length"],
        "logit_scale": pytorch.logit_scale(description),
        "logit_scales": as_lists(description["logit_scales"]),
    }
    pytorch.write_json(directory / "config.json", config)
    state = state_of(aligned_rules(description), network.params, "aligned", dtype=dtype)
    pytorch.write_weights(directory, state)
    for source in (SOURCE, pytorch.SOURCE):
        shutil.copyfile(source, directory / source.name)
    pytorch.write_tokenizer(directory, network)
    _write_preprocessing(directory, description)
    clients.write(directory)


def _projections(description: dict) -> dict:
    (found,) = (own for own in description["networks"].values() if own["type"] == "projections")
    return found


def _width(description: dict) -> int:
    """Of what retrieval compares."""
    own, level = _projections(description), description["level"]
    return {"out": lambda: own["width"], "fc1": lambda: own["shared"]["mlp_dim"], "head": lambda: own["head"]}[level]()


def _write_preprocessing(directory: Path, description: dict) -> None:
    """preprocessor_config.json: what each image tower sees, in the order in which the projections read them."""
    networks = description["networks"]
    makers = {f"{own['makes']}/feature": own for own in networks.values() if "makes" in own}
    towers = [makers[feature] for feature in _projections(description)["image"]]
    preprocessor = {
        "image_processor_type": "AlignedImageProcessor",
        "auto_map": {"AutoImageProcessor": "modeling_aligned.AlignedImageProcessor"},
        "views": [{"size": own["image_size"], "mean": own["mean"], "std": own["std"]} for own in towers],
    }
    pytorch.write_json(directory / "preprocessor_config.json", preprocessor)


def embed_aligned(directory: Path, batch: Batch):
    """What the files in `directory` make of `batch`."""
    modeling = pytorch.import_modeling(directory / MODELING, beside=(pytorch.MODELING,))
    return pytorch.embed(modeling.AlignedModel.from_directory(directory), batch)


def _complete(description: dict) -> dict:
    """`description` with the fields that its networks have by default."""
    networks = {name: _with_defaults(own) for name, own in description["networks"].items()}
    return {**description, "networks": networks}


def _with_defaults(own: dict) -> dict:
    module = MODULES.get(own["type"])
    usual = {} if module is None else defaults_of(module)
    plain = {key: x for key, x in usual.items() if x is None or isinstance(x, bool | int | float | str)}
    pixels = {"mean": MEAN, "std": STD} if "image_size" in own else {}
    return {**plain, **pixels, **own}


def _refuse_other_forms(description: dict) -> None:
    if len(found := modalities(description)) == 1:
        raise UserError(f"this run projects {found[0]} alone, and --format=hf is for models of both: use --format=flax")
    for name, own in description["networks"].items():
        kind = own["type"]
        if kind not in RULES:
            raise UserError(f"the network {name!r} is a {kind}, and in PyTorch there are {', '.join(RULES)}: use "
                            "--format=flax")  # fmt: skip
        shared = own.get("shared") or {}
        known = {**ALWAYS.get(kind, {}), "shared.type": "transformer", "shared.depth": 1}
        for field, value in known.items():
            part = shared if field.startswith("shared.") else own
            found = part.get(field.removeprefix("shared."), value)
            if found != value:
                raise UserError(f"{field} of {name!r} is {found!r}, and in PyTorch always {value!r}: use --format=flax")
