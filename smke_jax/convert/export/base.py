"""What is exported, and what a format of exports is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smke_jax.convert.export import FLOATS
from smke_jax.data.tokenizer import Tokenizer

# 'image', a list of uint8 (H, W, 3) of any size, for an image-text model also 'text' and 'text_mask' (M, L); for a
# quantizer 'cls' (N, D).
Batch = Mapping[str, Any]


class Record(NamedTuple):
    """What a run says of itself.

    run:     its run.json
    config:  its config, nested
    step:    of the checkpoint that is exported
    figures: {evaluation: what it found at that step, as it stands in its JSON}
    hours:   that its training steps took, None where that is not known
    """

    run: dict
    config: dict
    step: int
    figures: Mapping[str, dict] = {}
    hours: float | None = None


class Network(NamedTuple):
    """A trained network.

    params:      nested dict of fp32 arrays
    description: {'type': …, fields} of its model; of an image-text model with 'level', 'max_length' and 'logit_scales',
                 which are {term: {level: log scale}}
    tokenizer:   of an image-text model
    record:      of the run it comes from
    """

    params: Any
    description: dict
    tokenizer: Tokenizer | None
    record: Record


class Format(NamedTuple):
    """One form of exports.

    write:    (directory, network, one of DTYPES) -> None; raises UserError for a network that does not fit
    embed:    (directory, batch) -> representations (N, D) by name: what `write` left there, read back and run
    usage:    for the model card, {type of the model, or '' for any other: how it is used, in Markdown}
    metadata: for the model card, the same of lines of YAML
    types:    of the models that it can hold; () is any
    dtypes:   of the weights that it can hold
    """

    write: Callable[[Path, Network, str], None]
    embed: Callable[[Path, Batch], dict[str, np.ndarray]]
    usage: Mapping[str, str]
    metadata: Mapping[str, tuple[str, ...]] = {}
    types: tuple[str, ...] = ("student",)
    dtypes: tuple[str, ...] = FLOATS
