"""Experiments of many configs, in which what equal networks make of equal arrays of a task is traced once."""

import json

import jax
import jax.numpy as jnp
import pytest

from smke_jax.passes.base import Pass
from smke_jax.training import build
from smke_jax.training.recipe import shapes_of
from smke_jax.training.record import flatten

KNOWN = {}  # {what a function is and gets: the shapes that it returned}


def experiment_of(config, known):
    """`build_experiment` of a resolved config with `known` facts.  Its shapes are those of all that its passes make."""

    def once(what, networks, function):
        """`function`, with zeros in place of what it has returned for arguments, networks and a task like these."""
        own = json.dumps([what, known, flatten(config.task), *(flatten(config.networks[name]) for name in networks)])

        def run(*arguments):
            leaves, structure = jax.tree.flatten(arguments)
            key = own, structure, str([getattr(x, "aval", x) for x in leaves])
            if key not in KNOWN:
                KNOWN[key] = jax.eval_shape(lambda: function(*arguments))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), KNOWN[key])

        return run

    def shapes(recipe, batch, forward):
        networks = {name: x._replace(init=x.init and once(name, [name], x.init))
                    for name, x in recipe.networks.items()}  # fmt: skip
        whole, items = {p.name: p for p in recipe.passes}, []
        for item in forward:
            if isinstance(item, Pass):
                item = whole.get(item.name, item)
                own = {item.name.partition("/")[0], *item.networks}  # a pass is named after its network
                own |= {recipe.networks[name].average.of for name in own if recipe.networks[name].average}
                item = item._replace(run=once([item.name, item.provides], sorted(own), item.run))
            items.append(item)
        return shapes_of(recipe._replace(networks=networks), batch, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "shapes_of", shapes)
        return build.build_experiment(config, None, known)
