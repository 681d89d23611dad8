"""The train step: the only place with value_and_grad."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from smke_jax.losses.collective import mean
from smke_jax.objectives.base import Scope
from smke_jax.parallel.mesh import DATA_AXIS, replicated, sharded
from smke_jax.training.recipe import Recipe, init_params, representation_shapes
from smke_jax.training.state import TrainState


def init_state(recipe: Recipe, tx, mesh, batch: dict[str, Any], *, seed: int) -> TrainState:
    """A fresh state on the mesh; `batch` gives shapes and types only."""

    def init():
        key = jax.random.key(seed)
        params, slots = init_params(recipe, key, batch)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), slots, jax.random.fold_in(key, 1))

    return jax.jit(init, out_shardings=replicated(mesh))()


def run_terms(recipe: Recipe, mesh, params, slots, reps) -> tuple[dict, dict]:
    """Every term on the global batch -> ({name: loss}, {'name/metric': value}), means over the global batch.

    One shard_map over the data axis: each device holds its rows of every representation and gathers what it needs.
    """

    def local(params, slots, reps):
        scope = Scope(DATA_AXIS)
        losses, metrics = {}, {}
        for name, term in recipe.terms.items():
            own = {need: reps[need] for need in term.needs}
            with jax.named_scope(name):
                losses[name], extra = term.value(params[name], slots[name], own, scope)
            metrics |= {f"{name}/{key}": value for key, value in extra.items()}
        return jax.tree.map(lambda x: mean(x, DATA_AXIS), (losses, metrics))

    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(everywhere, everywhere, rows), out_specs=everywhere)(
        params, slots, reps
    )


def make_loss(recipe: Recipe, mesh) -> Callable:
    """(params, frozen reps, slots, batch, key, progress) -> (total, (reps, losses, metrics)); differentiable."""

    def loss(params, frozen_reps, slots, batch, key, progress):
        reps = {"id": batch["id"], **frozen_reps}
        for i, p in enumerate(recipe.passes):
            if p.grad:
                reps |= p.run(params[p.name], batch, jax.random.fold_in(key, i), True)
        losses, metrics = run_terms(recipe, mesh, params["terms"], slots, reps)
        total = sum(recipe.weights[name](progress) * value for name, value in losses.items())
        return total, (reps, losses, metrics)

    return loss


def make_train_step(recipe: Recipe, tx: optax.GradientTransformation, mesh, *, total_steps: int) -> Callable:
    """Jitted (state, frozen, batch) -> (state, metrics).  Donates the state, never `frozen`.

    metrics: 'loss', '<term>/loss', every term's own, 'grad_norm', 'collisions' (the share of examples whose image
    occurs more than once in the batch), and 'first_bad', the position of the first
    non-finite tensor in `bad_names` or -1.
    """
    loss = make_loss(recipe, mesh)

    def step(state: TrainState, frozen, batch):
        key = jax.random.fold_in(state.rng, state.step)
        frozen_reps = {}
        for i, p in enumerate(recipe.passes):
            if not p.grad:
                frozen_reps |= p.run(frozen[p.name], batch, jax.random.fold_in(key, i), False)
        frozen_reps = jax.lax.stop_gradient(frozen_reps)
        (total, (reps, losses, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, frozen_reps, state.slots, batch, key, state.step / total_steps
        )
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
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, sharded(mesh)),
        out_shardings=(everywhere, everywhere),
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
