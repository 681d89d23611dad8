"""A checkpoint in the key layout of the thesis author's PyTorch modules (spec 26.7)."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from smke_jax import atomic
from smke_jax.convert.convert import convert
from smke_jax.convert.export import pytorch
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.convert.layouts.student import THESIS
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import EXPORTED, read_source
from smke_jax.convert.temperatures import LEVELS, as_lists
from smke_jax.errors import UserError
from smke_jax.passes.base import MEAN, STD, statistics_of

# What those modules are, with no say of the file.
FIXED = {
    ("image", "norm_order"): "post",
    ("image", "activation"): "gelu",
    ("image", "norm_eps"): 1e-6,
    ("text", "norm_order"): "post",
    ("text", "activation"): "gelu",
    ("text", "norm_eps"): 1e-12,
    ("shared", "activation"): "gelu",
    ("shared", "norm_eps"): 1e-6,
}
LIGHTNING_VERSION = "2.0.0"  # whose form of checkpoints this is
HEADS = 12  # of every attention there
TARGET = math.log(1 / 0.07)  # where that temperature starts there, and stays without its loss
USAGE = """
`smke.ckpt` is a checkpoint of PyTorch Lightning in form: `state_dict` with the names of the thesis' modules
(`model.image_model.…`, `model.text_model.…`, `model.shared.…`), `hyper_parameters` with this student's sizes.

```python
checkpoint = torch.load("smke.ckpt", weights_only=True)
state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
model.load_state_dict(state, strict=True)
```

`smke convert --from=thesis --checkpoint=smke.ckpt --out=DIR` is the way back.
"""


def state_dict(params: Any, description: dict, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """{name in the thesis' checkpoints: array} of a student, exactly what `convert` reads back.

    Raises UserError naming the field that those modules have no place for.
    """
    for part, kind in (("image", "data2vec2"), ("text", "bert")):
        found = description[part].get("type", kind)
        if found != kind:
            raise UserError(
                f"the student's {part} tower is a {found!r}; the thesis' modules have a {kind}: use another --format"
            )
    if len({description.get("width") or description["image"]["width"],
            *(description[part]["width"] for part in ("image", "text"))}) > 1:  # fmt: skip
        raise UserError("the student's towers differ in width; the thesis' modules have one: use another --format")
    if statistics_of(description) != {"mean": MEAN, "std": STD}:
        raise UserError("the student's pixels have other statistics than ImageNet's, which the thesis' modules expect: "
                        "use another --format")  # fmt: skip
    for (part, field), value in FIXED.items():
        if description[part][field] != value:
            raise UserError(
                f"the student's {part}.{field} is {description[part][field]!r}; the thesis' modules have {value!r}: "
                "use another --format"
            )
    _check_heads_and_depths(description)
    if description["shared"]["layer_scale"] is None:
        raise UserError("the student's shared.layer_scale is None; the thesis' modules have one: use another --format")
    if set(description["logit_scales"].get("itc", ())) != set(LEVELS[2]):
        raise UserError(
            f"config.terms.itc.levels are not {LEVELS[2]}; the thesis' modules have a logit scale for each of these: "
            "use another --format"
        )
    temperatures = as_lists(description["logit_scales"])
    state = to_torch(THESIS, params, description, dtype=dtype)
    state |= {name: x.astype(dtype) for name, x in THESIS.constants(description).items()}
    state["logit_scales"] = np.array(temperatures["itc"], np.float32)
    whole = {f"model.{name}": x for name, x in state.items()}
    # The module has it with and without the loss.
    whole["logit_scale_target"] = np.array(temperatures.get("target_itc", [TARGET])[0], np.float32)
    return whole


def _check_heads_and_depths(description: dict) -> None:
    """Shapes do not tell the number of heads: another one would load there, and embed otherwise."""
    for part in ("image", "text", "shared"):
        heads = description[part]["num_heads"]
        if heads != HEADS and description["image"]["width"] % HEADS == 0:
            raise UserError(
                f"the student's {part}.num_heads is {heads}; the thesis' modules have {HEADS}, and would embed "
                "otherwise: use another --format"
            )
    depths = {part: description[part]["depth"] for part in ("image", "text")}
    if len(set(depths.values())) > 1:
        raise UserError(
            f"the student's towers have {depths['image']} and {depths['text']} layers; the thesis' modules have one "
            "number for both: use another --format"
        )


def _write(directory: Path, network: Network, dtype: str) -> None:
    torch = pytorch.require("torch", "torch")
    state = state_dict(network.params, network.description, dtype)
    tensors = {name: pytorch.tensor(x) for name, x in state.items()}
    file = io.BytesIO()  # to a file, a full disk would be a RuntimeError without the system's reason
    checkpoint = {
        "state_dict": tensors,
        "hyper_parameters": {"smke_jax": network.description},
        # what Lightning's load_from_checkpoint asks for
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "epoch": 0,
        "global_step": network.record.step,
    }
    torch.save(checkpoint, file)
    atomic.write_bytes(directory / EXPORTED, file.getvalue())
    network.tokenizer.save(directory, network.description["max_length"])


def _embed(directory: Path, batch: Batch):
    conversion = convert(read_source(directory / EXPORTED), THESIS.name)
    return pytorch.embed(pytorch.build(conversion.params, conversion.description), batch)


FORMAT = Format(_write, _embed, {"": USAGE})
