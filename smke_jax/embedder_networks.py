"""The networks of an embedder: parameters that are read when they are needed, and programs that files keep."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.rules import Stored
from smke_jax.embedder_kinds import NETWORK
from smke_jax.parallel import kept_programs
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.paths import flat, nested

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr

    from smke_jax.passes.base import Pass

# Where the source lies that decides about a program: see `kept_programs.code_digest`.
CODE = ("models", "passes", "activations.py", "embedder_networks.py", "embedder_passes.py")


class Networks:
    """The networks of the model of `description`, and what they make of the arrays of a batch.

    A parameter is read, and a program is compiled or taken from its file, when it is first needed.

    Attributes:
      mesh: all devices of this machine.
    """

    def __init__(self, description: dict, params: Any):
        """`params`: the nested dict of arrays, or of what `Stored` leaves in its file, that `description` describes."""
        self._description, self.mesh = description, make_mesh()
        self._stored = flat(params if description["type"] == "aligned" else {NETWORK: params})
        self._placed: set[str] = set()  # paths of those that are on the devices
        self._of_modality: dict[str, Any] = {}
        self._compiled: dict[tuple, Callable] = {}

    @property
    def params(self) -> Any:
        """All parameters, {network: nested dict}, on the devices."""
        return nested(dict(self.parameters()))

    def parameters(self) -> Iterator[tuple[str, jax.Array]]:
        """(path, parameter on the devices) of all, in the order of their paths."""
        return ((path, self._parameter(path)) for path in sorted(self._stored))

    def program(self, modality: str) -> tuple[Any, Callable]:
        """(parameters, jitted (parameters, arrays) -> (N, D), not normalised) of 'image' or 'text'."""
        return self._params(modality), self._programs[modality]

    def embed(self, modality: str, arrays: dict[str, np.ndarray]) -> jax.Array:
        """The arrays of a batch -> (N, D), not normalised."""
        if self.mesh.size > 1:
            return self._programs[modality](self._params(modality), put_batch(arrays, self.mesh))
        # The precision may be that of a `with` around the call, and JAX does not ask for it again of what is compiled.
        precision = jax.config.jax_default_matmul_precision
        key = modality, precision, *((name, x.shape, x.dtype.name) for name, x in sorted(arrays.items()))
        if key not in self._compiled:
            self._compiled[key] = self._kept(modality, arrays, repr(key))
        return self._compiled[key](arrays)

    def embedding(self, modality: str, params: Any, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """Parameters by network and the arrays of a batch -> (N, D), not normalised."""
        passes, name = self._passes[modality]
        arrays = dict(arrays)
        for p in passes:
            arrays |= p.run(params, {need: arrays[need] for need in p.needs}, None, False)
        return arrays[name]

    def _kept(self, modality: str, arrays: Mapping[str, np.ndarray], key: str) -> Callable:
        """The compiled program for such arrays, from its file or made anew, with the parameters that it reads."""
        code = kept_programs.code_digest(*CODE)
        if code is None or kept_programs.folder() is None:
            params, run = self._params(modality), self._programs[modality]
            return lambda arrays: run(params, arrays)
        shapes = {path: (x.shape, x.dtype.name) for path, x in sorted(self._stored.items())}
        name = kept_programs.fingerprint(code, json.dumps([self._description, shapes], default=repr), key)
        kept = kept_programs.read(modality, name)
        if kept is not None:
            params = [self._parameter(path) for path in kept.facts["reads"]]
            try:
                run = kept_programs.load(kept.program, (params, arrays), 0)
                return lambda arrays: run(params, arrays)
            except Exception as error:  # of what JAX cannot read may be any
                kept_programs.refused(modality, name, str(error))
        reads, function = self._of_its_parameters(modality, arrays)
        params = [self._parameter(path) for path in reads]
        made, program = kept_programs.compiled(jax.jit(function).lower(params, arrays))
        if program and kept_programs.code_digest(*CODE) == code:  # what was imported meanwhile is of that source, too
            kept_programs.write(modality, name, {"reads": reads}, program)
        return lambda arrays: made(params, arrays)

    def _of_its_parameters(self, modality: str, arrays: Mapping[str, np.ndarray]) -> tuple[list[str], Callable]:
        """(paths of the parameters that decide about the embedding, (list of these, arrays) -> (N, D))."""
        from jax.extend.core import jaxpr_as_fun  # imports Pallas, which takes longer than a kept program

        shapes = nested({path: self._stored[path] for path in self._paths(modality)})
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
        traced = self._programs[modality].trace(shapes, arrays).jaxpr
        paths = ["/".join(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        needed = _needed(traced)
        reads = [path for path, variable in zip(paths, traced.jaxpr.invars, strict=False) if id(variable) in needed]

        def function(params, arrays):
            given = dict(zip(reads, params, strict=True))
            every = [given[path] if path in given else jnp.zeros(x.shape, x.dtype) for path, x in flat_shapes]
            (x,) = jaxpr_as_fun(traced)(*every, *jax.tree.leaves(arrays))
            return x

        flat_shapes = list(zip(paths, jax.tree.leaves(shapes), strict=True))
        return reads, function

    def _params(self, modality: str) -> Any:
        """Those of the networks that `modality` needs: to pass the others takes a call longer."""
        if modality not in self._of_modality:
            self._of_modality[modality] = nested({path: self._parameter(path) for path in self._paths(modality)})
        return self._of_modality[modality]

    def _paths(self, modality: str) -> list[str]:
        networks = {name for p in self._passes[modality][0] for name in p.networks}
        return [path for path in self._stored if path.partition("/")[0] in networks]

    def _parameter(self, path: str) -> jax.Array:
        """The parameter on the devices, which reads it where it still lies in its file."""
        x = self._stored[path]
        if path not in self._placed:
            x = jax.device_put(x.read() if isinstance(x, Stored) else x, replicated(self.mesh))
            self._stored[path] = x
            self._placed.add(path)
        return x

    @functools.cached_property
    def _passes(self) -> "Mapping[str, tuple[tuple[Pass, ...], str]]":
        """{'image' or 'text': (passes that read it, the embedding that they make)}."""
        from smke_jax.embedder_passes import passes_of  # imports Flax, which takes longer than a kept program

        return passes_of(self._description)

    @functools.cached_property
    def _programs(self) -> dict[str, Callable]:
        """{modality: (parameters, arrays) -> (N, D)}, each compiled for every size of batch."""
        return {
            modality: jax.jit(functools.partial(self.embedding, modality), out_shardings=replicated(self.mesh))
            for modality in self._passes
        }


def _needed(traced: "ClosedJaxpr") -> set[int]:
    """The ids of the variables of a traced function without side effects that decide about its results."""
    needed = {id(x) for x in traced.jaxpr.outvars}
    for equation in reversed(traced.jaxpr.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= {id(x) for x in equation.invars}
    return needed
