"""From a config to what a step computes: passes and weighted terms, checked before anything is compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.quantizer import Autoencoder, Quantizer
from smke_jax.models.student import build_student
from smke_jax.models.teachers import build_teacher, stand_in_head
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term
from smke_jax.passes.base import Pass, only
from smke_jax.passes.frozen import teacher_pass
from smke_jax.passes.momentum import momentum_pass
from smke_jax.passes.quantizer import autoencoder_pass, quantizer_pass
from smke_jax.passes.student import student_pass
from smke_jax.passes.views import ProjectedEncoder, views_pass


class Recipe(NamedTuple):
    """What is trained on what.

    passes:  in order; the trained ones own params[pass.name], those of averages ema[pass.name], the frozen ones
             frozen[pass.name].  A step asks of them what `needs` names
    terms:   {name: Term}, owning params['terms'][name] and slots[name]
    weights: {name: schedule of training progress in [0, 1] -> weight}
    """

    passes: tuple[Pass, ...]
    terms: dict[str, Term]
    weights: dict[str, Callable[[jax.Array], jax.Array]]

    @property
    def needs(self) -> frozenset[str]:
        """Representations that the terms read, passes of those before them, and those that passes have watched."""
        read = (x.needs for x in (*self.terms.values(), *self.passes))
        return frozenset().union(*read, *(p.watched for p in self.passes))


def build_recipe(config, *, vocab_size: int | None) -> Recipe:
    """The recipe of `config.passes` and `config.terms`; `vocab_size` None where no text is read.

    Raises UserError for unknown names and arguments, and for a representation that a term needs and no pass makes.
    """
    passes = tuple(_lookup(PASSES, name, "pass")(config, vocab_size) for name in config.passes)
    if not any(p.grad for p in passes):
        raise UserError(f"config.passes {tuple(config.passes)} trains nothing: add one of {sorted(TRAINED)}")
    for p in passes:
        if p.average and p.average.of not in config.passes:
            raise UserError(f"the pass {p.name!r} follows {p.average.of!r}, which is not among config.passes: add it")
    terms, weights = {}, {}
    for name, options in config.terms.items():
        options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in options.items()}
        weight, final = options.pop("weight", 1.0), options.pop("final_weight", None)
        if weight == 0 and not final:
            continue
        make = _lookup(TERMS, options.pop("type", name), "term")
        try:
            terms[name] = make(**options)
        except TypeError as error:
            raise UserError(f"config.terms.{name}: {error}") from None
        weights[name] = _ramp(weight, weight if final is None else final)
    if not terms:
        raise UserError("config.terms is empty or all its weights are 0: nothing would be learned")
    _check_needs(passes, terms)
    _check_reads(passes, terms)
    return Recipe(passes, terms, weights)


def _check_needs(passes, terms):
    provided = {"id"}.union(*(p.provides for p in passes))
    for name, term in terms.items():
        missing = sorted(set(term.needs) - provided)
        if missing:
            raise UserError(
                f"config.terms.{name} needs {', '.join(missing)}, which none of the passes "
                f"({', '.join(p.name for p in passes)}) provides; they provide {', '.join(sorted(provided))}"
            )


def _check_reads(passes, terms):
    provided = set()
    for p in passes:
        missing = [name for name in p.needs if name not in provided]
        if missing:
            raise UserError(
                f"the pass {p.name!r} needs {', '.join(missing)}, which no pass before it in config.passes makes"
            )
        missing = [name for name in p.reads if name not in terms]
        if missing:
            raise UserError(f"the pass {p.name!r} reads what the term {missing[0]!r} keeps: add it to config.terms")
        provided |= set(p.provides)


def _ramp(start: float, end: float):
    return lambda progress: start + (end - start) * progress


def _lookup(table, name, kind):
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}: known are {', '.join(sorted(table))}")
    return table[name]


def _student(config, vocab_size):
    features = config.teacher.width if "teacher" in config.passes else config.student.image.width
    target_dim = config.student.head_dim or features
    return student_pass(build_student(config.student, vocab_size=vocab_size, target_dim=target_dim))


def _momentum(config, vocab_size):
    return momentum_pass(_student(config, vocab_size), config.ema_decay)


def _autoencoder(config, vocab_size):
    quantizer, teacher = config.quantizer, config.teacher
    model = Autoencoder(
        code_dim=quantizer.code_dim,
        masked=quantizer.masked,
        num_heads=teacher.num_heads,
        mlp_dim=teacher.mlp_dim,
        norm_eps=teacher.norm_eps,
        activation=teacher.activation,
        dtype=np.dtype(teacher.dtype),
    )
    return autoencoder_pass(model, quantizer.num_codes)


def _quantizer(config, vocab_size):
    return quantizer_pass(Quantizer(config.quantizer.num_codes, config.quantizer.code_dim))


def _teacher(config, vocab_size):
    teacher = config.teacher
    model, classes = build_teacher(teacher), teacher.stand_in_classes
    if classes and getattr(model, "num_classes", 0):
        raise UserError(f"{teacher.checkpoint} has a classifier of its own: set config.teacher.stand_in_classes=0")
    head = stand_in_head(classes, teacher.stand_in_temperature) if classes else None
    return teacher_pass(model, teacher.mean, teacher.std, head=head)


def _views(config, vocab_size):
    encoder = ProjectedEncoder(build_teacher(config.teacher), tuple(config.projector))
    return views_pass(encoder, config.teacher.mean, config.teacher.std)


PASSES = {
    "autoencoder": _autoencoder,
    "momentum": _momentum,
    "quantizer": _quantizer,
    "student": _student,
    "teacher": _teacher,
    "views": _views,
}
TRAINED = ("autoencoder", "student", "views")


def init_params(recipe: Recipe, key: jax.Array, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Random (params, slots) of everything trained, for a global `batch` of arrays or shapes; call it under jit."""
    params: dict[str, Any] = {"terms": {}}
    slots = {}
    # Two rows are enough to find every shape, and cost nothing at a batch of thousands.
    rows = blank_rows(recipe, batch, 2)
    for i, p in enumerate(recipe.passes):
        if p.grad:
            own = p.init(jax.random.fold_in(key, i), rows)
            params[p.name] = {name: part for name, part in own.items() if name not in p.reads}
    reps = representation_shapes(recipe, _shapes(batch))
    for i, (name, term) in enumerate(recipe.terms.items()):
        own = {need: reps[need] for need in term.needs}
        params["terms"][name], slots[name] = term.init(jax.random.fold_in(key, 1000 + i), own)
    return params, slots


def blank_rows(recipe: Recipe, batch: dict[str, Any], count: int) -> dict[str, jax.Array]:
    """`count` examples of zeros of what passes are given: a batch, of arrays or shapes, and what they make of it."""
    rows = {name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), rows | representation_shapes(recipe, rows))


def representation_shapes(recipe: Recipe, batch: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """{name: shape and type} of what the recipe needs of the passes for a batch (arrays or shapes), and its ids."""
    key = jax.random.key(0)
    reps = {"id": batch["id"]}
    for p in (only(p, recipe.needs) for p in recipe.passes):
        reps |= jax.eval_shape(lambda b, p=p: p.run(p.init(key, b), b, key, False), given(p, batch, reps))
    return reps


def given(p: Pass, batch: dict[str, Any], reps: dict[str, Any]) -> dict[str, Any]:
    """What `p` runs on: the batch, and what it needs of `reps`, made before."""
    return {**batch, **{name: reps[name] for name in p.needs}}


def _shapes(batch):
    return {name: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for name, x in batch.items()}
