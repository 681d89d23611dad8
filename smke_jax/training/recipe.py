"""What a step computes, put in order and checked before anything is compiled."""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset, Evaluator
from smke_jax.networks.base import Network, Specs
from smke_jax.objectives.base import Term
from smke_jax.passes.base import Pass, narrowed
from smke_jax.selections.base import Selection

INIT_ROWS = 2  # examples that a network is initialised with: enough for every shape, and free at a batch of thousands


class Recipe(NamedTuple):
    """Everything a run computes, as records.

    networks:   {name: Network}
    forward:    passes and selections, in the order in which a training step runs them; only those that the step needs
    terms:      {name: Term}, owning params['terms'][name] and slots[name]
    weights:    {name: schedule of training progress in [0, 1] -> weight}
    passes:     every pass there is: what evaluators and assets choose from
    evaluators: {name: Evaluator}
    assets:     {name: Asset}
    """

    networks: Mapping[str, Network]
    forward: tuple[Pass | Selection, ...]
    terms: Mapping[str, Term]
    weights: Mapping[str, Callable[[jax.Array], jax.Array]]
    passes: tuple[Pass, ...] = ()
    evaluators: Mapping[str, Evaluator] = {}
    assets: Mapping[str, Asset] = {}


def make_recipe(
    networks: Mapping[str, Network],
    passes: Iterable[Pass],
    terms: Mapping[str, Term],
    weights: Mapping[str, Callable],
    *,
    batch: Iterable[str],
    selections: Iterable[Selection] = (),
    evaluators: Mapping[str, Evaluator] | None = None,
    assets: Mapping[str, Asset] | None = None,
) -> Recipe:
    """The Recipe of these parts for batches that hold the arrays `batch`, with its passes in order.

    What an asset provides stands in for the pass that would make it.  Raises UserError for a need that nothing meets.
    """
    passes, assets = tuple(passes), dict(assets or {})
    given = {*batch, "id", *(name for asset in assets.values() if asset.by_id for name in asset.provides)}
    wanted = {f"the term {name!r}": term.needs for name, term in terms.items()}
    for p in passes:
        if any(networks[name].trained for name in p.networks if networks[name].average is None):
            wanted[f"the pass {p.name!r}"] = p.watched
    forward = in_order((*passes, *selections), given, wanted)
    for item in forward:
        _check_reads(item, terms, assets)
    borrowed = {name for p in forward if isinstance(p, Pass) for name in p.networks}
    idle = [name for name, network in networks.items() if network.trained and name not in borrowed]
    if idle:
        raise UserError(f"no loss depends on the network {idle[0]!r}: leave it out, or add a term that reads of it")
    return Recipe(networks, forward, terms, weights, passes, evaluators or {}, assets)


def in_order(
    items: Iterable[Pass | Selection], given: Iterable[str], wanted: Mapping[str, Iterable[str]]
) -> tuple[Pass | Selection, ...]:
    """Of `items` those that make what is wanted, each after those whose arrays it needs.

    given:  arrays that are there at the start
    wanted: {who wants them: arrays}, for messages
    Passes are narrowed to what is needed of them.  Raises UserError for an array that nothing makes, or two of them.
    """
    items, available = list(items), set(given)
    maker: dict[str, Pass | Selection] = {}
    for item in items:
        for name in item.provides:
            if name not in available and maker.setdefault(name, item) is not item:
                raise UserError(f"{maker[name].name!r} and {item.name!r} both make {name!r}: leave one of them out")
    needed: set[str] = set()
    stack = [(who, name) for who, names in wanted.items() for need in names for name in sources(need)]
    while stack:
        who, name = stack.pop()
        if name in available or name in needed:
            continue
        if name not in maker:
            made = ", ".join(sorted({*maker, *available}))
            raise UserError(f"{who} needs {name}, which nothing here makes; there are {made}")
        needed.add(name)
        item = maker[name]
        stack += [(f"the {_kind(item)} {item.name!r}", x) for need in item.needs for x in sources(need)]
    waiting = [
        narrowed(item, needed) if isinstance(item, Pass) else item for item in items if needed & set(item.provides)
    ]
    ordered = []
    while waiting:
        able = [x for x in waiting if all(source in available for need in x.needs for source in sources(need))]
        if not able:
            names = " and ".join(repr(x.name) for x in waiting)
            raise UserError(f"{names} need each other's arrays: none of them can run first")
        # A pass comes later while another pass of its network lacks an array: the network is initialised with what any
        # of its passes reads.
        held = {name for x in waiting if x not in able and isinstance(x, Pass) for name in x.networks}
        ready = min(able, key=lambda x: isinstance(x, Pass) and not held.isdisjoint(x.networks))
        waiting.remove(ready)
        ordered.append(ready)
        available |= set(ready.provides)
    return tuple(ordered)


def sources(need: str) -> list[str]:
    """['text/tokens', 'hard_text'] of 'text/tokens@hard_text'."""
    return need.split("@")


def take(arrays: Mapping[str, jax.Array], need: str) -> jax.Array:
    """The array that `need` names, where 'a@b' are the rows of 'a' whose numbers stand in 'b'."""
    name, *rows = sources(need)
    return arrays[name][arrays[rows[0]]] if rows else arrays[name]


def _kind(item) -> str:
    return "pass" if isinstance(item, Pass) else "selection"


def _check_reads(item, terms, assets):
    for name in item.reads:
        kind, _, owner = name.rpartition("/")
        if owner not in (assets if kind == "assets" else terms):
            raise UserError(f"the {_kind(item)} {item.name!r} reads of {owner!r}, which the config does not have")


def key_of(key: jax.Array, name: str) -> jax.Array:
    """The random key of what is called `name`: it does not depend on other names, nor on their order."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


class Shapes(NamedTuple):
    """networks: {name: all parameters}; arrays: {name: representation of a whole batch}, the batch's own among them."""

    networks: Mapping[str, Any]
    arrays: Specs


def shapes_of(recipe: Recipe, batch: Mapping[str, Any], forward: Iterable[Pass | Selection] | None = None) -> Shapes:
    """Shapes of what a step makes of a global `batch` (arrays or shapes), computed without any array."""
    key, networks = jax.random.key(0), {}
    arrays = {name: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for name, x in batch.items()}
    rows = len(arrays["id"]) if "id" in arrays else len(next(iter(arrays.values())))
    for item in recipe.forward if forward is None else forward:
        if isinstance(item, Selection):
            arrays |= made_by(item, arrays, rows)
            continue
        own = {need: _taken(arrays, need) for need in item.needs}
        for name in item.networks:
            if name not in networks:
                source = recipe.networks[name].average.of if recipe.networks[name].average else name
                specs = _specs_of(recipe, source, arrays)
                networks[name] = jax.eval_shape(lambda n=source, x=specs: recipe.networks[n].init(key, x))
        params = {name: networks[name] for name in item.networks} | dict(item.reads)
        arrays |= jax.eval_shape(lambda p, a, item=item: item.run(p, a, key, False), params, own)
    return Shapes(networks, arrays)


def made_by(selection: Selection, arrays: Specs, rows: int) -> Specs:
    """The shapes of what a selection makes of a global batch of so many `rows`."""
    own = {name: jax.ShapeDtypeStruct((), jnp.int32) for name in selection.provides} | dict(selection.shapes(arrays))
    return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in own.items()}


def _taken(arrays: Specs, need: str) -> jax.ShapeDtypeStruct:
    name, *rows = sources(need)
    count = arrays[rows[0]].shape[0] if rows else arrays[name].shape[0]
    return jax.ShapeDtypeStruct((count, *arrays[name].shape[1:]), arrays[name].dtype)


def few(specs: Specs) -> Specs:
    """The same arrays with INIT_ROWS rows."""
    return {name: jax.ShapeDtypeStruct((INIT_ROWS, *x.shape[1:]), x.dtype) for name, x in specs.items()}


def init_network(recipe: Recipe, name: str, key: jax.Array, arrays: Specs) -> Any:
    """All parameters of the network `name` at random; call it under jit.  `arrays` as in Shapes."""
    return recipe.networks[name].init(key_of(key, name), _specs_of(recipe, name, arrays))


def _specs_of(recipe: Recipe, name: str, arrays: Specs) -> Specs:
    """INIT_ROWS rows of each of `arrays` that a pass of the network `name` reads."""
    passes = [p for p in (*recipe.forward, *recipe.passes) if isinstance(p, Pass) and name in p.networks]
    needs = {need for p in passes for need in p.needs if all(source in arrays for source in sources(need))}
    return few({need: _taken(arrays, need) for need in sorted(needs)})


def is_trained(network: Network) -> bool:
    """Whether any of its parameters is trained."""
    return bool(network.trained) and network.average is None


def split_params(network: Network, params: Any) -> tuple[Any, Any]:
    """(trained leaves, other leaves) of a network's parameters; UserError where a regex finds nothing."""
    if network.average is not None or network.trained is False:
        return {}, params
    if network.trained is True:
        return params, {}
    flat = flatten_dict(params, sep="/")
    for pattern in network.trained:
        if not any(re.search(pattern, path) for path in flat):
            raise UserError(f"trained={pattern!r} finds none of the network's parameters: {', '.join(sorted(flat))}")
    chosen = {path for path in flat if any(re.search(pattern, path) for pattern in network.trained)}
    parts = ({k: x for k, x in flat.items() if (k in chosen) == wanted} for wanted in (True, False))
    return tuple(unflatten_dict(part, sep="/") for part in parts)


def merge(one: Any, other: Any) -> Any:
    """Nested dicts with the leaves of both."""
    if not one or not other:
        return one or other
    return {**other, **{k: merge(x, other[k]) if k in other else x for k, x in one.items()}}
