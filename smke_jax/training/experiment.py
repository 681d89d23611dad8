"""What a config names, checked and put together: mesh, tokenizer, recipe, optimiser, step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from PIL import Image

from smke_jax import atomic
from smke_jax.convert.params_file import read_description
from smke_jax.data.datasets import open_source
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from smke_jax.data.transforms import build_views
from smke_jax.errors import UserError
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.mesh import make_mesh, replicated
from smke_jax.parallel.process import check_shared, failing_together
from smke_jax.passes.base import only
from smke_jax.training import record
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import Recipe, build_recipe, init_params
from smke_jax.training.start import Part, read_parts, start_tokenizer, text_init
from smke_jax.training.step import abstract_state, make_train_step
from smke_jax.training.validation import validate


class Experiment(NamedTuple):
    """What training and evaluation share."""

    config: ConfigDict  # resolved: teacher fields and total_steps filled in
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer | None  # None for a recipe that reads no text
    recipe: Recipe

    def student(self):
        """The pass that makes the representations retrieval is done with, and nothing else."""
        for p in self.recipe.passes:
            if p.name == "student":
                return only(p, (f"{side}/{self.config.eval.level}" for side in ("image", "text")))
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
    return Experiment(config, build_mesh(config), tokenizer, recipe)


def build_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh over config.num_devices devices, laid out for config.sharding."""
    return make_mesh(config.num_devices or None, fsdp_size=config.fsdp_size if config.sharding == "fsdp" else 1)


class TrainingStep(NamedTuple):
    """The update of an experiment, not yet compiled."""

    tx: optax.GradientTransformation
    schedule: Callable  # step -> learning rate
    state: Any  # TrainState of shapes with their shardings
    run: Callable  # jitted (state, frozen, batch) -> (state, metrics)


def build_step(experiment: Experiment, shapes: dict[str, Any]) -> TrainingStep:
    """The optimiser and the train step of `experiment` for a global batch of `shapes`."""
    config, recipe, mesh = experiment.config, experiment.recipe, experiment.mesh
    tx, schedule = build_optimizer(config.optimizer, batch_size=config.batch_size, total_steps=config.total_steps)
    state = abstract_state(recipe, tx, mesh, shapes, sharding=config.sharding)
    run = make_train_step(
        recipe, tx, mesh, total_steps=config.total_steps, layout=state,
        micro_batch=config.micro_batch, loss_impl=config.loss_impl,
    )  # fmt: skip
    return TrainingStep(tx, schedule, state, run)


def _tokenizer(config, directory: Path, source) -> Tokenizer:
    # Process 0 alone looks at what is there and writes; on a network file system others may not see it before then.
    tokenizer = None
    with failing_together():
        if jax.process_index() == 0:
            tokenizer = _kept_tokenizer(config, directory, source)
    check_shared(directory)
    return tokenizer or load_tokenizer(directory)


def _kept_tokenizer(config, directory: Path, source) -> Tokenizer:
    if directory.is_dir() and (directory.parent / "run.json").exists():
        return load_tokenizer(directory)  # a folder without its run.json is left over from a refused command
    given = config.data.tokenizer or start_tokenizer(config)
    if given:
        tokenizer = load_tokenizer(given)
    elif text_init(config) != "random":
        raise UserError(
            f"{text_init(config)} came without its vocabulary: give config.data.tokenizer, one with vocab.txt"
        )
    elif source is None:
        raise UserError(f"no tokenizer at {directory}: this run did not get as far as writing one")
    else:
        captions = (caption for i in range(len(source)) for caption in source[i].captions)
        tokenizer = train_wordpiece(captions, config.data.vocab_size)
    shutil.rmtree(directory, ignore_errors=True)
    with atomic.replacing(directory) as neighbour:  # a run killed now must find a whole vocabulary, or none
        tokenizer.save(neighbour)
    return tokenizer


def open_training_data(config: ConfigDict):
    """(source of the training split, the function that makes its views)."""
    return open_source(config.data, config.data.split), training_views(config)


def training_views(config: ConfigDict):
    """The function that makes the views of a training image."""
    size = config.student.image.image_size
    uses_teacher = "teacher" in config.passes or "views" in config.passes
    return build_views(config.data, image_size=size, teacher_size=config.teacher.image_size if uses_teacher else size)


def batch_shapes(config: ConfigDict, views) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of one global batch, from one blank image."""
    rng = np.random.default_rng(0)
    arrays = views(Image.new("RGB", (64, 64)), rng)
    shapes = {k: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype) for k, x in arrays.items()}
    shapes["id"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    if "student" in config.passes:
        for name in ("text", "text_mask"):
            shapes[name] = jax.ShapeDtypeStruct((config.batch_size, config.data.max_length), jnp.int32)
    return shapes


def check_model(experiment: Experiment, shapes: dict[str, Any]) -> list[Part]:
    """Refuses a model that cannot be built, before anything is compiled; returns what it starts from."""
    try:
        params = jax.eval_shape(lambda key: init_params(experiment.recipe, key, shapes)[0], jax.random.key(0))
    except (ValueError, TypeError, KeyError, IndexError) as error:  # what is said of sizes that do not go together
        raise UserError(f"the model of this config cannot be built: {str(error).splitlines()[0]}") from None
    return read_parts(params, experiment.config) if "student" in params else []


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
    shapes = batch_shapes(config, training_views(config))
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
    if "autoencoder" in run.params:
        raise UserError("this run learned codes, which are no model by themselves: name it as config.quantizer.run")
    run.experiment.student()  # a run without either says so
    student = run.params["student"]
    sizes = {"vocab_size": run.experiment.tokenizer.vocab_size, "target_dim": student["head"]["bias"].shape[0]}
    use = {"level": config.eval.level, "max_length": config.data.max_length}
    fields = {k: v for k, v in config.student.to_dict().items() if k != "remat"}  # how it was trained, not what it is
    return student, {"type": "student", **sizes, **use, **fields}
