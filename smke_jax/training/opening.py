"""What a run needs before its first step: opened, checked and recorded."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from ml_collections import ConfigDict

from smke_jax.errors import UserError
from smke_jax.networks.base import Start
from smke_jax.parallel.mesh import check_batch_size, rows_at_once
from smke_jax.parallel.process import check_same, failing_together
from smke_jax.parts import at_defaults, filled
from smke_jax.passes.by_length import FEWEST, of_captions, parts_of, share_of_tokens
from smke_jax.reporting.run_file import read_run
from smke_jax.selections.base import Selection
from smke_jax.tasks.base import Task, caption_lengths
from smke_jax.training import record
from smke_jax.training.build import (
    Experiment,
    build_diagnosis,
    build_experiment,
    build_step,
    network_defaults,
    read_starts,
    resolve,
)
from smke_jax.training.memory import remedies
from smke_jax.training.optimizer import peak_rate

log = logging.getLogger("smke_jax")

MANY_EPOCHS = 100  # more of them than this are warned about
STEEP = 8  # a learning rate more than this many times that of the reference batch is warned about
# No collapse is reported before this step, nor during warm-up: random weights also give embeddings close to each other.
WATCHED_FROM = 100


class Plan(NamedTuple):
    """A run that is ready to begin: records and plain values.

    tx, schedule:  the optimiser, and step -> learning rate
    abstract:      TrainState of shapes with their shardings
    run_step:      jitted (state, frozen, batch) -> (state, metrics)
    diagnose:      see `make_diagnosis`
    starts:        {network: what it begins with}
    identity:      digests of what a config only names: data, vocabulary, weights
    flat, text:    the config, flattened and as JSON
    defaults:      of the fields of networks, see `network_defaults`
    watched_from:  the step from which on collapsed embeddings are reported
    """

    experiment: Experiment
    tx: optax.GradientTransformation
    schedule: Callable
    abstract: Any
    run_step: Callable
    diagnose: Callable
    starts: Mapping[str, Start]
    identity: dict[str, str]
    flat: dict[str, Any]
    text: str
    defaults: dict[str, str]
    seed: int
    batch_size: int
    total_steps: int
    sharding: str
    eval_batch_size: int
    attention: str
    checkpoint_every: int
    checkpoint_keep: int
    log_every: int
    tensorboard: bool
    report: bool
    profile_steps: tuple[int, ...]
    watched_from: int
    remedies: list[str]


def open_run(config: ConfigDict, workdir: Path) -> Plan:
    """Opens and checks everything that a run of `config` in `workdir` needs, and writes its record.

    Raises UserError for everything that the user can mend and that can be seen before compilation.  What is refused
    leaves `workdir` as it was, but for a vocabulary.
    """
    with failing_together():
        config = resolve(config)
        record.check_workdir(workdir)
        begun = (workdir / "run.json").exists()
        run = read_run(workdir) if begun else {}
        recorded = record.flatten(filled(record.read_config(workdir))) if begun else {}
    check_same(record.flatten(config))
    workdir.mkdir(parents=True, exist_ok=True)
    experiment = build_experiment(config, workdir, run.get("facts"), run.get("networks"))
    check_batch_size(config.batch_size, experiment.mesh, config.micro_batch)
    with failing_together():
        config.total_steps, config.epochs = total_steps(config, experiment.task), 0.0
        if (rows := experiment.task.length()) < config.batch_size:
            raise UserError(f"an epoch has {rows} rows, fewer than one batch of {config.batch_size}: lower batch_size")
        starts = read_starts(experiment)
        identity = _identity(experiment, starts)
        _check_makers(config, experiment, starts)
        for evaluator in experiment.recipe.evaluators.values():  # what is not there must not be found out after hours
            split = experiment.task.split(evaluator.split)
            evaluator.check_passes(experiment.chosen(evaluator.needs, {*split.columns, *evaluator.adds}))
            evaluator.check(experiment.task, split)
        for item in experiment.recipe.forward:
            if isinstance(item, Selection):
                item.check(experiment.task, experiment.numbers, experiment.recipe.assets)
        lengths = _lengths(config, experiment)
    check_same(identity)
    tx, schedule, abstract, run_step = build_step(config, experiment, lengths)
    flat = record.flatten(config)
    networks = {name: dict(x.described) for name, x in experiment.recipe.networks.items() if x.described}
    facts = {"identity": identity, "facts": dict(experiment.task.facts), "networks": networks}
    facts["data"] = _counts(experiment)
    record.check_or_write(workdir, flat, config.to_json(indent=2), facts, recorded)
    _warn_of_length(config, experiment.task)
    if left_out := [name for name in config.terms if name not in experiment.recipe.terms]:
        log.info("terms of weight 0 are neither computed nor logged: %s", ", ".join(left_out))
    return Plan(
        experiment, tx, schedule, abstract, run_step,
        diagnose=build_diagnosis(config, experiment, lengths),
        starts=starts,
        identity=identity,
        flat=flat,
        text=config.to_json(indent=2),
        defaults=network_defaults(config),
        seed=config.seed,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        sharding=config.sharding,
        eval_batch_size=config.eval_batch_size,
        attention=config.attention,
        checkpoint_every=config.checkpoint.every,
        checkpoint_keep=config.checkpoint.keep,
        log_every=config.log.every,
        tensorboard=config.log.tensorboard,
        report=config.log.report,
        profile_steps=tuple(config.profile_steps),
        watched_from=max(WATCHED_FROM, int(config.optimizer.warmup_fraction * config.total_steps)),
        remedies=remedies(flat, experiment.mesh.size),
    )  # fmt: skip


def _counts(experiment: Experiment) -> list[dict[str, Any]]:
    """What the splits hold that are trained and evaluated on, for the record of the run."""
    task, evaluators = experiment.task, experiment.recipe.evaluators.values()
    splits = dict.fromkeys((task.train, *(evaluator.split for evaluator in evaluators)))
    return [{"split": split, **counts} for split in splits for counts in task.counts(split)]


def total_steps(config: ConfigDict, task: Task) -> int:
    """The steps of a run, from config.total_steps or config.epochs."""
    if bool(config.total_steps) == bool(config.epochs):
        raise UserError(
            f"give either config.total_steps or config.epochs (they are {config.total_steps} and {config.epochs})"
        )
    return config.total_steps or max(1, int(config.epochs * (task.length() // config.batch_size)))


def _identity(experiment: Experiment, starts: Mapping[str, Start]) -> dict[str, str]:
    """Digests of the data and of every file of weights; refuses files that were made with other ones."""
    identity = dict(experiment.task.identity())
    for name, network in experiment.recipe.networks.items():
        if name in starts:
            identity |= {f"{name} {what}": digest for what, digest in starts[name].digests.items()}
        elif network.trained is False and network.average is None:
            identity[f"{name} weights"] = "random"
    for name, start in starts.items():
        expects = dict(start.expects)
        for array, digests in start.expects_of.items():
            maker = _maker(experiment, array)
            expects |= {f"{maker} {what}": digest for what, digest in digests.items()}
        for what, digest in expects.items():
            if identity.get(what) != digest:
                there, here = (str(x)[:20] for x in (digest, identity.get(what)))
                field = "config.task.tokenizer" if what == "tokenizer" else "config"
                running = "; of running text, --tokenizer of `smke prepare text`" if what == "tokenizer" else ""
                raise UserError(
                    f"config.networks.{name} starts from a file that was made with another {what} ({there} there, "
                    f"{here} here): set {field} to the one that it was made with{running}"
                )
    return identity


def _maker(experiment: Experiment, array: str) -> str:
    """The network that makes `array`."""
    return next(p for p in experiment.recipe.passes if array in p.provides).networks[0]


def _check_makers(config: ConfigDict, experiment: Experiment, starts: Mapping[str, Start]) -> None:
    """Raises UserError where a network starts from a file that was trained with features made in another way."""
    for name, start in starts.items():
        for array, fields in start.made_by.items():
            maker = _maker(experiment, array)
            known = at_defaults(config.networks[maker], maker).to_dict() | config.networks[maker].to_dict()
            own = {"close_up": 1.0} | known  # a network without the field makes no close-ups
            for field, theirs in fields.items():
                if own.get(field, theirs) != theirs:
                    remedy = f"set config.networks.{maker}.{field}={theirs}"
                    raise UserError(
                        f"config.networks.{name} starts from a file that was trained on features of {field}={theirs}, "
                        f"and {array} has {own[field]}: {remedy if field in known else 'give another file'}"
                    )


def _lengths(config: ConfigDict, experiment: Experiment) -> np.ndarray:
    """Of captions, where steps will run them in parts by length; empty elsewhere.  Says what the parts are."""
    rows = rows_at_once(config.batch_size, experiment.mesh.size, config.micro_batch)
    in_vectors = lambda p: all(experiment.shapes.arrays[name].ndim == 2 for name in p.provides)  # noqa: E731
    can_be_cut = any(of_captions(p) and in_vectors(p) for p in experiment.recipe.forward)
    if not config.split_by_length or rows < FEWEST or not can_be_cut:
        return np.zeros(0, int)
    lengths = caption_lengths(experiment.task)
    parts = parts_of(lengths, rows, experiment.whole["text"].shape[1], experiment.mesh.size)
    if len(parts) > 1:
        said = ", ".join(f"{count} at {own} tokens" for count, own in parts)
        log.info("the captions of a device run in parts by length, %s: %.0f %% of the tokens at full width",
                 said, 100 * share_of_tokens(parts))  # fmt: skip
    return lengths


def _warn_of_length(config: ConfigDict, task: Task) -> None:
    epochs = config.total_steps * config.batch_size / task.length()
    optimizer = config.optimizer
    rate = peak_rate(
        optimizer.learning_rate, batch_size=config.batch_size, reference_batch=optimizer.reference_batch,
        sqrt_above=optimizer.sqrt_above,
    )  # fmt: skip
    log.info("%s steps of %s are %.3g epochs; the learning rate rises to %.3g",
             f"{config.total_steps:,}", f"{config.batch_size:,}", epochs, rate)  # fmt: skip
    if rate > STEEP * optimizer.learning_rate and not optimizer.sqrt_above:
        log.warning(
            "the learning rate is %.0f times that of the reference batch: config.optimizer.sqrt_above=%d lets it grow "
            "with the square root of the batch, config.optimizer.reference_batch=0 takes it as it is",
            rate / optimizer.learning_rate, 4 * optimizer.reference_batch,
        )  # fmt: skip
    if epochs > MANY_EPOCHS:
        log.warning("%.0f epochs: config.epochs or config.total_steps says how long a run is", epochs)
