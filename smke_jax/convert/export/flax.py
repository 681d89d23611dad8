"""Parameters as they are here: for other JAX code, `smke_jax.load`, and configs that name a file of weights."""

from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from smke_jax.convert.export import DTYPES, INT8, check
from smke_jax.convert.export.base import Batch, Format, Network
from smke_jax.convert.int8 import quantised
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, read_description, save_params
from smke_jax.models.towers import TEXT_TOWERS

FUSED_USAGE = """
`params.safetensors` holds the parameters under their paths in the Flax tree (`a/b/c`), and a description of the model
in its metadata.  Its towers embed images and captions apart:

```python
import smke_jax

model = smke_jax.load("DIR")
embeddings = model.encode_images(["photo.jpg"])
```

Another run begins with it where its config names the directory as the `start` of a `fused_towers`.  The fusion encoder
is run there, and by `smke evaluate` of the run that this comes from, as its evaluator `rerank`.
"""

USAGE = """
`params.safetensors` holds the parameters under their paths in the Flax tree (`a/b/c`), and a description of the model
in its metadata.  A student, or an image encoder, is opened so:

```python
import smke_jax

model = smke_jax.load("DIR")
embeddings = model.encode_images(["photo.jpg"])
```

Another run begins with it where its config names the directory: of a student as the `start` of a `two_towers`, of an
image encoder as the `start` of a `frozen` teacher or the `image_start` of a `two_towers`, of a quantizer as the `start`
of a `quantizer`.
"""

TEXT_USAGE = """
`params.safetensors` holds the parameters under their paths in the Flax tree (`a/b/c`), and a description of the model
in its metadata; `tokenizer` holds the vocabulary.

Another run begins with it where its config names the directory, as the `start` of a `text_tower` or a `layered_text`,
or as the `text_start` of a `two_towers`.
"""


def _write(directory: Path, network: Network, dtype: str) -> None:
    if dtype == INT8:
        params = unflatten_dict(quantised(flatten_dict(network.params, sep="/")), sep="/")
    else:
        params = jax.tree.map(lambda x: x.astype(dtype), network.params)
    record = network.record
    source = {
        "steps": record.step,
        "command": record.run["command"],
        "data": record.run["identity"]["data"],
        "identity": record.run["identity"],
        "config": record.run["config"],
    }
    save_params(directory / PARAMS, params, {"model": network.description, "source": source})
    if network.tokenizer is not None:
        network.tokenizer.save(directory / TOKENIZER, network.description.get("max_length"))


def _embed(directory: Path, batch: Batch):
    return check.embed(read_description(directory)["model"], load_params(directory), batch)


FORMAT = Format(
    _write,
    _embed,
    {"": USAGE, "fused_towers": FUSED_USAGE, **dict.fromkeys(TEXT_TOWERS, TEXT_USAGE)},
    types=(),
    dtypes=DTYPES,
)
