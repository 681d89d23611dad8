"""The training loop: evaluate → save → next batch → step.  No maths."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from smke_jax import atomic
from smke_jax.data.datasets import open_source
from smke_jax.data.pipeline import make_rows, train_batches
from smke_jax.errors import UserError
from smke_jax.evaluation.embed import make_encoder
from smke_jax.evaluation.evaluate import evaluate_retrieval
from smke_jax.evaluation.ranks import write_ranks
from smke_jax.evaluation.retrieval import format_table, write_json
from smke_jax.parallel.mesh import check_batch_size, put_batch
from smke_jax.parallel.process import check_same, failing_together, gather_rows, stop_requests
from smke_jax.parallel.rules import undivided
from smke_jax.training import record
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.experiment import (
    Experiment,
    batch_shapes,
    build_experiment,
    build_step,
    check_model,
    open_training_data,
    resolve,
)
from smke_jax.training.frozen import load_frozen
from smke_jax.training.kept_targets import KeptTargets, with_kept_targets
from smke_jax.training.memory import memory_advice
from smke_jax.training.profiling import Profiler
from smke_jax.training.start import describe_origins, load_parts
from smke_jax.training.state import TrainState, count_parameters
from smke_jax.training.step import bad_names, init_state
from smke_jax.training.writers import MetricWriter, Progress, peak_memory_gib

log = logging.getLogger("smke_jax")

COLLAPSED = 0.01  # 'embedding_std' of vectors with a mean cosine of 0.9999,
WATCHED_FROM = 100  # steps, and the warm-up: embeddings of random weights can be as near to each other


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    params: Any
    metrics: dict | None  # of the last evaluation, where there was one


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> Outcome:
    """Trains `config` in `workdir`, continuing what is there; returns early, saved, after a SIGTERM.

    Raises UserError for everything that the user can mend, before compilation where it can be seen by then.
    """
    workdir = Path(workdir)
    with failing_together():
        config = resolve(config)
        source, views = open_training_data(config)
        config.total_steps = _total_steps(config, source)
        config.epochs = 0.0
        for term in config.terms.values():
            if "num_images" in term:  # known once the data is open
                term.num_images = len(source)
    check_same({**record.flatten(config), "data": source.digest})
    workdir.mkdir(parents=True, exist_ok=True)
    experiment = build_experiment(config, workdir, source)
    check_batch_size(config.batch_size, experiment.mesh, config.micro_batch)
    shapes = batch_shapes(config, views)
    with failing_together():
        initial = check_model(experiment, shapes)
        # Opened now, so that a split that is not there is not found out after hours of training.
        retrieves = "student" in config.passes and config.eval.split
        gallery = open_source(config.data, config.eval.split) if retrieves else None
    frozen, teacher_identity = load_frozen(experiment, shapes)
    identity = {"data": source.digest, **teacher_identity}
    identity |= {f"{part.name} {what}": digest for part in initial for what, digest in part.digests.items()}
    if experiment.tokenizer is not None:
        identity["tokenizer"] = experiment.tokenizer.digest
    check_same(identity)
    # The teacher sees nothing in training where its features are kept.
    views = dataclasses.replace(views, teacher_view="same") if config.teacher.cache else views
    batches = train_batches(
        source, views, batch_size=config.batch_size, seed=config.seed, unit=config.data.unit,
        tokenizer=experiment.tokenizer, max_length=config.data.max_length,
        process=(jax.process_index(), jax.process_count()), threads=config.data.threads,
    )  # fmt: skip
    record.check_or_write(workdir, config, identity)  # last: what was refused above leaves the directory free
    kept = None
    with (
        contextlib.closing(batches),
        Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep) as checkpoints,
        memory_advice(config, experiment.mesh.size),
    ):
        if config.teacher.cache:
            kept = KeptTargets(experiment.recipe, frozen, source, workdir / "targets", config, experiment.mesh)
            experiment = experiment._replace(recipe=with_kept_targets(experiment.recipe))
            frozen["teacher"] = {}
            shapes = batch_shapes(config, views) | kept.shapes(config.batch_size)
        return _Loop(experiment, workdir, frozen, kept, initial, shapes, checkpoints, identity, gallery).run(batches)


def _total_steps(config, source) -> int:
    if bool(config.total_steps) == bool(config.epochs):
        raise UserError(
            f"give either config.total_steps or config.epochs (they are {config.total_steps} and {config.epochs})"
        )
    rows = len(make_rows(source.num_captions, config.data.unit))
    return config.total_steps or max(1, int(config.epochs * (rows // config.batch_size)))


class _Loop:
    """One run's compiled step, state and files; `run` goes from the last checkpoint to the end."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        frozen,
        kept: KeptTargets | None,
        initial,
        shapes,
        checkpoints: Checkpointer,
        identity,
        gallery,
    ):
        self.experiment, self.config = experiment, experiment.config
        self.workdir, self.frozen, self.initial, self.shapes = workdir, frozen, initial, shapes
        self.warned = False
        self.kept, self.checkpoints, self.identity, self.gallery = kept, checkpoints, identity, gallery
        self.tx, self.schedule, self.abstract, self.step_fn = build_step(experiment, shapes)
        for line in undivided(self.abstract, experiment.mesh):
            log.warning("%s", line)
        self.encode = None if gallery is None else make_encoder(experiment.student().run, experiment.mesh)

    def run(self, batches) -> Outcome:
        config = self.config
        state, start = self._initial_state(batches)
        step, metrics, pending = start, None, None
        progress = Progress(config.total_steps, config.batch_size, start)
        with (
            MetricWriter(self.workdir, tensorboard=config.log.tensorboard) as writer,
            Profiler(self.workdir / "profile", config.profile_steps) as profiler,
            stop_requests() as asked_to_stop,
        ):
            writer.truncate_after(start)
            while True:
                last = asked_to_stop(step) or step >= config.total_steps
                if step > start and (last or self._due(step)):
                    pending = self._check(pending)  # waits for the step, so that the pause holds nothing of it
                    with progress.pause():
                        evaluated = None
                        due = step >= config.total_steps or _multiple(step, config.eval.every)
                        if due and self.gallery is not None:
                            try:
                                evaluated = metrics = self._evaluate(state, step, writer)
                            except BaseException:  # a gallery that cannot be read must not cost the training
                                if jax.process_count() == 1:  # the others wait elsewhere and could not save with it
                                    self._save(state, step, batches, None)
                                raise
                        self._save(state, step, batches, evaluated)
                if last:
                    break
                with progress.data_wait():
                    batch = next(batches)
                    if self.kept is not None:
                        batch |= self.kept.rows(batch["id"])
                step += 1
                with profiler.step(step):
                    state, values = self.step_fn(state, self.frozen, put_batch(batch, self.experiment.mesh))
                profiler.step_done(step, values)
                progress.step_done(values)
                self._check(pending)  # one step late, so that the device never waits for the host
                pending = (step, values, batch["id"])
                if _multiple(step, config.log.every) or step == config.total_steps:
                    self._log(writer, progress, step, values)
        if step < config.total_steps:
            where = f"step {step} of {config.total_steps}"
            log.warning("stopped by SIGTERM at %s, saved; the same command continues", where)
        return Outcome(step, state.params, metrics)

    def _due(self, step: int) -> bool:
        return _multiple(step, self.config.eval.every) or _multiple(step, self.config.checkpoint.every)

    def _initial_state(self, batches) -> tuple[TrainState, int]:
        """From the newest sound checkpoint, or fresh with what the config names to start from."""
        found = self.checkpoints.restore_latest(self.abstract.params, self.abstract.without_params())
        if found is None:
            state = init_state(
                self.experiment.recipe, self.tx, self.experiment.mesh, self.shapes,
                seed=self.config.seed, sharding=self.config.sharding,
            )  # fmt: skip
            state = state.replace(params=load_parts(state.params, self.initial))
            log.info("%s parameters are trained", f"{count_parameters(state.params):,}")
            if self.initial:
                log.info("%s", "\n".join(describe_origins(state.params, self.initial)))
            return state, 0
        batches.set_state(found.data)
        log.info("continuing from step %d of %s", found.step, self.workdir)
        return TrainState(params=found.params, **found.train), found.step

    def _log(self, writer, progress, step, values):
        scalars = {k: float(v) for k, v in jax.device_get(values).items() if k != "first_bad"}
        self._warn_of_collapse(step, scalars)
        scalars["learning_rate"] = float(self.schedule(step - 1))
        writer.write(step, {**scalars, **progress.log(step, scalars["loss"]), "peak_memory_gib": peak_memory_gib()})

    def _warn_of_collapse(self, step, scalars):
        """Says once that the embeddings of all examples have become nearly the same."""
        low = {k: v for k, v in scalars.items() if k.startswith("embedding_std/") and v < COLLAPSED}
        warmup = self.config.optimizer.warmup_fraction * self.config.total_steps
        if low and step > max(WATCHED_FROM, warmup) and not self.warned:
            said = ", ".join(f"{k} {v:.2g}" for k, v in low.items())
            log.warning("step %d: all embeddings have become nearly the same (%s of at most 1)", step, said)
            self.warned = True

    def _check(self, pending) -> None:
        """Stops at the first non-finite tensor of an earlier step, keeping the ids of its batch."""
        if pending is None or int(pending[1]["first_bad"]) < 0:
            return None
        step, values, ids = pending
        name = bad_names(self.experiment.recipe, self.shapes, self.abstract.params)[int(values["first_bad"])]
        path, ids = self.workdir / f"non-finite-step-{step}.json", gather_rows(ids)
        if jax.process_index() == 0:
            atomic.write_text(path, json.dumps({"step": step, "tensor": name, "ids": ids.tolist()}) + "\n")
        raise UserError(
            f"step {step}: {name} is not finite (loss {float(values['loss'])}); its batch's ids are in {path}; "
            "look at those images, or start another --workdir with a lower learning rate"
        )

    def _evaluate(self, state, step, writer) -> dict:
        config = self.config
        result = evaluate_retrieval(
            self.encode, state.params["student"], self.gallery, self.experiment.tokenizer, config, self.experiment.mesh,
            dataset=f"{self.gallery.dataset} {config.eval.split}",
        )  # fmt: skip
        metrics = result.metrics
        if jax.process_index() == 0:
            path = self.workdir / "evals" / str(step) / "retrieval.json"
            write_ranks(path.with_suffix(".npz"), result.ranks)
            write_json(path, metrics)
            log.info("step %d\n%s", step, format_table(metrics))
        directions = ("image_to_text", "text_to_image")
        writer.write(step, {f"eval/{d}/{k}": v for d in directions for k, v in metrics[d].items()})
        return metrics

    def _save(self, state, step, batches, evaluated):
        self.checkpoints.save(
            step, state.params, state.without_params(), batches.get_state(), {"identity": self.identity},
            metric=evaluated["recall_sum"] if evaluated else None,
        )  # fmt: skip


def _multiple(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
