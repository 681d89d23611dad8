"""What a network is: a record that owns parameters, which passes borrow."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from smke_jax.errors import UserError

Params = Any
Specs = Mapping[str, jax.ShapeDtypeStruct]  # arrays by name, each with examples along its first axis


class Average(NamedTuple):
    """The parameters are a moving average of another network's: decay · average + (1 - decay) · parameters.

    The average moves first in every step, from the parameters before their update (MoCo, He et al. 2020, eq. 2).
    """

    of: str
    decay: float


class Start(NamedTuple):
    """Parameters that a network begins with, read from files.

    params:   a sub-tree of the network's parameters, arrays, already cut to fit
    origins:  {path of a sub-tree: a line that says where it comes from}
    digests:  {what: digest of the file}; a run records them
    terms:    {term: parameters} that come along, such as temperatures
    expects:  {what: digest} that the identity of the run has to hold: what the file was made with
    expects_of: {array: {what: digest}}, the same of the network of the run that makes the array, whatever its name
    made_by:  {array: {field: value}}: how the array was made when the file was trained.  The network of the run that
              makes the array has to have the same values, as far as it has such fields
    """

    params: Params
    origins: Mapping[str, str]
    digests: Mapping[str, str]
    terms: Mapping[str, Params] = {}
    expects: Mapping[str, str] = {}
    expects_of: Mapping[str, Mapping[str, str]] = {}
    made_by: Mapping[str, Mapping[str, Any]] = {}


class Network(NamedTuple):
    """A network owns parameters; passes borrow them by the network's name.

    init:        (key, specs) -> parameters; `specs` of the arrays that its passes read, as far as passes before its
                 first one make them.  None for an average
    forward:     (name, specs) -> the passes that run it where the config names none; `specs` of a training batch.
                 None for an average, which runs the passes of the network that it follows
    start:       (parameters as shapes) -> what it begins with, or None where it begins at random
    trained:     False: the parameters are an argument of the step and are never saved.  Regexes: only the leaves in
                 whose path ('block_0/mlp/fc1/kernel') one of them is found are trained
    first_layer: prefixes of the paths of parameters that embed the input, besides those whose names say so; the
                 learning rate of what embeds is the lowest where it decays from layer to layer
    average:     of which network it is the moving average
    sizes:       {array of a batch: pixels per side} that its passes read; the task makes its views of this size
    export:      (parameters, {term: slots}) -> (parameters, description) of what `smke export` writes; None where the
                 network is of no use by itself
    export_reads: the terms whose slots `export` needs
    export_with: arrays that other networks make, without which it is of no use: these networks come along in its export
    facts:       {name: number} that terms may ask for, such as 'num_codes'
    alike:       {(what networks compare, field): value} that all networks of a run which say it have to agree on
    described:   what a file said of the network, as JSON; a run records it, and the builder gets it back when the run
                 is opened again
    """

    init: Callable[[jax.Array, Specs], Params] | None
    forward: Callable[[str, Specs], tuple[Any, ...]] | None
    start: Callable[[Params], Start | None] = lambda shapes: None
    trained: bool | tuple[str, ...] = True
    first_layer: tuple[str, ...] = ()
    average: Average | None = None
    sizes: Mapping[str, int] = {}
    export: Callable[[Params, Mapping[str, Any]], tuple[Params, dict]] | None = None
    export_reads: tuple[str, ...] = ()
    export_with: tuple[str, ...] = ()
    facts: Mapping[str, int] = {}
    alike: Mapping[tuple[str, str], Any] = {}
    described: Mapping[str, Any] = {}


def check_alike(networks: Mapping[str, Network]) -> None:
    """Raises UserError for networks of which one would learn what the other does not say."""
    first: dict[tuple[str, str], tuple[str, Any]] = {}
    for name, network in networks.items():
        for (what, field), value in network.alike.items():
            other, theirs = first.setdefault((what, field), (name, value))
            if theirs != value:
                raise UserError(
                    f"config.networks.{name}.{field} is {value!r} and config.networks.{other}.{field} {theirs!r}: "
                    f"both make {what} that are compared, so set them alike"
                )
