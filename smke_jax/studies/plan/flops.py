"""FLOPs of matrix products, counted from traced operations: what model FLOPs utilisation (MFU) is measured in.

XLA's cost analysis and `jax.experimental.roofline` count the body of a loop once; here it counts as often as it runs.
Additions and elementwise functions are left out, as MFU has it (Chowdhery et al. 2022, PaLM, appendix B).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr
from ml_collections import ConfigDict

from smke_jax.losses.collective import Scope
from smke_jax.parallel.devices import HIGH, HIGHEST
from smke_jax.passes.base import Pass
from smke_jax.selections.base import Selection
from smke_jax.studies.plan.assumed import CORPUS, shapes_only
from smke_jax.training.build import Experiment
from smke_jax.training.frozen import frozen_shapes
from smke_jax.training.recipe import is_trained, made_by, sources
from smke_jax.training.step import abstract_state, borrow

Parts = dict[str, Counter[str]]  # {part of a step: {precision: FLOPs}}
Shapes = Mapping[str, jax.ShapeDtypeStruct]

RAISED = {jax.lax.Precision.HIGHEST: HIGHEST, jax.lax.Precision.HIGH: HIGH}


def matmul_flops(function: Callable, *args) -> Counter[str]:
    """{precision: FLOPs} of the matrix products and convolutions in function(*args); shapes will do as `args`.

    precision: the operands' type, such as 'bfloat16', or HIGH or HIGHEST of float32.  A multiplication and its addition
    are two FLOPs.
    What no result depends on costs nothing, as XLA leaves it out.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return counted(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def flops_per_example(config: ConfigDict, images: int = 0) -> Parts:
    """{part: {precision: FLOPs}} that one example of a training step of `config` costs: what MFU counts.

    Parts: '<pass> forward', '<pass> backward' where a gradient flows through the pass, '<selection> forward', 'losses
    forward', 'losses backward'.  Selections and losses depend on the global batch.  The optimiser is left out, and so
    is what is computed twice to save memory.

    config: as from `planned`; images: see `shapes_only`
    """
    config = config.copy_and_resolve_references()
    for part in config.networks.values():
        if "remat" in part:
            part.remat = "none"
    experiment = shapes_only(config, images)
    return _Step(experiment).parts()


class _Step:
    """A training step, followed part by part.

    arrays:      shapes of what there is so far: of the global batch
    in_gradient: names of those of them that depend on trained parameters
    """

    def __init__(self, experiment: Experiment):
        recipe = experiment.recipe
        state = abstract_state(recipe, optax.identity(), experiment.mesh, experiment.batch, shapes=experiment.shapes)
        self.state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        rows = max(experiment.task.facts.get("num_images", 0), CORPUS)
        self.recipe, self.frozen = recipe, frozen_shapes(recipe, experiment.shapes, rows)
        self.arrays, self.in_gradient = dict(experiment.batch), set()
        self.count = len(self.arrays["id"])
        self.key = jax.random.key(0)
        readers = (*(item for item in recipe.forward if isinstance(item, Pass)), *recipe.terms.values())
        self.read = {name for reader in readers for need in reader.needs for name in sources(need)}

    def parts(self) -> Parts:
        found: Parts = {}
        for item in self.recipe.forward:
            found |= self._selection(item) if isinstance(item, Selection) else self._pass(item)
        return found | self._losses()

    def _rows(self, needs, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {need: self.arrays[sources(need)[0]] for need in needs}
        return {need: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for need, x in shapes.items()}

    def _differentiable(self, rows: Shapes) -> tuple[Shapes, Shapes]:
        """(those that a gradient flows into, the others)."""
        chosen = {need for need, x in rows.items() if sources(need)[0] in self.in_gradient and _is_float(x)}
        return tuple({need: x for need, x in rows.items() if (need in chosen) == wanted} for wanted in (True, False))

    def _pass(self, item: Pass) -> Parts:
        own = {name: self.state.params[name] for name in item.networks if is_trained(self.recipe.networks[name])}
        inside, rows = self._differentiable(self._rows(item.needs, 1))
        constant = self.state.averages, self.frozen, self.state.slots

        def forward(primal, rows, constant):
            params, inside = primal
            borrowed = borrow(self.recipe, item, params, *constant)
            return item.run(borrowed, {**rows, **inside}, self.key, bool(own))

        def learned_from(*args):
            return {name: x for name, x in forward(*args).items() if name in self.read and _is_float(x)}

        arguments = (own, inside), rows, constant
        parts = {f"{item.name} forward": matmul_flops(forward, *arguments)}
        if own or inside:
            parts[f"{item.name} backward"] = _backward(learned_from, *arguments)
            self.in_gradient |= set(item.provides)
        made = jax.eval_shape(forward, *arguments)
        self.arrays |= {name: jax.ShapeDtypeStruct((self.count, *x.shape[1:]), x.dtype) for name, x in made.items()}
        return parts

    def _selection(self, item: Selection) -> Parts:
        there = {"terms": self.state.params["terms"], "assets": self.frozen.get("assets", {})}
        state = {name: there[name.partition("/")[0]][name.partition("/")[2]] for name in item.reads}
        scope = Scope(None, "gather", self.key)
        rows = self._rows(item.needs, self.count)
        flops = matmul_flops(lambda state, rows: item.run(state, rows, scope), state, rows)
        self.arrays |= made_by(item, self.arrays, self.count)
        return {f"{item.name} forward": self._share(flops)}

    def _losses(self) -> Parts:
        """Of all terms together, on one device and in the form that computes nothing twice."""
        terms, scope = self.recipe.terms, Scope(None, "gather", self.key)
        needs = {need for term in terms.values() for need in term.needs}
        inside, rows = self._differentiable(self._rows(needs, self.count))

        def losses(primal, slots, rows):
            params, inside = primal
            arrays = {**rows, **inside}
            return [
                term.value(params[name], slots[name], {need: arrays[need] for need in term.needs}, scope)[0]
                for name, term in terms.items()
            ]

        arguments = (self.state.params["terms"], inside), self.state.slots, rows
        ways = {"forward": matmul_flops(losses, *arguments), "backward": _backward(losses, *arguments)}
        return {f"losses {way}": self._share(flops) for way, flops in ways.items()}

    def _share(self, flops: Counter[str]) -> Counter[str]:
        return Counter({kind: n / self.count for kind, n in flops.items()})


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _backward(function, primal, *constant) -> Counter[str]:
    """What the gradient of function(primal, *constant) by `primal` costs besides the function itself."""

    def gradient(primal, *constant):
        out, pull = jax.vjp(lambda primal: function(primal, *constant), primal)
        return pull(out)

    return matmul_flops(gradient, primal, *constant) - matmul_flops(function, primal, *constant)


def counted(jaxpr) -> Counter[str]:
    """{precision: FLOPs} of traced operations, on all devices together.

    A loop of unknown length counts once, a conditional with all its branches.
    """
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in PRODUCTS:
            shapes = [v.aval.shape for v in equation.invars] + [v.aval.shape for v in equation.outvars]
            total[_precision(equation)] += PRODUCTS[name](params, *shapes)
        times = REPEATS[name](params) if name in REPEATS else 1
        for inner in jaxprs_in_params(params):
            for precision, flops in counted(inner).items():
                total[precision] += times * flops
    return total


def _precision(equation) -> str:
    precision, dtype = equation.params["precision"], str(equation.invars[0].aval.dtype)
    asked = () if precision is None or dtype != "float32" else tuple(precision)  # of 16 bits it asks nothing more
    return next((name for kind, name in RAISED.items() if kind in asked), dtype)


def _dot(params, left, right, out) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _convolution(params, image, kernel, out) -> int:
    return 2 * math.prod(out) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]


PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
REPEATS = {"scan": lambda params: params["length"], "shard_map": lambda params: params["mesh"].size}
