"""Parameters as they are here: for other JAX code, `smke_jax.load`, and configs that name a file of weights."""

from pathlib import Path

import jax

from smke_jax.convert.export import check
from smke_jax.convert.export.base import DTYPES, Batch, Format, Network
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, read_description, save_params

USAGE = """
`params.safetensors` holds the parameters under their paths in the Flax tree (`a/b/c`), and a description of the model
in its metadata.

```python
import smke_jax

model = smke_jax.load("DIR")
embeddings = model.encode_images(["photo.jpg"])
```

Of an image encoder, the directory can be `config.teacher.checkpoint` or `config.student.image.init` of another run.
"""


def _write(directory: Path, network: Network, dtype: str) -> None:
    params = jax.tree.map(lambda x: x.astype(DTYPES[dtype]), network.params)
    record = network.record
    source = {
        "steps": record.step,
        "command": record.run["command"],
        "data": record.run["identity"]["data"],
        "config": record.run["config"],
    }
    save_params(directory / PARAMS, params, {"model": network.description, "source": source})
    if network.tokenizer is not None:
        network.tokenizer.save(directory / TOKENIZER)


def _embed(directory: Path, batch: Batch):
    return check.embed(read_description(directory)["model"], load_params(directory), batch)


FLAX = Format("parameters for JAX", _write, _embed, USAGE, encoders=True)
