"""What the frozen passes run with: the teacher's file of weights, and the codebook that another run has learned."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.convert.params_file import digests, fit, load_params
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import replicated
from smke_jax.parallel.process import check_same, failing_together
from smke_jax.training import record
from smke_jax.training.checkpoint import Checkpointer, Restored
from smke_jax.training.experiment import Experiment, batch_shapes, build_experiment, build_step, training_views
from smke_jax.training.recipe import blank_rows


def load_frozen(experiment: Experiment, shapes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters of the frozen passes, on the mesh, and {'teacher weights': digest, …} of what they came from."""
    frozen, identity = {}, {}
    with failing_together():
        for name, init in _inits(experiment, shapes).items():
            origin = experiment.config[name][ORIGINS[name][0]]
            if origin == "random":
                frozen[name], found = init(), {"weights": "random"}
            else:
                params, found = ORIGINS[name][1](origin, init, experiment.config, identity)
                frozen[name] = kernels_as(params, _dtype(experiment.config, name))
            identity |= {f"{name} {what}": digest for what, digest in found.items()}
    check_same(identity)
    return jax.device_put(frozen, replicated(experiment.mesh)), identity


def frozen_shapes(experiment: Experiment, shapes: dict[str, Any]) -> dict[str, Any]:
    """The same parameters as shapes."""
    return {name: jax.eval_shape(init) for name, init in _inits(experiment, shapes).items()}


def _inits(experiment, shapes):
    key, config = jax.random.key(experiment.config.seed + 1), experiment.config

    def init(p):
        return kernels_as(p.init(key, blank_rows(experiment.recipe, shapes, 1)), _dtype(config, p.name))

    frozen = [p for p in experiment.recipe.passes if not p.grad and p.average is None]
    return {p.name: jax.jit(lambda p=p: init(p)) for p in frozen}


def _dtype(config, name):
    return config[name].get("dtype", "float32")


CLASSIFIERS = ("fc/kernel", "head/kernel")  # a teacher's, which compute in fp32


def kernels_as(params: Any, dtype: str) -> Any:
    """`params` with the matrices that are only ever used in `dtype` stored in it: the same results, half the memory."""

    def cast(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(x, dtype) if name.endswith("kernel") and name not in CLASSIFIERS else x

    return jax.tree_util.tree_map_with_path(cast, params)


def _weights(path, init, config, identity):
    return fit(jax.eval_shape(init), load_params(path), source=path), digests(path)


def _codebook(workdir, init, config, identity):
    """The way down to the codes and the codes, of the newest checkpoint of a run with an autoencoder."""
    found, learner = restore_autoencoder(Path(workdir))
    theirs = learner.config
    if record.read_run(Path(workdir))["identity"]["teacher weights"] != identity["teacher weights"]:
        raise UserError(
            f"config.quantizer.run: the codes of {workdir} are of {theirs.teacher.checkpoint}, another teacher than "
            f"config.teacher.checkpoint {config.teacher.checkpoint}: give the one that they were learned with"
        )
    for field in ("num_codes", "code_dim"):
        if theirs.quantizer[field] != config.quantizer[field]:
            raise UserError(
                f"config.quantizer.{field} is {config.quantizer[field]} and was {theirs.quantizer[field]} in "
                f"{workdir}: set it so"
            )
    for field in ("final_norm", "image_size", "mean", "std"):
        if theirs.teacher[field] != config.teacher[field]:
            raise UserError(
                f"config.teacher.{field} is {config.teacher[field]} and was {theirs.teacher[field]} where the codes of "
                f"{workdir} were learned: set it so"
            )
    params = {"down": found.params["autoencoder"]["down"], "codes": found.train["slots"]["image_vq"]["codes"]}
    params = jax.device_get(params)
    content = hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(params)))
    return fit(jax.eval_shape(init), params, source=workdir), {"weights": content.hexdigest()}


def restore_autoencoder(workdir: Path) -> tuple[Restored, Experiment]:
    """The newest sound checkpoint of a run that learned codes, on all devices of this machine."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"config.quantizer.run: no run at {workdir}; train one there with configs/image_vq.py")
    config = record.read_config(workdir)
    if "autoencoder" not in config.passes:
        raise UserError(f"config.quantizer.run: {workdir} learned no codes: give a run of configs/image_vq.py")
    config.update(num_devices=0, sharding="replicated")  # however it was trained
    experiment = build_experiment(config, workdir)
    abstract = build_step(experiment, batch_shapes(config, training_views(config))).state
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore_latest(abstract.params, abstract.without_params())
    if found is None:
        raise UserError(f"config.quantizer.run: {workdir} has no checkpoint yet: train it first")
    return found, experiment


# {pass: (the field of its section of the config that says where from, (that, init, config, identity so far) ->
# (params, {what: digest}))}
ORIGINS = {"teacher": ("checkpoint", _weights), "quantizer": ("run", _codebook)}
