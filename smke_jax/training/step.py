"""The train step: the only place with value_and_grad."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from smke_jax.losses.collective import FULL, Scope, mean
from smke_jax.losses.contrastive import normalise
from smke_jax.models.attention import attention_by, best
from smke_jax.parallel.mesh import DATA_AXES, made_on_host, replicated, sharded
from smke_jax.parallel.rules import shardings, specs
from smke_jax.passes.base import Pass
from smke_jax.passes.by_length import UNCUT, Split
from smke_jax.passes.micro_batch import in_micro_batches
from smke_jax.training.recipe import (
    Recipe,
    Shapes,
    init_network,
    is_trained,
    key_of,
    merge,
    shapes_of,
    split_params,
    take,
)
from smke_jax.training.state import TrainState

Frozen = Mapping[str, Any]  # {network: parameters that are not trained, 'assets': {asset: arrays}}


def init_state(
    recipe: Recipe,
    tx,
    mesh,
    batch: Mapping[str, Any],
    *,
    seed: int,
    sharding: str = "replicated",
    shapes: Shapes | None = None,
) -> TrainState:
    """A fresh state, made on the host.  Each device gets its own part of every array.

    `batch` gives shapes and types only; `sharding` is a key of `smke_jax.parallel.rules.RULES`.  `shapes` are those of
    `shapes_of` the batch, where the caller has them: to find them, all passes are traced.
    """
    shapes = shapes_of(recipe, batch) if shapes is None else shapes
    init = _initialise(recipe, tx, seed, shapes, lambda name, key: init_network(recipe, name, key, shapes.arrays))
    return made_on_host(init, lambda state: shardings(state, mesh, sharding, spread(recipe)))


def abstract_state(
    recipe: Recipe,
    tx,
    mesh,
    batch: Mapping[str, Any],
    *,
    sharding: str = "replicated",
    shapes: Shapes | None = None,
) -> TrainState:
    """The state as shapes with their shardings: what a checkpoint is restored into.  Arguments as of `init_state`."""
    shapes = shapes_of(recipe, batch) if shapes is None else shapes

    def network(name, key):
        if name not in shapes.networks:  # it is trained, and no pass of a step runs it
            return init_network(recipe, name, key, shapes.arrays)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.networks[name])

    found = jax.eval_shape(_initialise(recipe, tx, 0, shapes, network))
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(place, found, shardings(found, mesh, sharding, spread(recipe)))


def spread(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """{term: names of its slots whose rows are spread over the devices}."""
    return {name: term.spread for name, term in recipe.terms.items()}


def _initialise(recipe, tx, seed, shapes, network_of):
    """() -> a fresh state, whose networks are `network_of(name, key)`."""

    def init():
        key = jax.random.key(seed)
        params: dict[str, Any] = {"terms": {}}
        slots = {}
        for name, network in recipe.networks.items():
            if is_trained(network):
                params[name] = split_params(network, network_of(name, key))[0]
        for name, term in recipe.terms.items():
            read = needed(term, shapes.arrays)
            params["terms"][name], slots[name] = term.init(term_init_key(recipe, key, name), read)
        followed = {n: x.average.of for n, x in recipe.networks.items() if x.average}
        averages = {name: jax.tree.map(jnp.zeros_like, params[of]) for name, of in followed.items()}
        step, rng = jnp.zeros((), jnp.int32), jax.random.fold_in(key, 1)
        return TrainState(step, params, tx.init(params), slots, rng, averages)

    return init


def term_init_key(recipe: Recipe, key: jax.Array, name: str) -> jax.Array:
    """The key with which the parameters and slots of the term `name` begin."""
    return key_of(key, f"terms/{name}")


def needed(term, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What the term reads of `arrays`, which may be shapes."""
    if all(isinstance(x, jax.ShapeDtypeStruct) for x in arrays.values()):
        return {need: arrays[need.partition("@")[0]] for need in term.needs}
    return {need: take(arrays, need) for need in term.needs}


def run_terms(
    recipe: Recipe, mesh, params, slots, arrays, *, key: jax.Array, loss_impl: str = "auto", exchange_dtype: str = FULL
) -> tuple[dict, dict]:
    """Every term on the global batch -> ({name: loss}, {'name/metric': value}), means over the global batch.

    params, slots: {term: …}.  One shard_map over the devices: each holds its rows of every representation and its part
    of the slots, and gets from the others what it needs.
    """
    rows = {name: needed(term, arrays) for name, term in recipe.terms.items()}
    rows = {need: x for own in rows.values() for need, x in own.items()}

    def local(params, slots, rows, key):
        losses, metrics = {}, {}
        for name, term in recipe.terms.items():
            scope = Scope(DATA_AXES, loss_impl, key_of(key, name), exchange_dtype)
            own = {need: rows[need] for need in term.needs}
            with jax.named_scope(name):
                losses[name], extra = term.value(params[name], slots[name], own, scope)
            metrics |= {f"{name}/{what}": value for what, value in extra.items()}
        return jax.tree.map(lambda x: mean(x, Scope(DATA_AXES)), (losses, metrics))

    where = specs({"slots": slots}, mesh, spread=spread(recipe))["slots"]
    split, everywhere = PartitionSpec(DATA_AXES), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(everywhere, where, split, everywhere), out_specs=everywhere)(
        params, slots, rows, key
    )


def run_selection(selection, mesh, state, arrays, *, key: jax.Array, loss_impl: str = "auto") -> dict[str, jax.Array]:
    """What `selection` chooses for the rows of the global batch, without gradient.  `state` is what it reads.

    The rows of assets are spread over the devices, the parameters of terms are whole on every device.
    """
    rows = {need: take(arrays, need) for need in selection.needs}
    state, rows = jax.lax.stop_gradient((state, rows))

    def local(state, rows, key):
        with jax.named_scope(selection.name):
            return selection.run(state, rows, Scope(DATA_AXES, loss_impl, key))

    split, everywhere = PartitionSpec(DATA_AXES), PartitionSpec()
    where = {name: split if name.startswith("assets/") else everywhere for name in state}
    return jax.shard_map(local, mesh=mesh, in_specs=(where, split, everywhere), out_specs=split)(state, rows, key)


def make_train_step(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    mesh,
    *,
    total_steps: int,
    layout: Any = None,
    micro_batch: int = 0,
    loss_impl: str = "auto",
    exchange_dtype: str = FULL,
    attention: str = "auto",
    split: Split = UNCUT,
) -> Callable:
    """Jitted (state, frozen, batch) -> (state, metrics).  Donates the state, never `frozen`.

    Gradients are those of the trained parameters alone: a frozen part has no backward pass and no optimiser state.
    A step whose loss or gradients are not finite moves by a gradient of zero and leaves the slots as they are, so that
    its state can still be looked into (`make_diagnosis`).
    layout: the state's shardings, as arrays or `abstract_state` have them; None is a whole copy on every device.
    micro_batch: see `in_micro_batches`.  loss_impl, exchange_dtype: impl and dtype of the `Scope` of terms.
    attention: of `models.attention.CHOICES`.  split: which passes run in parts.
    metrics: 'loss', '<term>/loss', every term's own, 'grad_norm', 'update_norm' (of the change of the trained
    parameters), 'collisions' (the share of examples whose id occurs more than once in the batch), and
    'embedding_std/<representation>' of those that passes have watched, and those of `split`.
    """
    forward = make_forward(recipe, mesh, micro_batch=micro_batch, loss_impl=loss_impl, attention=attention, split=split)
    exchange = {"loss_impl": loss_impl, "exchange_dtype": exchange_dtype}

    def step(state: TrainState, frozen: Frozen, batch):
        key = jax.random.fold_in(state.rng, state.step)
        averages = _moved_averages(recipe, state)
        constant = forward(state.params, averages, frozen, state.slots, dict(batch), key, trained=False)

        def loss(params):
            arrays = forward(params, averages, frozen, state.slots, constant, key, trained=True)
            losses, metrics = run_terms(recipe, mesh, params["terms"], state.slots, arrays, key=key, **exchange)
            progress = state.step / total_steps
            total = sum(recipe.weights[name](progress) * value for name, value in losses.items())
            return total, (arrays, losses, metrics)

        (total, (arrays, losses, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            finite = jnp.isfinite(total) & jnp.isfinite(norm)
            grads = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), grads)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        slots = {name: term.update(state.slots[name], needed(term, arrays)) for name, term in recipe.terms.items()}
        slots = jax.tree.map(lambda new, old: jnp.where(finite, new, old), slots, state.slots)
        metrics |= {f"{name}/loss": value for name, value in losses.items()}
        metrics |= {"loss": total, "grad_norm": norm, "collisions": _collisions(batch["id"])}
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics |= split.metrics(batch)
        watched = (name for p in recipe.forward if isinstance(p, Pass) for name in p.watched if name in p.provides)
        metrics |= {f"embedding_std/{name}": _embedding_std(arrays[name]) for name in watched}
        return TrainState(state.step + 1, params, opt_state, slots, state.rng, averages), metrics

    everywhere = replicated(mesh)
    of_state = everywhere if layout is None else jax.tree.map(lambda x: x.sharding, layout)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(of_state, None, sharded(mesh)),  # of what is frozen, networks are whole and assets are spread
        out_shardings=(of_state, everywhere),
    )


def make_forward(
    recipe: Recipe, mesh, *, micro_batch: int = 0, loss_impl: str = "auto", attention: str = "auto",
    split: Split = UNCUT,
) -> Callable:  # fmt: skip
    """(params, averages, frozen, slots, arrays, key, trained) -> `arrays` and what passes and selections make of them.

    `trained` False runs the items that no trained parameter influences.  `trained` True runs the others, which find the
    arrays of the first half among `arrays`.  Only the second half is differentiated.
    """
    in_gradient = set()  # arrays that depend on trained parameters
    halves: dict[bool, list] = {True: [], False: []}
    attention = best(attention, mesh.devices.flat[0])
    for item in recipe.forward:
        networks = item.networks if isinstance(item, Pass) else ()
        reads_terms = any(name.startswith("terms/") for name in item.reads)
        trains = any(is_trained(recipe.networks[name]) for name in networks)
        depends = trains or reads_terms or any(x in in_gradient for need in item.needs for x in need.split("@"))
        if isinstance(item, Pass):
            item = _attending(item, attention, trains)
            item = in_micro_batches(split.cut(item), mesh, micro_batch)
        halves[depends].append((item, trains))
        in_gradient |= set(item.provides) if depends else set()

    def forward(params, averages, frozen, slots, arrays, key, *, trained: bool):
        arrays = dict(arrays)
        for item, trains in halves[trained]:
            if isinstance(item, Pass):
                rows = {need: take(arrays, need) for need in item.needs}
                borrowed = borrow(recipe, item, params, averages, frozen, slots)
                with jax.named_scope(item.name):
                    arrays |= item.run(borrowed, rows, key_of(key, item.name), trains)
            else:
                state = {"terms": params["terms"], "assets": frozen.get("assets", {})}
                read = {name: state[name.partition("/")[0]][name.partition("/")[2]] for name in item.reads}
                arrays |= run_selection(item, mesh, read, arrays, key=key_of(key, item.name), loss_impl=loss_impl)
        return arrays

    return forward


def _attending(p: Pass, attention: str, trains: bool) -> Pass:
    """`p` whose attention is computed as `attention` says, also where its backward pass traces it again."""

    def run(*given):
        with attention_by(attention, trained=trains):
            return p.run(*given)

    return p._replace(run=run)


def borrow(recipe: Recipe, p: Pass, params, averages, frozen, slots) -> dict[str, Any]:
    """What the pass `p` runs with: whole parameters of its networks, and the slots that it reads."""
    whole = {}
    for name in p.networks:
        average = recipe.networks[name].average
        own = params.get(name, {}) if average is None else averages[name]
        whole[name] = merge(own, frozen.get(average.of if average else name, {}))
    return whole | {name: slots[name.partition("/")[2]] for name in p.reads}


def _moved_averages(recipe: Recipe, state: TrainState) -> dict[str, Any]:
    """The moving averages that this step's passes run with.

    Before the first step there is nothing to average: an average takes the parameters as they are.
    """

    def follow(name, average):
        share = jnp.where(state.step == 0, 1.0, 1.0 - average.decay)
        return optax.incremental_update(state.params[average.of], state.averages[name], share)

    return {name: follow(name, x.average) for name, x in recipe.networks.items() if x.average}


def make_diagnosis(
    recipe: Recipe,
    mesh,
    *,
    micro_batch: int = 0,
    loss_impl: str = "auto",
    exchange_dtype: str = FULL,
    attention: str = "auto",
    split: Split = UNCUT,
) -> Callable:
    """(state, frozen, batch, step) -> the name of the first tensor that is not finite in that step, '' if all are.

    It computes the step again with the parameters of `state` and looks at everything: parameters, representations,
    losses, gradients.  It is a program of its own, so that steps do not pay for it.
    """
    forward = make_forward(recipe, mesh, micro_batch=micro_batch, loss_impl=loss_impl, attention=attention, split=split)
    exchange = {"loss_impl": loss_impl, "exchange_dtype": exchange_dtype}

    @jax.jit
    def look(state: TrainState, frozen: Frozen, batch, number):
        key, averages = jax.random.fold_in(state.rng, number), _moved_averages(recipe, state)
        constant = forward(state.params, averages, frozen, state.slots, dict(batch), key, trained=False)

        def loss(params):
            arrays = forward(params, averages, frozen, state.slots, constant, key, trained=True)
            losses, _ = run_terms(recipe, mesh, params["terms"], state.slots, arrays, key=key, **exchange)
            return sum(losses.values()), (arrays, losses)

        (_, (arrays, losses)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return [{kind: jax.tree.map(_is_bad, tree)} for kind, tree in (
            ("params", state.params), ("representation", arrays), ("loss", losses), ("gradient", grads)
        )]  # fmt: skip

    def diagnose(state, frozen, batch, number: int) -> str:
        found = jax.tree.leaves_with_path(jax.device_get(look(state, frozen, batch, number)))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, bad in found if bad]
        return names[0].partition("/")[2] if names else ""  # without the position in the list

    return diagnose


def _is_bad(x) -> jax.Array:
    return jnp.any(~jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.array(False)


def _collisions(ids: jax.Array) -> jax.Array:
    """Share of examples whose id occurs more than once in the global batch."""
    ordered = jnp.sort(ids)
    same = ordered[1:] == ordered[:-1]
    twin = jnp.concatenate([same, jnp.array([False])]) | jnp.concatenate([jnp.array([False]), same])
    return jnp.mean(twin.astype(jnp.float32))


def _embedding_std(x: jax.Array) -> jax.Array:
    """Standard deviation per dimension of L2-normalised rows, mean over dimensions, times √D.  (B, D) -> ().

    1 where they point in all directions alike, 0 where all are the same: collapsed (Chen, He 2021, figure 2).
    """
    return jnp.mean(jnp.std(normalise(x), axis=0)) * math.sqrt(x.shape[-1])
