"""From a config to records and plain values; beside opening.py the only place that reads a config."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from smke_jax.errors import UserError, nearest
from smke_jax.evaluators.base import Asset
from smke_jax.networks.base import Network, Specs, Start, check_alike
from smke_jax.parallel.mesh import make_mesh
from smke_jax.parallel.process import failing_together
from smke_jax.parts import ROOMS, at_defaults
from smke_jax.passes.averaged import averaged
from smke_jax.passes.base import Pass
from smke_jax.passes.by_length import split_by_length
from smke_jax.selections.base import Selection
from smke_jax.tasks.base import Draft, Task
from smke_jax.training import record
from smke_jax.training.frozen import networks_of
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import Recipe, Shapes, in_order, make_recipe, shapes_of
from smke_jax.training.step import abstract_state, make_diagnosis, make_train_step
from smke_jax.training.stored import words_read
from smke_jax.training.validation import validate


class Experiment(NamedTuple):
    """What training, evaluation and export share.

    whole:   {array: shape and type of a global batch}, everything that the task can make
    batch:   the same of what a step reads: arrays of the task, and rows of assets
    shapes:  of all parameters and representations, those of passes that an asset replaces included
    numbers: {asset: the array of a batch that says which rows of the asset it gets}, 'id' or 'text_id'
    """

    task: Task
    recipe: Recipe
    mesh: jax.sharding.Mesh
    whole: Specs
    batch: Specs
    shapes: Shapes
    numbers: Mapping[str, str]

    def chosen(self, names: Iterable[str], columns: Iterable[str]) -> tuple[Pass, ...]:
        """The passes that make the representations `names` of the arrays `columns`, in order."""
        return in_order(self.recipe.passes, columns, {"the evaluation": names})

    def made_with(self, passes: Iterable[Pass], identity: Mapping[str, str], flat: Mapping[str, Any]) -> dict[str, str]:
        """What representations depend on that `passes` make: digests and fields of frozen networks, and of words.

        identity, flat: digests and the flattened config of the run
        """
        networks = networks_of(self.recipe, passes)
        digests = {k: x for k, x in identity.items() if k.partition(" ")[0] in networks}
        fields = {k: str(x) for k, x in flat.items() for n in networks if k.startswith(f"config.networks.{n}.")}
        words = words_read(self.task, self.whole, {need for p in passes for need in p.needs})
        return {**digests, **{k: x for k, x in fields.items() if not k.endswith("start")}, **words}


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of `config` without references; refuses values that no run could work with."""
    config = config.copy_and_resolve_references()
    validate(record.flatten(config))
    if not config.task:
        raise UserError("config.task is empty: say what a row is, such as config.task = pairs(…)")
    return config


def build_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh over config.num_devices devices, laid out for config.sharding."""
    return make_mesh(config.num_devices or None, fsdp_size=config.fsdp_size if config.sharding == "fsdp" else 1)


def build_experiment(
    config: ConfigDict,
    keep: Path | None,
    known: Mapping[str, int] | None = None,
    described: Mapping[str, Mapping[str, Any]] | None = None,
) -> Experiment:
    """The records of `config` (resolved).

    keep:      folder of the run, where a vocabulary lies from its first use on; None opens nothing
    known:     the facts that a run recorded; None where it is about to begin
    described: {network: what its file said of it}, as a run recorded it; None where it is about to begin
    """
    draft: Draft = build_part("task", "", config.task, keep=keep, known=known)
    # Empty is what a run recorded of files that said nothing, None is of no run: then the files are read.
    recorded = lambda name: None if described is None else described.get(name, {})  # noqa: E731
    with failing_together():
        networks = {
            name: build_part("networks", name, part, **draft.facts, described=recorded(name))
            for name, part in config.networks.items()
        }
        _check_averages(networks)
        check_alike(networks)
        sizes: dict[str, int] = {}
        for name, network in networks.items():
            for array, size in network.sizes.items():
                if sizes.setdefault(array, size) != size:
                    raise UserError(f"config.networks.{name} takes {array} of {size} px, another of {sizes[array]}")
        task = draft.finish(sizes)
        count = config.batch_size
        whole = {k: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for k, x in task.example().items()}
        passes = [p for name in networks for p in _passes(name, networks, whole)]
        facts = [draft.facts, *(network.facts for network in networks.values())]
        terms, weights = _terms(config, {name: number for own in facts for name, number in own.items()})
        selections = _section(config, "selections")
        evaluators = {name: x for name, x in _section(config, "evaluators").items() if x.split}
        parts = {"selections": selections.values(), "evaluators": evaluators}
        assets = _section(config, "assets")
        corpora = {name: x._replace(by_id=False) for name, x in assets.items() if x.whole or not x.by_id}
        without = make_recipe(networks, passes, terms, weights, batch=whole, assets=corpora, **parts)
        shapes = shapes_of(without, whole, _frozen_first(without, whole))
        numbers = _row_numbers(assets, networks, passes, whole, shapes, task)
        recipe = make_recipe(networks, passes, terms, weights, batch=whole, assets=assets, **parts)
        stored = {n: shapes.arrays[n] for asset in assets.values() if asset.by_id for n in asset.provides}
        read = {s for x in (*recipe.forward, *terms.values()) for need in x.needs for s in need.split("@")}
        read |= {"id", *(number for name, number in numbers.items() if assets[name].by_id)}
        batch = {name: x for name, x in {**whole, **stored}.items() if name in read}
    return Experiment(task, recipe, build_mesh(config), whole, batch, shapes, numbers)


def _frozen_first(recipe: Recipe, whole: Specs) -> list[Pass | Selection]:
    """What a step runs, after all that frozen networks make of a batch, also what evaluators and assets alone read.

    A network that is trained in part is initialised with what all of its passes read.
    """
    running = {name for p in recipe.forward if isinstance(p, Pass) for name in p.networks}
    frozen = {name for name, x in recipe.networks.items() if x.trained is False and x.average is None}
    first = lambda p: isinstance(p, Pass) and set(p.networks) <= frozen and set(p.needs) <= set(whole)  # noqa: E731
    idle = [p for p in recipe.passes if first(p) and not running & set(p.networks)]
    return [*idle, *sorted(recipe.forward, key=lambda item: not first(item))]


def _row_numbers(
    assets: Mapping[str, Asset], networks: Mapping[str, Network], passes: Iterable[Pass], whole: Specs, shapes: Shapes,
    task: Task,
) -> dict[str, str]:  # fmt: skip
    """{asset: the array of a batch that numbers its rows}.

    Raises UserError for an asset of what changes while a run is trained, and for one that is not read.
    """
    numbers = {}
    for name, asset in assets.items():
        making = in_order(passes, whole, {f"config.assets.{name}": asset.provides})
        if unread := [what for what in asset.provides if asset.by_id and what not in shapes.arrays]:
            raise UserError(f"config.assets.{name} keeps {unread[0]}, which nothing in the step reads: leave it out")
        made_of = {x for p in making for x in p.needs}
        learned = [n for p in making for n in p.networks if networks[n].trained or networks[n].average]
        if learned:
            raise UserError(
                f"config.assets.{name}: {asset.provides[0]} is made by {learned[0]!r}, which is trained: it changes "
                "with every step and cannot be stored"
            )
        if asset.views and task.augmented is None:
            raise UserError(f"config.assets.{name}: this task has no random views of its images: set augmentations=0")
        numbers[name] = next((task.fixed[x] for x in sorted(made_of) if x in task.fixed and not asset.views), "id")
        changing = sorted(x for x in made_of & set(whole) if task.fixed.get(x) != numbers[name])
        if asset.by_id and changing and not asset.views:
            raise UserError(
                f"config.assets.{name}: {asset.provides[0]} is made of {changing[0]}, which changes with the epoch, "
                "so that it cannot be stored: set augmentations, leave the asset out, or let the task show it "
                "unchanged (pairs: teacher_view='fixed')"
            )
    return numbers


def build_part(section: str, name: str, part: ConfigDict, **context: Any) -> Any:
    """What the builder of `part` returns; of `context` it gets what it has a keyword for.

    Raises UserError, with the part's place in the config, for a field that the builder does not have and for what it
    refuses itself.
    """
    where = f"config.{section}{name and '.'}{name}"
    fields = {key: _plain(value) for key, value in part.items() if key not in ("weight", "final_weight")}
    kind = fields.pop("type", name)
    if kind not in ROOMS[section]:
        raise UserError(f"{where}: there is no {kind!r} among {', '.join(sorted(ROOMS[section]))}")
    builder = ROOMS[section][kind]
    known = inspect.signature(builder).parameters
    for key in fields:
        if key not in known:
            raise UserError(f"{where}.{key}: {kind} has no such field{nearest(key, list(known))}")
    fields |= {key: value for key, value in context.items() if key in known and key not in fields}
    absent = [key for key, x in known.items() if x.default is x.empty and key not in fields]
    if absent:
        raise UserError(f"{where}: {kind} needs {absent[0]}, which no other part says")
    try:
        return builder(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return {key: _plain(x) for key, x in value.items()}
    return tuple(value) if isinstance(value, list | tuple) else value


def _section(config: ConfigDict, section: str) -> dict[str, Any]:
    return {name: build_part(section, name, part) for name, part in config[section].items()}


def _terms(config: ConfigDict, facts: Mapping[str, int]) -> tuple[dict, dict]:
    terms, weights = {}, {}
    for name, part in config.terms.items():
        weight, final = part.get("weight", 1.0), part.get("final_weight")
        if weight == 0 and not final:
            continue
        terms[name] = build_part("terms", name, part, **facts)
        weights[name] = _ramp(weight, weight if final is None else final)
    if not terms:
        raise UserError("config.terms is empty or all its weights are 0: nothing would be learned")
    return terms, weights


def _ramp(start: float, end: float):
    return lambda progress: start + (end - start) * progress


def _check_averages(networks: Mapping[str, Network]) -> None:
    for name, network in networks.items():
        if network.average and network.average.of not in networks:
            raise UserError(f"config.networks.{name} follows {network.average.of!r}, which is no network: add it")


def _passes(name: str, networks: Mapping[str, Network], batch: Specs) -> tuple[Pass, ...]:
    network = networks[name]
    if network.average is None:
        return network.forward(name, batch)
    of = network.average.of
    passes = networks[of].forward(of, batch)
    return tuple(averaged(p, of, name, passes) for p in passes)


def read_starts(experiment: Experiment, names: Iterable[str] | None = None) -> dict[str, Start]:
    """What each of the networks `names` begins with, of those that begin with a file; reads the files."""
    starts = {}
    for name, network in experiment.recipe.networks.items():
        if names is not None and name not in names or name not in experiment.shapes.networks:
            continue
        try:
            start = network.start(experiment.shapes.networks[name])
        except UserError as error:
            raise UserError(f"config.networks.{name}: {error}") from None
        if start is not None:
            starts[name] = start
    return starts


def network_defaults(config: ConfigDict) -> dict[str, str]:
    """{'config.networks.NAME.FIELD': its default, as text}, also of the parts within networks."""
    found = record.flatten({name: at_defaults(x, name) for name, x in config.networks.items()}, "config.networks")
    return {field: str(default) for field, default in found.items()}


def build_step(
    config: ConfigDict, experiment: Experiment, lengths: Sequence[int] = ()
) -> tuple[optax.GradientTransformation, Callable, Any, Callable]:
    """(optimiser, schedule of the learning rate, abstract state, jitted train step) of `config` (resolved).

    lengths: of captions, see `caption_lengths`; () runs all of them at their full width
    """
    first = [f"{name}/{path}" for name, x in experiment.recipe.networks.items() for path in x.first_layer]
    tx, schedule = build_optimizer(
        batch_size=config.batch_size, total_steps=config.total_steps, first_layer=first, **config.optimizer.to_dict()
    )
    abstract = abstract_state(
        experiment.recipe, tx, experiment.mesh, experiment.batch, sharding=config.sharding,
        shapes=experiment.shapes,
    )  # fmt: skip
    run = make_train_step(
        experiment.recipe, tx, experiment.mesh, total_steps=config.total_steps, layout=abstract,
        **_computed(config, experiment, lengths),
    )  # fmt: skip
    return tx, schedule, abstract, run


def build_diagnosis(config: ConfigDict, experiment: Experiment, lengths: Sequence[int] = ()) -> Callable:
    """`make_diagnosis` of the step of `config` (resolved); lengths as of `build_step`."""
    return make_diagnosis(experiment.recipe, experiment.mesh, **_computed(config, experiment, lengths))


def _computed(config: ConfigDict, experiment: Experiment, lengths: Sequence[int]) -> dict[str, Any]:
    """How a step and its diagnosis are computed, which changes results by rounding alone."""
    same = {name: config[name] for name in ("micro_batch", "loss_impl", "exchange_dtype", "attention")}
    return same | {"split": split_by_length(lengths, experiment.mesh, config.micro_batch)}
