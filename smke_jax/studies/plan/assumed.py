"""A config as it can be planned: without data, weights or a vocabulary, and what was assumed in their place."""

from pathlib import Path

from ml_collections import ConfigDict

from smke_jax.convert.params_file import params_path
from smke_jax.data.clip_tokenizer import load_vocabulary
from smke_jax.errors import UserError
from smke_jax.networks.start import RANDOM
from smke_jax.training.build import Experiment, build_experiment, resolve

CORPUS = 1024  # rows of what selections search, where the number of images is not known


def planned(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """(`config` resolved, what was assumed of files that are not there).

    Raises UserError where a missing file alone would say what a network is.
    """
    config, assumed = resolve(config), []
    for name, part in config.networks.items():
        path = part.get("start", RANDOM)
        if "model" not in part or path == RANDOM or params_path(path).is_file():
            continue  # without `model` the sizes do not depend on the file
        if part.model is None:
            raise UserError(f"config.networks.{name}: no weights at {path}, which would say what its model is")
        assumed.append(f"no weights at {path!r}: config.networks.{name} is what its model says")
        part.start = RANDOM
    if any(part.type == "corpus" for part in config.assets.values()):
        assumed.append(f"what is searched has a row for every image, at least {CORPUS}: of captions there are more")
    if "vocab_size" in config.task:
        given = config.task.get("tokenizer", "")  # the vocabulary of running text lies in its folder
        if given and Path(given).is_dir():
            config.task.vocab_size = load_vocabulary(given).vocab_size
        else:
            assumed.append(f"no tokenizer: the vocabulary has config.task.vocab_size = {config.task.vocab_size} tokens")
    return config, assumed


def shapes_only(config: ConfigDict, images: int = 0) -> Experiment:
    """The records of `config` (as from `planned`), with nothing opened.

    images: of the data set, for terms that keep something of each
    """
    return build_experiment(config, None, {"num_images": images})
