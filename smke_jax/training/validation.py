"""Values of a config that no run could work with, refused before anything is opened."""

import functools
import importlib.util
import re
from typing import Any

import jax.numpy as jnp

from smke_jax.data.transforms import TEACHER_VIEWS, VIEWS
from smke_jax.errors import UserError
from smke_jax.losses.collective import IMPLEMENTATIONS
from smke_jax.models.layers import ACTIVATIONS, REMAT
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.rules import RULES
from smke_jax.passes.student import LEVELS
from smke_jax.training.optimizer import OPTIMIZERS

TOWERS = ("student.image", "student.text")
PARTS = (*TOWERS, "student.shared", "teacher")

CHOICES = {
    "sharding": RULES,
    "loss_impl": IMPLEMENTATIONS,
    "student.remat": REMAT,
    "optimizer.name": OPTIMIZERS,
    "data.views": VIEWS,
    "data.teacher_view": TEACHER_VIEWS,
    "eval.level": LEVELS,
    "teacher.type": TEACHERS,
    **{f"{part}.activation": ACTIVATIONS for part in PARTS},
    **{f"{part}.norm_order": ("pre", "post") for part in (*TOWERS, "teacher")},
}

# (lowest, highest, whether the highest itself is allowed); None is no limit.
RANGES = {
    "batch_size": (1, None, True),
    "total_steps": (0, None, True),
    "epochs": (0, None, True),
    "num_devices": (0, None, True),
    "fsdp_size": (0, None, True),
    "micro_batch": (0, None, True),
    "data.max_length": (3, None, True),
    "data.flip": (0, 1, True),
    "data.jitter": (0, 1, True),
    "data.grayscale": (0, 1, True),
    "data.threads": (0, None, True),
    "student.image.token_drop": (0, 1, False),
    "teacher.token_drop": (0, 1, False),
    **{f"{part}.dropout": (0, 1, False) for part in (*TOWERS, "student.shared")},
    "optimizer.warmup_fraction": (0, 1, False),
    "optimizer.clip_norm": (0, None, True),
    "eval.every": (0, None, True),
    "eval.batch_size": (1, None, True),
    "checkpoint.every": (0, None, True),
    "checkpoint.keep": (1, None, True),
    "log.every": (1, None, True),
}


def validate(config) -> None:
    """Raises UserError for the first value that is unknown or out of range, naming its key and what would do."""
    for key, known in CHOICES.items():
        if _get(config, key) not in known:
            raise UserError(f"config.{key} is {_get(config, key)!r}: known are {', '.join(sorted(known))}")
    for key, (low, high, closed) in RANGES.items():
        value = _get(config, key)
        if value < low or (high is not None and (value > high or (value == high and not closed))):
            upper = "" if high is None else f" and {'at most' if closed else 'below'} {high}"
            raise UserError(f"config.{key} is {value}: it has to be at least {low}{upper}")
    for key in ("student.dtype", "teacher.dtype", "optimizer.mu_dtype"):
        try:
            jnp.dtype(_get(config, key))
        except TypeError:
            raise UserError(f"config.{key} is {_get(config, key)!r}: give float32 or bfloat16") from None
    steps = config.profile_steps
    if steps and not (len(steps) == 2 and 0 < steps[0] <= steps[1]):
        raise UserError(f"config.profile_steps is {steps}: give (first, last), such as (10,13)")
    for pattern, _ in config.optimizer.lr_rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.optimizer.lr_rules: {pattern!r} is no regular expression ({error})") from None
    if ("views" in config.passes) != (config.data.views == "two_views"):
        raise UserError(
            f"config.data.views is {config.data.views!r} but the passes are {', '.join(config.passes)}: "
            "'two_views' is for the pass 'views', 'student_teacher' for the others"
        )
    if config.teacher.cache and ("teacher" not in config.passes or config.data.teacher_view != "fixed"):
        raise UserError("config.teacher.cache keeps features of a view that never changes: set data.teacher_view=fixed")
    if config.log.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("config.log.tensorboard needs tensorboardX: pip install 'smke_jax[tensorboard]'")


def _get(config, key: str) -> Any:
    return functools.reduce(lambda part, name: part[name], key.split("."), config)
