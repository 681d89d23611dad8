"""What a run directory holds after training: enough to evaluate and export, without its data and optimiser."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Evaluator, Figures
from smke_jax.evaluators.encode import Encoder
from smke_jax.networks.base import Network
from smke_jax.parts import filled
from smke_jax.reporting.run_file import read_run
from smke_jax.tasks.base import Column, Split
from smke_jax.training import record
from smke_jax.training.build import Experiment, build_experiment, build_step, network_defaults, read_starts
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.frozen import load_frozen, networks_of
from smke_jax.training.recipe import merge
from smke_jax.training.step import abstract_state, borrow
from smke_jax.training.stored import asset_folder, kept_columns

log = logging.getLogger("smke_jax")

IMAGE_TEXT = ("student", "fused_towers")  # models that embed images and captions by themselves


class TrainedRun(NamedTuple):
    """A run and one of its checkpoints.

    record: its run.json
    config: its config.json, nested
    """

    experiment: Experiment
    step: int
    params: Any
    record: dict
    config: dict
    workdir: Path

    def frozen(self, names: Iterable[str]) -> dict[str, Any]:
        """{network: parameters that are not trained} of the networks `names`, read from their files."""
        names = sorted(names)
        experiment = self.experiment
        wanted = [name for name in names if experiment.recipe.networks[name].trained is not True]
        starts = read_starts(experiment, wanted)
        return load_frozen(
            experiment.recipe, experiment.shapes, starts, experiment.mesh, seed=self.config["seed"], names=wanted
        )

    def encoder(self) -> Encoder:
        """Runs passes with the parameters of this checkpoint."""
        recipe, frozen, train = self.experiment.recipe, {}, {}

        def own(p):
            missing = networks_of(recipe, (p,)) - frozen.keys()
            frozen.update(dict.fromkeys(missing, {}) | self.frozen(missing))
            if not train and (p.reads or any(recipe.networks[name].average for name in p.networks)):
                train.update(_train_state(self))
            return borrow(recipe, p, self.params, train.get("averages", {}), frozen, train.get("slots", {}))

        return Encoder(
            self.experiment.chosen, own, self.experiment.mesh, batch_size=self.config["eval_batch_size"],
            threads=self.experiment.task.threads, attention=self.config["attention"],
        )  # fmt: skip

    def evaluate(self, evaluator: Evaluator, split: Split | None = None) -> Figures:
        """What `evaluator` finds, on its own split or another one; of its own it reads what training has kept."""
        task = self.experiment.task
        if split is None:
            split = task.split(evaluator.split)
            if evaluator.stored:
                split = split._replace(columns={**split.columns, **self._kept(evaluator.split, split)})
        return evaluator.run(self.encoder(), task, split)

    def _kept(self, name: str, split: Split) -> dict[str, Column]:
        """What the assets of the run hold of the split called `name`."""
        before, flat, found = network_defaults(ConfigDict(self.config)), record.flatten(self.config), {}
        assets = {x: asset for x, asset in self.experiment.recipe.assets.items() if name in asset.evaluated}
        for asset_name, asset in assets.items():
            passes = self.experiment.chosen(asset.provides, split.columns)
            made_with = self.experiment.made_with(passes, self.record["identity"], flat)
            directory = asset_folder(asset_name, asset, self.workdir)
            found |= kept_columns(directory, asset, name, split, made_with=made_with, before=before)
        if found:
            log.info("%s of %s: as training has kept them", ", ".join(found), split.name)
        return found


def restore_run(workdir: str | Path, step: int | Literal["best"] | None = None) -> TrainedRun:
    """The newest sound, the best or a given checkpoint of the run in `workdir`, on all devices of this machine."""
    workdir = Path(workdir)
    config, run = filled(record.read_config(workdir)), read_run(workdir)
    config.update(num_devices=0, sharding="replicated")  # however it was trained
    experiment = build_experiment(config, workdir, run["facts"], run.get("networks"))
    words = experiment.task.tokenizer
    if words is not None and words.digest != run["identity"].get("tokenizer"):
        raise UserError(
            f"{workdir / 'tokenizer'} is not the vocabulary that this run was trained with "
            f"(it has {words.vocab_size} tokens): put the original back"
        )
    abstract = abstract_state(
        experiment.recipe, optax.identity(), experiment.mesh, experiment.batch, shapes=experiment.shapes
    )
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpoints:
        step, params, _ = checkpoints.restore_params(abstract.params, step)
    return TrainedRun(experiment, step, params, run, config.to_dict(), workdir)


def exported(run: TrainedRun) -> tuple[Any, dict]:
    """(parameters, description) of what a run is kept for: the first of its trained networks that can be exported.

    A network that is of no use without others comes with them, as a model of type 'aligned': the parameters are those
    of all by the network's name, and so are the descriptions in 'networks', in the order in which they run.
    Raises UserError for a run without one.
    """
    networks = run.experiment.recipe.networks
    parts = {name: _parts(run, network) for name, network in networks.items()}
    inside = {part for others in parts.values() for part in others}
    for name, network in networks.items():
        if network.export is None or name not in run.params or name in inside:
            continue
        if not parts[name]:
            params, description = _own(run, name)
            return params, {**description, **_use(run)} if description["type"] in IMAGE_TEXT else description
        found = {part: _own(run, part) for part in (*parts[name], name)}
        descriptions = {part: description for part, (_, description) in found.items()}
        words = {key: own[key] for own in descriptions.values() for key in ("vocab_size",) if key in own}
        whole = {"type": "aligned", "networks": descriptions, **words, **_use(run)}
        return {part: params for part, (params, _) in found.items()}, whole
    raise UserError(f"no network of this run can be exported (it has {', '.join(networks)})")


def _parts(run: TrainedRun, network: Network) -> tuple[str, ...]:
    """The networks that make what `network` is of no use without."""
    makers = {array: p.networks for p in run.experiment.recipe.passes for array in p.provides}
    if unmade := [array for array in network.export_with if array not in makers]:
        raise UserError(f"{unmade[0]} is made by no network of this run: what reads it cannot be exported")
    return tuple(dict.fromkeys(name for array in network.export_with for name in makers[array]))


def _own(run: TrainedRun, name: str) -> tuple[Any, dict]:
    """(parameters, description) of one network."""
    network = run.experiment.recipe.networks[name]
    if network.export is None:
        raise UserError(f"the network {name!r} is needed for the export and cannot be exported itself")
    slots = jax.device_get(_train_state(run)["slots"]) if network.export_reads else {}
    return network.export(merge(run.params.get(name, {}), run.frozen((name,)).get(name, {})), slots)


def _use(run: TrainedRun) -> dict:
    """How the exported model is used: what its evaluators compare, the length of its texts, its temperatures."""
    levels = [part["level"] for part in run.config["evaluators"].values() if "level" in part]
    terms = jax.device_get(run.params["terms"])
    scales = {
        name: {level: float(value) for level, value in own["logit_scale"].items()}
        for name, own in terms.items() if "logit_scale" in own
    }  # fmt: skip
    length = {"max_length": run.config["task"]["max_length"]} if "max_length" in run.config["task"] else {}
    return {"level": levels[0] if levels else "out", **length, "logit_scales": scales}


def _train_state(run: TrainedRun) -> dict[str, Any]:
    """What the newest sound checkpoint holds besides parameters: 'averages', 'slots' and the optimiser's state."""
    config = filled(record.read_config(run.workdir))
    config.update(num_devices=0, sharding="replicated")
    _, _, abstract, _ = build_step(config, run.experiment)
    with Checkpointer(run.workdir / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore_latest(abstract.params, abstract.without_params())
    if found is None or found.step != run.step:
        raise UserError(
            f"averages, banks and codes of {run.workdir} are read from its newest checkpoint alone: leave --step out"
        )
    return dict(found.train)
