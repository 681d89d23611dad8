"""The train step: the only place with value_and_grad."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from smke_jax.losses.collective import Scope, mean
from smke_jax.parallel.mesh import DATA_AXES, replicated, sharded
from smke_jax.parallel.rules import shardings, specs
from smke_jax.passes.micro_batch import in_micro_batches
from smke_jax.training.recipe import Recipe, init_params, representation_shapes
from smke_jax.training.state import TrainState


def init_state(
    recipe: Recipe, tx, mesh, batch: dict[str, Any], *, seed: int, sharding: str = "replicated"
) -> TrainState:
    """A fresh state, made where it lies: no device ever holds more than its part.

    `batch` gives shapes and types only; `sharding` is a key of `smke_jax.parallel.rules.RULES`.
    """
    init = _initialise(recipe, tx, batch, seed)
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init), mesh, sharding))()


def abstract_state(recipe: Recipe, tx, mesh, batch: dict[str, Any], *, sharding: str = "replicated") -> TrainState:
    """The state as shapes with their shardings: what a checkpoint is restored into."""
    shapes = jax.eval_shape(_initialise(recipe, tx, batch, 0))
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(place, shapes, shardings(shapes, mesh, sharding))


def _initialise(recipe, tx, batch, seed):
    def init():
        key = jax.random.key(seed)
        params, slots = init_params(recipe, key, batch)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), slots, jax.random.fold_in(key, 1))

    return init


def run_terms(
    recipe: Recipe, mesh, params, slots, reps, *, key: jax.Array, loss_impl: str = "auto"
) -> tuple[dict, dict]:
    """Every term on the global batch -> ({name: loss}, {'name/metric': value}), means over the global batch.

    One shard_map over the devices: each holds its rows of every representation and its part of the slots, and gets
    from the others what it needs.
    """

    def local(params, slots, reps, key):
        losses, metrics = {}, {}
        for name, term in recipe.terms.items():
            scope = Scope(DATA_AXES, loss_impl, term_key(key, name))
            own = {need: reps[need] for need in term.needs}
            with jax.named_scope(name):
                losses[name], extra = term.value(params[name], slots[name], own, scope)
            metrics |= {f"{name}/{what}": value for what, value in extra.items()}
        return jax.tree.map(lambda x: mean(x, Scope(DATA_AXES)), (losses, metrics))

    where = specs({"slots": slots}, mesh)["slots"]
    rows, everywhere = PartitionSpec(DATA_AXES), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(everywhere, where, rows, everywhere), out_specs=everywhere)(
        params, slots, reps, key
    )


def term_key(key: jax.Array, name: str) -> jax.Array:
    """The key of the term `name` in the step whose key is `key`, whatever other terms there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def make_loss(recipe: Recipe, mesh, *, loss_impl: str = "auto") -> Callable:
    """(params, frozen reps, slots, batch, key, progress) -> (total, (reps, losses, metrics)); differentiable."""

    def loss(params, frozen_reps, slots, batch, key, progress):
        reps = {"id": batch["id"], **frozen_reps, **_run(recipe, params, batch, key, grad=True)}
        losses, metrics = run_terms(recipe, mesh, params["terms"], slots, reps, key=key, loss_impl=loss_impl)
        total = sum(recipe.weights[name](progress) * value for name, value in losses.items())
        return total, (reps, losses, metrics)

    return loss


def _run(recipe, params, batch, key, *, grad: bool) -> dict[str, jax.Array]:
    """Representations by the passes that are trained, or by those that are not."""
    reps = {}
    for i, p in enumerate(recipe.passes):
        if p.grad == grad:
            with jax.named_scope(p.name):
                reps |= p.run(params[p.name], batch, jax.random.fold_in(key, i), grad)
    return reps


def make_train_step(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    mesh,
    *,
    total_steps: int,
    layout: Any = None,
    micro_batch: int = 0,
    loss_impl: str = "auto",
) -> Callable:
    """Jitted (state, frozen, batch) -> (state, metrics).  Donates the state, never `frozen`.

    layout: the state's shardings, as arrays or `abstract_state` have them; None is a whole copy on every device.
    micro_batch: see `in_micro_batches`.  loss_impl: see `Scope`.
    metrics: 'loss', '<term>/loss', every term's own, 'grad_norm', 'collisions' (the share of examples whose image
    occurs more than once in the batch), and 'first_bad', the position of the first
    non-finite tensor in `bad_names` or -1.
    """
    recipe = recipe._replace(passes=tuple(in_micro_batches(p, mesh, micro_batch) for p in recipe.passes))
    loss = make_loss(recipe, mesh, loss_impl=loss_impl)

    def step(state: TrainState, frozen, batch):
        key = jax.random.fold_in(state.rng, state.step)
        frozen_reps = jax.lax.stop_gradient(_run(recipe, frozen, batch, key, grad=False))
        (total, (reps, losses, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, frozen_reps, state.slots, batch, key, state.step / total_steps
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        slots = {
            name: term.update(state.slots[name], {need: reps[need] for need in term.needs})
            for name, term in recipe.terms.items()
        }
        metrics |= {f"{name}/loss": value for name, value in losses.items()}
        metrics |= {"loss": total, "grad_norm": optax.tree.norm(grads)}
        metrics["collisions"] = _collisions(batch["id"])
        metrics["first_bad"] = _first_bad(_watched(state.params, reps, losses, grads, params))
        return TrainState(state.step + 1, params, opt_state, slots, state.rng), metrics

    everywhere = replicated(mesh)
    of_state = everywhere if layout is None else jax.tree.map(lambda x: x.sharding, layout)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(of_state, everywhere, sharded(mesh)),
        out_shardings=(of_state, everywhere),
    )


def bad_names(recipe: Recipe, batch: dict[str, Any], params: Any) -> list[str]:
    """Names of the tensors that 'first_bad' counts, in this order.

    Parameters, representations, losses, gradients, updated parameters.

    Arrays or shapes will do for `batch` and `params`.
    """
    losses = {name: jnp.zeros(()) for name in recipe.terms}
    watched = _watched(params, representation_shapes(recipe, batch), losses, params, params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(watched)]
    return [name.partition("/")[2] for name in names]  # without the position in the list


def _watched(params, reps, losses, grads, updated) -> list:
    # A list keeps this order through flattening; a dict would be sorted by name.
    named = [{"params": params}, {"representation": dict(reps)}, {"loss": losses}, {"gradient": grads}]
    return [*named, {"updated params": updated}]


def _collisions(ids: jax.Array) -> jax.Array:
    """Share of examples whose image occurs more than once in the global batch."""
    ordered = jnp.sort(ids)
    same = ordered[1:] == ordered[:-1]
    twin = jnp.concatenate([same, jnp.array([False])]) | jnp.concatenate([jnp.array([False]), same])
    return jnp.mean(twin.astype(jnp.float32))


def _first_bad(tree) -> jax.Array:
    bad = jnp.stack(
        [
            jnp.any(~jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(False)
            for x in jax.tree.leaves(tree)
        ]
    )
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)
