"""The student as a PyTorch module, from the file that is copied into exports, and what goes with it."""

import hashlib
import importlib.util
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from smke_jax import atomic
from smke_jax.convert.export.base import Batch, Network
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch
from smke_jax.convert.temperatures import as_lists
from smke_jax.errors import UserError
from smke_jax.passes.base import statistics_of

MODELING = "modeling_smke.py"
WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"
SOURCE = Path(__file__).parents[1] / MODELING
ORIENTATION = 0x0112  # the tag of it in EXIF
# What the PyTorch file wants to know of each part, by its type.
TOWER = ("width", "depth", "num_heads", "mlp_dim", "norm_eps", "activation")
PATCHES = ("type", "image_size", "patch_size", *TOWER)
FIELDS = {
    "image": {
        "data2vec2": (*PATCHES, "norm_order"), "vit": (*PATCHES, "layer_scale", "patch_bias", "norm_embeddings"),
    },
    "text": {"bert": ("max_positions", *TOWER, "norm_order")},
    "shared": {"transformer": ("num_heads", "mlp_dim", "norm_eps", "activation", "layer_scale")},
}  # fmt: skip


EXAMPLE = """```python
import PIL.Image
import tokenizers
import torch

from MODULE import MODEL

model = MODEL.from_directory(".")
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
encoding = tokenizer.encode("a dog runs across the grass")
with torch.inference_mode():
    image = model(model.preprocess([PIL.Image.open("photo.jpg")]))["image_embeds"]
    text = model(input_ids=torch.tensor([encoding.ids]))["text_embeds"]
print(image @ text.T)
```
"""


def example(module: str, model: str) -> str:
    """Markdown of how the class `model` in an export's file `module` embeds a photo and a sentence."""
    return EXAMPLE.replace("MODULE", module).replace("MODEL", model)


def smke_config(description: dict) -> dict:
    """The fields of SmkeConfig for a student's description; UserError for one that the PyTorch file cannot build."""
    _refuse_other_forms(description)
    parts = {part: {key: description[part][key] for key in kinds[_type(description, part)]}
             for part, kinds in FIELDS.items()}  # fmt: skip
    parts["text"]["type_vocab_size"] = description["text"].get("type_vocab_size", 2)
    parts["text"]["max_length"] = description["max_length"]  # transformers has another meaning for it at the top
    whole = {key: description[key] for key in ("vocab_size", "target_dim", "token_types", "level")}
    whole |= {name: list(x) for name, x in statistics_of(description).items()}
    whole["width"] = description.get("width") or description["image"]["width"]
    width = {"fc1": description["shared"]["mlp_dim"], "out": whole["width"]}
    width = width.get(description["level"], description["target_dim"])
    named = {  # under the names by which others look for them
        "projection_dim": width,
        "hidden_size": width,
        "max_position_embeddings": description["max_length"],
        "logit_scale": logit_scale(description),
    }
    scales = {"logit_scales": as_lists(description["logit_scales"])}
    return {**whole, **named, **scales, "norm_eps": 1e-6, **parts}


def logit_scale(description: dict) -> float:
    """The logarithm of the scale that training found for what retrieval compares; ln(1/0.07), CLIP's start, if none."""
    scales, level = description["logit_scales"], description["level"]
    found = [scales[term][level] for term in ("itc", *scales) if level in scales.get(term, ())]
    return float(found[0]) if found else math.log(1 / 0.07)


def _refuse_other_forms(description: dict) -> None:
    shared, types = description["shared"], description["token_types"]
    for part, kinds in FIELDS.items():
        if (kind := _type(description, part)) not in kinds:
            raise UserError(
                f"the student's {part} is a {kind!r}, and in PyTorch there are {', '.join(kinds)}: use --format=flax"
            )
    forms = {
        "shared.depth": (shared.get("depth", 1), 1),
        "token_types_at": (description.get("token_types_at", "after") if types else "after", "after"),
    }
    if types and description.get("token_type_scale", 0) is None:
        forms["token_type_scale"] = (None, "a number")
    for key, (value, known) in forms.items():
        if value != known:
            raise UserError(f"the student's {key} is {value!r}, and in PyTorch always {known}: use --format=flax")


def _type(description: dict, part: str) -> str:
    usual = {"image": "data2vec2", "text": "bert", "shared": "transformer"}
    return description[part].get("type", usual[part])


def require(package: str, extra: str) -> ModuleType:
    """That package, imported.  Raises UserError naming the extra that brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UserError(f"this format needs {package}: pip install 'smke_jax[{extra}]'") from None


def import_modeling(path: Path = SOURCE, *, beside: tuple[str, ...] = ()) -> ModuleType:
    """The module in that file.  `beside`: files in its folder that it imports."""
    require("torch", "torch")
    others = {Path(name).stem: import_modeling(path.parent / name) for name in beside}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before = {name: sys.modules.get(name) for name in others}
    sys.modules.update(others)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, other in before.items():
            sys.modules.pop(name) if other is None else sys.modules.update({name: other})
    return module


def tensor(x: np.ndarray):
    """A torch.Tensor with the same bits, bfloat16 included."""
    import torch

    if x.dtype.name == "bfloat16":  # which torch does not take from NumPy
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def build(params: Any, description: dict, dtype: str = "float32"):
    """A student's SmkeModel with `params`, for inference."""
    import torch

    modeling = import_modeling()
    model = modeling.SmkeModel(modeling.SmkeConfig(**smke_config(description)))
    state = to_torch(SMKE_HF, params, description)
    model.load_state_dict({name: tensor(x) for name, x in state.items()})
    return model.to(getattr(torch, dtype)).eval()


def embed(model, batch: Batch) -> dict[str, np.ndarray]:
    """'{image,text}/{fc1,out,head}' (N, D) of a SmkeModel, and '{image,text}_embeds' of its call.

    It gets the images as files, since decoding is its own.
    """
    import torch

    with torch.inference_mode():
        pixels = model.preprocess(as_files(batch["image"]))
        ids, mask = torch.tensor(batch["text"]), torch.tensor(batch["text_mask"])
        encoded = {"image": model.encode_image(pixels), "text": model.encode_text(ids, mask)}
        outputs = model(pixels, ids, mask)
        embeds = {name: outputs[name] for name in ("image_embeds", "text_embeds")}
        reps = {f"{modality}/{level}": x for modality, levels in encoded.items() for level, x in levels.items()}
        return {name: x.numpy() for name, x in {**reps, **embeds}.items()}


def as_files(images: Sequence[np.ndarray]) -> list[Image.Image]:
    """uint8 images (H, W, 3) -> the same pictures, opened from files of two kinds that people have.

    In turn: on its side, with a camera's note of that; with black behind full transparency in place of its white.
    """
    return [(_on_its_side, _transparent)[number % 2](image) for number, image in enumerate(images)]


def _on_its_side(image: np.ndarray) -> Image.Image:
    note = Image.Exif()
    note[ORIENTATION] = 6  # to be turned by 90° clockwise
    return _reopened(np.rot90(image), exif=note)


def _transparent(image: np.ndarray) -> Image.Image:
    white = (image == 255).all(axis=2, keepdims=True)
    return _reopened(np.concatenate([np.where(white, 0, image), np.where(white, 0, 255)], axis=2).astype(np.uint8))


def _reopened(pixels: np.ndarray, **options: Any) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", **options)
    return Image.open(file)


def write_preprocessing(directory: Path, network: Network) -> None:
    """The tokenizer's files and preprocessor_config.json, as transformers reads them."""
    write_tokenizer(directory, network)
    size = network.description["image"]["image_size"]
    # The whole picture squashed to a square, bicubic: what the student is evaluated with.
    preprocessor = {
        # The class in the export has all rules of decoding; without trust_remote_code the other one does the rest.
        "image_processor_type": "ViTImageProcessor",
        "auto_map": {"AutoImageProcessor": "modeling_smke.SmkeImageProcessor"},
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **{f"image_{name}": x for name, x in statistics_of(network.description).items()},
    }
    write_json(directory / "preprocessor_config.json", preprocessor)


def write_tokenizer(directory: Path, network: Network) -> None:
    """The tokenizer's files, as transformers reads them."""
    network.tokenizer.save(directory, network.description["max_length"])


def write_weights(directory: Path, state: dict[str, np.ndarray]) -> None:
    """The weights, and a checksum as `sha256sum` writes it: safetensors takes a flipped byte for a weight."""
    # Not save_file: it hides the system's reason for a failure and makes the file unreadable for others.
    content = safetensors.numpy.save(state, metadata={"format": "pt"})
    atomic.write_bytes(directory / WEIGHTS, content)
    atomic.write_text(directory / SUMS, f"{hashlib.sha256(content).hexdigest()}  {WEIGHTS}\n")


def write_json(path: Path, content: dict) -> None:
    """`content`, indented, with a last newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
