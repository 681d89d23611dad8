"""The training loop: evaluate → save → next batch → step.  It knows neither networks nor losses."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Figures
from smke_jax.evaluators.encode import Encoder
from smke_jax.networks.start import describe_origins, lost_temperatures, started
from smke_jax.parallel.mesh import put_batch, put_spread
from smke_jax.parallel.process import gather_rows, stop_requests
from smke_jax.parallel.rules import undivided
from smke_jax.tasks.base import BatchPlan
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.evaluation import write_figures
from smke_jax.training.frozen import load_frozen, networks_of
from smke_jax.training.lock import alone_in
from smke_jax.training.memory import memory_advice
from smke_jax.training.opening import Plan, open_run
from smke_jax.training.profiling import Profiler
from smke_jax.training.report import Reporter
from smke_jax.training.state import TrainState, count_parameters
from smke_jax.training.step import borrow, init_state, spread
from smke_jax.training.stored import StoredAsset, asset_folder
from smke_jax.training.writers import MetricWriter, Progress, peak_memory_gib

log = logging.getLogger("smke_jax")

COLLAPSED = 0.01  # 'embedding_std' of vectors with a mean cosine of 0.9999


class Outcome(NamedTuple):
    """How a run ended; `figures` are those of the last evaluation, by evaluator."""

    step: int
    params: Any
    figures: Mapping[str, Figures]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> Outcome:
    """Trains `config` in `workdir`, continuing what is there; returns early, saved, after a SIGTERM or Ctrl-C.

    Raises UserError for everything that the user can mend, before compilation where it can be seen by then.
    """
    workdir = Path(workdir)
    plan = open_run(config, workdir)
    experiment = plan.experiment
    batches = experiment.task.batches(
        BatchPlan(plan.batch_size, plan.seed, (jax.process_index(), jax.process_count()), frozenset(experiment.batch))
    )
    with (
        contextlib.closing(batches),
        alone_in(workdir),
        Checkpointer(workdir / "checkpoints", keep=plan.checkpoint_keep) as checkpoints,
        memory_advice(plan.remedies),
    ):
        loop = _Loop(plan, workdir, checkpoints, batches)
        del plan, experiment  # the loop lets go of the files that were read, when it has put them where they belong
        return loop.run()


class _Loop:
    """One run's state and files; `run` goes from the last checkpoint to the end."""

    def __init__(self, plan: Plan, workdir: Path, checkpoints: Checkpointer, batches):
        self.plan, self.workdir, self.checkpoints, self.batches = plan, workdir, checkpoints, batches
        self.recipe, self.mesh, self.task = plan.experiment.recipe, plan.experiment.mesh, plan.experiment.task
        self.warned = set()  # metrics whose collapse has been told
        self.reporter = Reporter(workdir) if plan.report and jax.process_index() == 0 else None
        for line in undivided(plan.abstract, self.mesh, spread(self.recipe)):
            log.warning("%s", line)
        self.splits = {name: self.task.split(x.split) for name, x in self.recipe.evaluators.items()}
        self.encoder = Encoder(
            plan.experiment.chosen, lambda p: {}, self.mesh,
            batch_size=plan.eval_batch_size, threads=self.task.threads, attention=plan.attention,
        )  # fmt: skip
        self.assets = self._assets()
        for name, evaluator in self.recipe.evaluators.items():
            if not evaluator.stored:
                continue
            stored = {k: x for asset in self.assets.values() for k, x in asset.columns(evaluator.split).items()}
            self.splits[name] = self.splits[name]._replace(columns={**self.splits[name].columns, **stored})
        needed = networks_of(self.recipe, self.recipe.forward)
        for name, evaluator in self.recipe.evaluators.items():
            there = {*self.splits[name].columns, *evaluator.adds}
            needed |= networks_of(self.recipe, plan.experiment.chosen(evaluator.needs, there))
        self.frozen = self._frozen(needed)
        whole = {name: x.whole() for name, x in self.assets.items() if x.asset.whole}
        if whole:
            self.frozen["assets"] = {name: put_spread(arrays, self.mesh) for name, arrays in whole.items()}

    def _frozen(self, names) -> dict[str, Any]:
        plan = self.plan
        return load_frozen(
            self.recipe, plan.experiment.shapes, plan.starts, self.mesh, seed=plan.seed, names=sorted(names)
        )

    def _assets(self) -> dict[str, StoredAsset]:
        """What is stored of frozen networks, made where it is not there yet."""
        if not self.recipe.assets:
            return {}
        plan, assets = self.plan, self.recipe.assets
        columns = self.task.split(self.task.train).columns
        making = {name: plan.experiment.chosen(asset.provides, columns) for name, asset in assets.items()}
        frozen = self._frozen(networks_of(self.recipe, [p for passes in making.values() for p in passes]))
        encode = self.encoder.with_parameters(lambda p: borrow(self.recipe, p, {}, {}, frozen, {}))
        return {
            name: StoredAsset(
                name,
                asset,
                encode,
                self.task,
                asset_folder(name, asset, self.workdir),
                widths={what: plan.experiment.shapes.arrays[what].shape[-1] for what in asset.provides},
                made_with=plan.experiment.made_with(making[name], plan.identity, plan.flat),
                before=plan.defaults,
                numbers=plan.experiment.numbers[name],
                seed=plan.seed,
                batch_size=plan.batch_size,
            )  # fmt: skip
            for name, asset in assets.items()
        }

    def run(self) -> Outcome:
        plan = self.plan
        state, start = self._initial_state()
        self.plan = plan = plan._replace(starts={})  # files that were read: their memory is free again
        step, figures, pending = start, {}, None
        progress = Progress(plan.total_steps, plan.batch_size, start)
        with (
            MetricWriter(self.workdir, tensorboard=plan.tensorboard) as writer,
            Profiler(self.workdir / "profile", plan.profile_steps) as profiler,
            stop_requests() as asked_to_stop,
        ):
            writer.truncate_after(start)
            while True:
                last = asked_to_stop(step) or step >= plan.total_steps
                due = [name for name in self.recipe.evaluators if self._is_due(name, step)]
                if step > start and (last or due or _multiple(step, plan.checkpoint_every)):
                    self._check(pending, state)  # waits for the step, so that the pause holds nothing of it
                    pending = None
                    with progress.pause():
                        found = {}
                        try:
                            for name in due:
                                found[name] = self._evaluate(name, state, step, writer)
                        except BaseException:  # save first: what cannot be read now must not cost the training
                            if jax.process_count() == 1:  # others are not at this line: a joint save would hang
                                self._save(state, step, {})
                            raise
                        figures = found or figures
                        self._save(state, step, found)
                        if found and self.reporter:
                            self.reporter.evaluated(step, last=last)
                if last:
                    break
                batch = self._next_batch(progress, state, step)
                step += 1
                on_devices = put_batch(batch, self.mesh)
                with profiler.step(step):
                    state, values = plan.run_step(state, self.frozen, on_devices)
                profiler.step_done(step, values)
                progress.step_done(values)
                self._check(pending, state)  # one step late, so that the device never waits for the host
                pending = (step, values, on_devices, batch["id"])
                del on_devices, batch  # `pending` alone holds them, and lets go of them before a pause
                if _multiple(step, plan.log_every) or step == plan.total_steps:
                    self._log(writer, progress, step, values)
        if step < plan.total_steps:
            where = f"step {step} of {plan.total_steps}"
            log.warning("stopped at %s, saved; the same command continues", where)
        return Outcome(step, state.params, figures)

    def _is_due(self, name: str, step: int) -> bool:
        return step >= self.plan.total_steps or _multiple(step, self.recipe.evaluators[name].every)

    def _next_batch(self, progress, state, step) -> dict[str, np.ndarray]:
        try:
            with progress.data_wait():
                batch = next(self.batches)
                for asset in self.assets.values():
                    if asset.asset.by_id:
                        batch = {**batch, **asset.rows(batch, step)}
        except UserError:  # data that has been damaged must not cost the training
            if step and jax.process_count() == 1:
                self._save(state, step, {})
            raise
        return {name: x for name, x in batch.items() if name in self.plan.experiment.batch}

    def _initial_state(self) -> tuple[TrainState, int]:
        """From the newest sound checkpoint, or fresh with what the networks start from."""
        plan = self.plan
        found = self.checkpoints.restore_latest(plan.abstract.params, plan.abstract.without_params())
        if found is None:
            state = init_state(
                self.recipe, plan.tx, self.mesh, plan.experiment.batch, seed=plan.seed, sharding=plan.sharding,
                shapes=plan.experiment.shapes,
            )  # fmt: skip
            state = state.replace(params=with_starts(state.params, plan.starts))
            log.info("%s parameters are trained", f"{count_parameters(state.params):,}")
            for name, start in plan.starts.items():
                if name in state.params:
                    said = describe_origins(name, state.params[name], start)
                    log.info("%s", "\n".join((*said, *lost_temperatures(name, state.params["terms"], start))))
            return state, 0
        self.batches.set_state(found.data)
        log.info("continuing from step %d of %s", found.step, self.workdir)
        return TrainState(params=found.params, **found.train), found.step

    def _log(self, writer, progress, step, values):
        scalars = {name: float(value) for name, value in jax.device_get(values).items()}
        self._warn_of_collapse(step, scalars)
        scalars["learning_rate"] = float(self.plan.schedule(step - 1))
        if damaged := getattr(self.batches, "damaged", 0):
            scalars["damaged_rows"] = damaged
        writer.write(step, {**scalars, **progress.log(step, scalars["loss"]), "peak_memory_gib": peak_memory_gib()})

    def _warn_of_collapse(self, step, scalars):
        """Says once of every metric that the embeddings of all examples have become nearly the same."""
        low = {k: v for k, v in scalars.items() if "embedding_std/" in k and v < COLLAPSED and k not in self.warned}
        if low and step > self.plan.watched_from:
            said = ", ".join(f"{k} {v:.2g}" for k, v in low.items())
            log.warning("step %d: all embeddings have become nearly the same (%s of at most 1)", step, said)
            self.warned.update(low)

    def _check(self, pending, state) -> None:
        """Stops where the loss or the gradients of an earlier step were not finite, keeping the ids of its batch."""
        if pending is None:
            return
        step, values, batch, ids = pending
        if np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"]):
            return
        name = self.plan.diagnose(state, self.frozen, batch, step - 1)
        path, ids = self.workdir / f"non-finite-step-{step}.json", gather_rows(ids)
        if jax.process_index() == 0:
            atomic.write_text(path, json.dumps({"step": step, "tensor": name, "ids": ids.tolist()}) + "\n")
        raise UserError(
            f"step {step}: {name or 'a gradient'} is not finite (loss {float(values['loss'])}); its batch's ids are in "
            f"{path}; look at those rows, or start another --workdir with a lower learning rate"
        )

    def _evaluate(self, name: str, state: TrainState, step: int, writer) -> Figures:
        evaluator, split = self.recipe.evaluators[name], self.splits[name]
        encode = self.encoder.with_parameters(
            lambda p: borrow(self.recipe, p, state.params, state.averages, self.frozen, state.slots)
        )
        figures = evaluator.run(encode, self.task, split)
        if jax.process_index() == 0:
            write_figures(self.workdir / "evals" / str(step) / name, figures)
            if self.reporter:
                self.reporter.keep_examples(name, step, figures)
            log.info("step %d\n%s", step, figures.summary)
        writer.write(step, {f"eval/{name}/{what}": value for what, value in figures.scalars.items()})
        return figures._replace(examples=None)  # they hold the embeddings of the whole split

    def _save(self, state: TrainState, step: int, found: Mapping[str, Figures]) -> None:
        """Writes a checkpoint, ranked by one evaluator: the first that has a scalar to rank by."""
        ranker = next((name for name, x in self.recipe.evaluators.items() if x.best), None)
        metric = self.recipe.evaluators[ranker].rank(found[ranker]) if ranker in found else None
        self.checkpoints.save(
            step, state.params, state.without_params(), self.batches.get_state(), {"identity": self.plan.identity},
            metric=metric,
        )  # fmt: skip


def with_starts(params: Any, starts) -> Any:
    """`params` with the weights that `starts` read put in, those of terms included."""
    for name, start in starts.items():
        if name in params:
            params = {**params, name: started(params[name], start)}
        terms = {term: own for term, own in start.terms.items() if term in params["terms"]}
        if terms:
            kept = {term: started(params["terms"][term], start._replace(params=own)) for term, own in terms.items()}
            params = {**params, "terms": {**params["terms"], **kept}}
    return params


def _multiple(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
