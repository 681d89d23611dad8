"""FLOPs of matrix products, counted from traced operations: what model FLOPs utilisation (MFU) is measured in.

XLA's cost analysis and `jax.experimental.roofline` count the body of a loop once; here it counts as often as it runs.
Additions and elementwise functions are left out, as MFU has it (Chowdhery et al. 2022, PaLM, appendix B).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from smke_jax.losses.collective import Scope
from smke_jax.passes.base import only
from smke_jax.studies.plan.devices import HIGHEST
from smke_jax.training.experiment import batch_shapes, training_views
from smke_jax.training.kept_targets import with_kept_targets
from smke_jax.training.recipe import Recipe, build_recipe, given, representation_shapes


def matmul_flops(function: Callable, *args) -> Counter[str]:
    """{precision: FLOPs} of the matrix products and convolutions in function(*args); shapes will do as `args`.

    precision: the operands' type, such as 'bfloat16', or HIGHEST.  A multiplication and its addition are two FLOPs.
    What no result depends on costs nothing, as XLA leaves it out.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return counted(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def flops_per_example(config) -> dict[str, Counter[str]]:
    """{part: {precision: FLOPs}} that one example of a training step of `config` (resolved) costs: what MFU counts.

    Parts: '<pass> forward', for trained passes '<pass> backward', 'losses forward', 'losses backward' (which depend on
    the global batch).  Left out: the optimiser, and what is computed twice to save memory.
    """
    config = config.copy_and_resolve_references()
    config.student.remat = "none"
    # The size of the vocabulary does not matter: looking words up costs no product.
    recipe, batch = step_inputs(build_recipe(config, vocab_size=config.data.vocab_size), config)
    key, parts, trained, fixed = jax.random.key(0), {}, {}, {"id": batch["id"]}
    for p in (only(p, recipe.needs) for p in recipe.passes):
        inputs = given(p, batch, {**fixed, **trained})
        rows = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
        params = jax.eval_shape(p.init, key, rows)

        def forward(params, rows, p=p):
            return p.run(params, rows, key, p.grad)

        if p.grad:
            parts[f"{p.name} forward"], parts[f"{p.name} backward"] = _both_ways(forward, params, rows)
        else:
            parts[f"{p.name} forward"] = matmul_flops(forward, params, rows)
        reps = jax.eval_shape(forward, params, rows)
        (trained if p.grad else fixed).update(
            {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for name, x in reps.items()}
        )
    losses = zip(("losses forward", "losses backward"), _losses(recipe, trained, fixed), strict=True)
    share = 1 / config.batch_size
    return parts | {part: Counter({kind: n * share for kind, n in flops.items()}) for part, flops in losses}


def step_inputs(recipe: Recipe, config) -> tuple[Recipe, dict[str, jax.ShapeDtypeStruct]]:
    """(what the step computes of `recipe`, shapes of its global batch), as the training loop has them."""
    views = training_views(config)
    batch = batch_shapes(config, views)
    if not config.teacher.cache:
        return recipe, batch
    kept, made = with_kept_targets(recipe), representation_shapes(recipe, batch)
    (teacher,) = (p for p in kept.passes if p.name == "teacher")
    targets = {name: made[name] for name in teacher.provides}
    return kept, batch_shapes(config, dataclasses.replace(views, teacher_view="same")) | targets


def _losses(recipe, trained, fixed) -> tuple[Counter[str], Counter[str]]:
    """Forward and backward of all terms together, on one device and in the form that computes nothing twice."""
    reps = {name: {need: {**fixed, **trained}[need] for need in term.needs} for name, term in recipe.terms.items()}
    init = lambda: {name: term.init(jax.random.key(0), reps[name]) for name, term in recipe.terms.items()}  # noqa: E731
    state, scope = jax.eval_shape(init), Scope(None, "gather", jax.random.key(0))

    def loss(wanted, slots, fixed):
        params, trained = wanted
        arrays = {**fixed, **trained}
        return [
            term.value(params[name], slots[name], {need: arrays[need] for need in term.needs}, scope)[0]
            for name, term in recipe.terms.items()
        ]

    params, slots = ({name: part[i] for name, part in state.items()} for i in (0, 1))
    return _both_ways(loss, (params, trained), slots, fixed)


def _both_ways(function, primal, *fixed) -> tuple[Counter[str], Counter[str]]:
    """Of function(primal, *fixed), and of its gradient by `primal` alone."""

    def gradient(primal, *fixed):
        out, pull = jax.vjp(lambda primal: function(primal, *fixed), primal)
        return pull(out)

    forward = matmul_flops(function, primal, *fixed)
    return forward, matmul_flops(gradient, primal, *fixed) - forward


def counted(jaxpr) -> Counter[str]:
    """The same of traced operations, on all devices together.

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
    highest = precision is not None and jax.lax.Precision.HIGHEST in tuple(precision)
    return HIGHEST if highest and dtype == "float32" else dtype  # of half-precision operands it asks nothing more


def _dot(params, left, right, out) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _convolution(params, image, kernel, out) -> int:
    return 2 * math.prod(out) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]


PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
REPEATS = {"scan": lambda params: params["length"], "shard_map": lambda params: params["mesh"].size}
