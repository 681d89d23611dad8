"""Values of a config that no run could work with, refused before anything is opened.

Fields are known by their names, wherever they stand: a `dropout` is a probability in every part.
"""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from smke_jax.data.datasets import SOURCES
from smke_jax.data.labelled import LAYOUTS
from smke_jax.data.transforms import TEACHER_VIEWS
from smke_jax.errors import UserError
from smke_jax.losses.collective import IMPLEMENTATIONS
from smke_jax.losses.same_image import SAME_IMAGE
from smke_jax.models.layers import ACTIVATIONS, REMAT
from smke_jax.models.student import TOKEN_TYPES_AT
from smke_jax.parallel.rules import RULES
from smke_jax.passes.encode import LEVELS
from smke_jax.tasks.labelled_text import FILES
from smke_jax.training.optimizer import OPTIMIZERS, SCHEDULES

CHOICES = {
    "sharding": RULES,
    "loss_impl": IMPLEMENTATIONS,
    "remat": REMAT,
    "token_types_at": TOKEN_TYPES_AT,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "source": SOURCES,
    "layout": LAYOUTS,
    "teacher_view": TEACHER_VIEWS,
    "level": LEVELS,
    "same_image": SAME_IMAGE,
    "activation": ACTIVATIONS,
    "norm_order": ("pre", "post"),
    "files": FILES,
    "unit": ("pairs", "images"),
}

# {field: (lowest, highest, whether the highest itself is allowed)}; None is no limit.
AT_LEAST_0, AT_LEAST_1, SHARE, BELOW_1 = (0, None, True), (1, None, True), (0, 1, True), (0, 1, False)
RANGES = {
    **dict.fromkeys(("total_steps", "epochs", "num_devices", "fsdp_size", "micro_batch", "threads"), AT_LEAST_0),
    **dict.fromkeys(
        ("reference_batch", "sqrt_above", "clip_norm", "final_rate", "every", "stand_in_classes"), AT_LEAST_0
    ),
    **dict.fromkeys(("batch_size", "eval_batch_size", "num_codes", "code_dim", "keep", "log.every"), AT_LEAST_1),
    **dict.fromkeys(("depth", "num_heads", "mlp_dim", "head", "patch_size", "image_size", "levels"), AT_LEAST_1),
    **dict.fromkeys(("flip", "jitter", "grayscale", "masked", "erasing"), SHARE),
    **dict.fromkeys(
        ("decay", "token_drop", "dropout", "head_dropout", "warmup_fraction", "held_back", "smoothing"), BELOW_1
    ),
    "max_length": (3, None, True),
    **dict.fromkeys(("stand_in_temperature", "temperature", "teacher_temperature"), (1e-3, None, True)),
}
TYPED = ("dtype", "residual_dtype", "mu_dtype")  # fields
DTYPES = ("float32", "bfloat16")  # float16 would need a scaled loss


def validate(flat: Mapping[str, Any]) -> None:
    """Raises UserError for the first value of a flattened config that is unknown or out of range."""
    for key, value in flat.items():
        if (known := _of(CHOICES, key)) is not None and value not in known:
            raise UserError(f"{key} is {value!r}: known are {', '.join(sorted(known))}")
        if (limits := _of(RANGES, key)) is not None and value is not None:
            _check_range(key, value, *limits)
        if key.rpartition(".")[2] in TYPED and value not in DTYPES:
            raise UserError(f"{key} is {value!r}: give {' or '.join(DTYPES)}")
    steps = flat["config.profile_steps"]
    if steps and not (len(steps) == 2 and 0 < steps[0] <= steps[1]):
        raise UserError(f"config.profile_steps is {tuple(steps)}: give (first, last), such as (10,13)")
    for pattern, factor in flat["config.optimizer.lr_rules"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.optimizer.lr_rules: {pattern!r} is no regular expression ({error})") from None
        if not factor:
            raise UserError(
                f"config.optimizer.lr_rules: {pattern!r} has the factor 0; a part that is not to be trained is named "
                "in the `trained` field of its network, and then costs nothing"
            )
    if flat["config.log.tensorboard"] and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("config.log.tensorboard needs tensorboardX: pip install 'smke_jax[tensorboard]'")


def _of(table: Mapping[str, Any], key: str) -> Any:
    """The entry of the last two parts of a key, or of its last."""
    parts = key.split(".")
    return table.get(".".join(parts[-2:]), table.get(parts[-1]))


def _check_range(key, value, low, high, closed):
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if value < low or (high is not None and (value > high or (value == high and not closed))):
        upper = "" if high is None else f" and {'at most' if closed else 'below'} {high}"
        raise UserError(f"{key} is {value}: it has to be at least {low}{upper}")
