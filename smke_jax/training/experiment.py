"""Everything that a config names, opened and checked: tokenizer, recipe, teacher, initial weights, mesh."""

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from smke_jax import atomic
from smke_jax.convert.params_file import digests, fit, load_params, read_description
from smke_jax.data.datasets import open_source
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from smke_jax.data.transforms import build_views
from smke_jax.errors import UserError
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.mesh import make_mesh, replicated
from smke_jax.training import record
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.recipe import Recipe, build_recipe, init_params
from smke_jax.training.towers import Tower, read_towers, tower_tokenizer
from smke_jax.training.validation import validate


class Experiment(NamedTuple):
    """What training and evaluation share."""

    config: ConfigDict  # resolved: teacher fields and total_steps filled in
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer | None  # None for a recipe that reads no text
    recipe: Recipe

    def student(self):
        """The pass that makes the representations retrieval is done with."""
        for p in self.recipe.passes:
            if p.name == "student":
                return p
        raise UserError(f"this run has no student (its passes: {', '.join(p.name for p in self.recipe.passes)})")


def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of `config` whose teacher fields are those of its checkpoint file; refuses unknown names in it."""
    config = config.copy_and_resolve_references()
    validate(config)
    uses_teacher = "teacher" in config.passes
    if uses_teacher and not config.teacher.checkpoint:
        raise UserError("config.teacher.checkpoint is empty: give a safetensors file, or 'random' to try without one")
    if uses_teacher and config.teacher.checkpoint != "random":
        path = config.teacher.checkpoint
        model = read_description(path).get("model", {})
        if model.get("type") not in TEACHERS:
            raise UserError(
                f"{path} holds a model of type {model.get('type')!r}, which is no teacher: give a file of one of "
                f"{', '.join(sorted(TEACHERS))}, such as `smke export` writes of a self-supervised run"
            )
        if model.get("final_norm") is False and config.teacher.final_norm:
            raise UserError(f"{path} has no norm after its last layer: set config.teacher.final_norm=False")
        known = {*config.teacher, *TEACHERS[model["type"]].__dataclass_fields__}
        with config.teacher.unlocked():  # each type has fields of its own
            for key, value in model.items():
                if key not in known:
                    raise UserError(
                        f"{path} describes its model by {key!r}, which no teacher here has: convert it again"
                    )
                if key not in ("final_norm", "dtype"):  # how the features are used is the recipe's choice
                    config.teacher[key] = tuple(value) if isinstance(value, list) else value
    return config


def build_experiment(config: ConfigDict, workdir: Path, source=None) -> Experiment:
    """Opens what `config` (resolved) names; the tokenizer lives in `workdir` from its first use on.

    `source`, the training split, is only needed where the tokenizer is still to be trained on its captions.
    """
    tokenizer = _tokenizer(config, workdir / "tokenizer", source) if "student" in config.passes else None
    recipe = build_recipe(config, vocab_size=tokenizer and tokenizer.vocab_size)
    mesh = make_mesh(config.num_devices or None, fsdp_size=config.fsdp_size if config.sharding == "fsdp" else 1)
    return Experiment(config, mesh, tokenizer, recipe)


def _tokenizer(config, directory: Path, source) -> Tokenizer:
    if directory.is_dir() and (directory.parent / "run.json").exists():
        return load_tokenizer(directory)  # a folder without its run.json is left over from a refused command
    given = config.data.tokenizer or tower_tokenizer(config)
    if given:
        tokenizer = load_tokenizer(given)
    elif config.student.text.init != "random":
        raise UserError(
            f"{config.student.text.init} came without its vocabulary: give config.data.tokenizer, one with vocab.txt"
        )
    elif source is None:
        raise UserError(f"no tokenizer at {directory}: this run did not get as far as writing one")
    else:
        captions = (caption for i in range(len(source)) for caption in source[i].captions)
        tokenizer = train_wordpiece(captions, config.data.vocab_size)
    if jax.process_index() == 0:
        shutil.rmtree(directory, ignore_errors=True)
        with atomic.replacing(directory) as neighbour:  # a run killed now must find a whole vocabulary, or none
            tokenizer.save(neighbour)
    return tokenizer


def open_training_data(config: ConfigDict):
    """(source of the training split, the function that makes its views)."""
    return open_source(config.data, config.data.split), _views(config)


def _views(config):
    size = config.student.image.image_size
    uses_teacher = "teacher" in config.passes or "views" in config.passes
    return build_views(config.data, image_size=size, teacher_size=config.teacher.image_size if uses_teacher else size)


def batch_shapes(config: ConfigDict, views) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of one global batch, from one blank image."""
    rng = np.random.default_rng(0)
    arrays = views(np.zeros((64, 64, 3), np.uint8), rng)
    shapes = {k: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype) for k, x in arrays.items()}
    shapes["id"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    if "student" in config.passes:
        for name in ("text", "text_mask"):
            shapes[name] = jax.ShapeDtypeStruct((config.batch_size, config.data.max_length), jnp.int32)
    return shapes


def check_model(experiment: Experiment, shapes: dict[str, Any]) -> list[Tower]:
    """Refuses a model that cannot be built, before anything is compiled; returns the pretrained towers that fit it."""
    try:
        params = jax.eval_shape(lambda key: init_params(experiment.recipe, key, shapes)[0], jax.random.key(0))
    except (ValueError, TypeError, KeyError, IndexError) as error:  # what is said of sizes that do not go together
        raise UserError(f"the model of this config cannot be built: {str(error).splitlines()[0]}") from None
    return read_towers(params["student"], experiment.config) if "student" in params else []


def load_frozen(experiment: Experiment, shapes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters of the frozen passes, on the mesh, and {'teacher weights': digest, …} of what they came from."""
    frozen, identity = {}, {}
    for p in experiment.recipe.passes:
        if p.grad:
            continue
        path, rows = (
            experiment.config.teacher.checkpoint,
            {k: jnp.zeros((1, *x.shape[1:]), x.dtype) for k, x in shapes.items()},
        )
        init = jax.jit(lambda p=p, rows=rows: p.init(jax.random.key(experiment.config.seed + 1), rows))
        if path == "random":
            params, identity[f"{p.name} weights"] = init(), "random"
        else:
            params = fit(jax.eval_shape(init), load_params(path), source=path)
            identity |= {f"{p.name} {what}": digest for what, digest in digests(path).items()}
        frozen[p.name] = jax.device_put(
            kernels_as(params, experiment.config.teacher.dtype), replicated(experiment.mesh)
        )
    return frozen, identity


def kernels_as(params: Any, dtype: str) -> Any:
    """`params` with the matrices that are only ever used in `dtype` stored in it: the same results, half the memory."""

    def cast(path, x):
        return jnp.asarray(x, dtype) if jax.tree_util.keystr(path[-1:], simple=True) == "kernel" else x

    return jax.tree_util.tree_map_with_path(cast, params)


class TrainedRun(NamedTuple):
    """What a run directory holds after training: enough to evaluate and export, and no teacher, data or optimiser."""

    experiment: Experiment
    step: int
    params: Any
    record: dict  # run.json


def restore_run(workdir: Path, step: int | Literal["best"] | None = None) -> TrainedRun:
    """The newest sound, the best or a given checkpoint of the run in `workdir`, on all devices of this machine."""
    config = record.read_config(workdir)
    config.update(num_devices=0, sharding="replicated")  # however it was trained
    experiment = build_experiment(config, workdir)
    run = record.read_run(workdir)
    if experiment.tokenizer is not None and experiment.tokenizer.digest != run["identity"].get("tokenizer"):
        raise UserError(
            f"{workdir / 'tokenizer'} is not the vocabulary that this run was trained with "
            f"(it has {experiment.tokenizer.vocab_size} tokens): put the original back"
        )
    shapes = batch_shapes(config, _views(config))
    everywhere = replicated(experiment.mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda key: init_params(experiment.recipe, key, shapes)[0], jax.random.key(0)),
    )
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpoints:
        step, params, _ = checkpoints.restore_params(abstract, step)
    return TrainedRun(experiment, step, params, run)


def trained_network(run: TrainedRun) -> tuple[Any, dict]:
    """(parameters, description) of what a run is kept for: its student, or the encoder of a self-supervised run."""
    config = run.experiment.config
    if "views" in run.params:
        fields = {"type", "mean", "std", *TEACHERS[config.teacher.type].__dataclass_fields__}
        return run.params["views"]["encoder"], {k: v for k, v in config.teacher.items() if k in fields}
    run.experiment.student()  # a run without either says so
    student = run.params["student"]
    sizes = {"vocab_size": run.experiment.tokenizer.vocab_size, "target_dim": student["head"]["bias"].shape[0]}
    use = {"level": config.eval.level, "max_length": config.data.max_length}
    fields = {k: v for k, v in config.student.to_dict().items() if k != "remat"}  # how it was trained, not what it is
    return student, {"type": "student", **sizes, **use, **fields}
