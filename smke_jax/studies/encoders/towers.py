"""Which encoders are compared: the run's own, those in the files that it began with, and one of random weights."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.errors import UserError
from smke_jax.evaluators.encode import Encoder
from smke_jax.networks.base import Network
from smke_jax.networks.encoders import describe_encoder
from smke_jax.networks.start import RANDOM
from smke_jax.training.restore import TrainedRun, exported

OWN = "the run's own"
# {side: fields of networks that name a file with an encoder of that side, and which networks have them}
STARTS = {
    "image": {
        "image_start": ("two_towers", "fused_towers"),
        "start": ("two_towers", "frozen", "classifier", "layered_image", "image_tower", "masked_image_tower"),
    },
    "text": {
        "text_start": ("two_towers", "fused_towers"),
        "start": ("two_towers", "text_tower", "text_classifier", "layered_text"),
    },
}


class Tower(NamedTuple):
    """An encoder of one side in a file.

    name:    for people
    path:    what `smke convert` or `smke export` wrote
    scratch: the file says what model it is, and the weights are drawn at random
    depth:   how many of its first layers; None is all of them
    """

    name: str
    path: str
    scratch: bool = False
    depth: int | None = None


@contextmanager
def towers_of(run: TrainedRun, side: str) -> Iterator[list[Tower]]:
    """The encoders of `side`, 'image' or 'text', that belong to `run`; its own one lies in a file for so long.

    A file with more layers than the run's own encoder comes twice: cut to as many, and whole.
    Raises UserError for a run of which nothing can be exported.
    """
    params, description = exported(run)
    with tempfile.TemporaryDirectory(prefix="smke_") as folder:
        save_params(Path(folder) / PARAMS, jax.device_get(params), {"model": description})
        own, towers = _depth(folder, side), [Tower(OWN, folder)]
        for start in starts_of(run.config, side):
            if own is not None and (_depth(start, side) or 0) > own:
                towers.append(Tower(f"{start}, its first {own} layers", start, depth=own))
            towers.append(Tower(f"{start}, with which the run began", start))
        yield [*towers, Tower("random weights", folder, scratch=True)]


def encoder_of(run: TrainedRun, network: Network, name: str) -> Encoder:
    """Runs `network`, called `name`, with what it begins with, on the devices of `run`."""

    def drawn(key):
        return network.init(key, {})

    key = jax.random.key(0)
    start = network.start(jax.eval_shape(drawn, key))
    params = jax.jit(drawn)(key) if start is None else start.params
    passes = network.forward(name, {})
    return Encoder(
        lambda names, columns: passes, lambda p: {name: params}, run.experiment.mesh,
        batch_size=run.config["eval_batch_size"], threads=run.experiment.task.threads,
        attention=run.config["attention"],
    )  # fmt: skip


def _depth(path: str, side: str) -> int | None:
    """Layers of the encoder in a file; None where it is not there, or of a family without such a number."""
    try:
        return describe_encoder(path, side).get("depth")
    except UserError:  # what reads the file next says so
        return None


def starts_of(config: Mapping[str, Any], side: str) -> list[str]:
    """The files that the networks of a config begin with, of encoders of `side`, each once.

    Of a network with scratch=True the file only says what model it is.
    """
    found = (
        network.get(field)
        for network in config["networks"].values()
        for field, kinds in STARTS[side].items()
        if network["type"] in kinds and not network.get("scratch")
    )
    return list(dict.fromkeys(path for path in found if path and path != RANDOM))
