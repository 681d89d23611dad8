"""Values of a config that no run could work with, refused before anything is opened.

Fields are known by their names, wherever they stand: a `dropout` is a probability in every part.
"""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from smke_jax.activations import ACTIVATIONS
from smke_jax.data.datasets import SOURCES
from smke_jax.data.labelled import LAYOUTS
from smke_jax.data.transforms import TEACHER_VIEWS
from smke_jax.errors import UserError
from smke_jax.limits import (
    ABOVE_0,
    ABOVE_0_TO_1,
    ANY,
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    LAYERS,
    SHARE,
    Entries,
    OneOrMore,
    Range,
)
from smke_jax.losses.collective import IMPLEMENTATIONS
from smke_jax.losses.same_image import SAME_IMAGE
from smke_jax.models.attention import CHOICES as ATTENTION
from smke_jax.models.fields import RANGES as MODEL_RANGES
from smke_jax.models.fields import TUPLES as MODEL_TUPLES
from smke_jax.models.layers import REMAT
from smke_jax.models.student import TOKEN_TYPES_AT
from smke_jax.parallel.rules import RULES
from smke_jax.passes.encode import LEVELS
from smke_jax.tasks.labelled_text import FILES
from smke_jax.training.optimizer import OPTIMIZERS, SCHEDULES

CHOICES = {
    "sharding": RULES,
    "loss_impl": IMPLEMENTATIONS,
    "attention": ATTENTION,
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

# {field: its limits}
RANGES = {
    **MODEL_RANGES,
    **dict.fromkeys(
        ("total_steps", "epochs", "num_devices", "fsdp_size", "micro_batch", "threads", "seed"), AT_LEAST_0
    ),
    **dict.fromkeys(("reference_batch", "sqrt_above", "clip_norm", "every", "learning_rate", "final_rate"), AT_LEAST_0),
    **dict.fromkeys(("cutmix_alpha", "mixup_alpha", "rand_magnitude", "rand_std"), AT_LEAST_0),
    **dict.fromkeys(("augmentations", "bank_size", "commitment", "covariance", "invariance", "variance"), AT_LEAST_0),
    **dict.fromkeys(("optimizer.weight_decay", "final_weight", "proximal", "frozen_layers", "hidden"), AT_LEAST_0),
    **dict.fromkeys(("hardness", "cosine_weight"), AT_LEAST_0),
    **dict.fromkeys(("batch_size", "eval_batch_size", "keep", "log.every", "views", "rand_count"), AT_LEAST_1),
    **dict.fromkeys(("size", "count", "k", "images", "captions", "guesses", "embed", "hog_cells"), AT_LEAST_1),
    **dict.fromkeys(("pictures", "mask_cell", "ramp_steps", "noise"), AT_LEAST_0),
    **dict.fromkeys(("kept_words", "random_words", "share", "mask_ratio", "text_ratio"), SHARE),
    "block": AT_LEAST_0,
    "data_fraction": Range(0, 1, open_below=True),
    **dict.fromkeys(("flip", "jitter", "grayscale", "masked", "erasing", "cutmix_share", "mix_probability"), SHARE),
    **dict.fromkeys(("decay", "warmup_fraction", "head_dropout", "held_back", "smoothing"), BELOW_1),
    **dict.fromkeys(("eps", "layer_decay", "prefetch_mib", "memory_mib"), ABOVE_0),
    "close_up": ABOVE_0_TO_1,
    **dict.fromkeys(("margin", "weight"), ANY),
    **dict.fromkeys(("temperature", "teacher_temperature", "target_temperature"), Range(1e-3)),
    "max_length": Range(3),
    "depth": LAYERS,  # a module of none is a stem alone, which no config asks for
}
# {field: what its tuple holds}
TUPLES = {
    **MODEL_TUPLES,
    **dict.fromkeys(("crop_scale", "crop_ratio"), Entries(float, 2, ABOVE_0)),
    "betas": Entries(float, 2, BELOW_1),
    "mean": Entries(float, 3),
    "std": Entries(float, 3, ABOVE_0),
    **dict.fromkeys(("profile_steps", "weights", "sweep", "expander"), Entries(int, None, AT_LEAST_1)),
    "caps": Entries(int, None, AT_LEAST_0),
    "pair": Entries(str, 2),
    **dict.fromkeys(("evaluated", "pools", "before", "after", "metrics"), Entries(str)),
    "data": OneOrMore(),  # one folder, or several that are one set
    **dict.fromkeys(("prediction", "target", "image", "text", "of"), OneOrMore()),  # representations
}
TYPED = ("dtype", "residual_dtype", "mu_dtype", "exchange_dtype")  # fields
DTYPES = ("float32", "bfloat16")  # float16 would need a scaled loss


def validate(flat: Mapping[str, Any]) -> None:
    """Raises UserError for the first value of a flattened config that is unknown or out of range."""
    for key, value in flat.items():
        if (known := _of(CHOICES, key)) is not None and value not in known:
            raise UserError(f"{key} is {value!r}: known are {', '.join(sorted(known))}")
        if (limits := _of(RANGES, key)) is not None and value is not None:
            limits.check(key, value)
        if (entries := _of(TUPLES, key)) is not None and value is not None:
            entries.check(key, value)
        if key.rpartition(".")[2] in TYPED and value not in DTYPES:
            raise UserError(f"{key} is {value!r}: give {' or '.join(DTYPES)}")
    for key, value in flat.items():
        if key.endswith(("crop_scale", "crop_ratio")) and value[0] > value[1]:
            raise UserError(f"{key} is {tuple(value)}: give the smallest first, and then the largest")
    steps = flat["config.profile_steps"]
    if steps and not (len(steps) == 2 and steps[0] <= steps[1]):
        raise UserError(f"config.profile_steps is {tuple(steps)}: give (first, last), such as (10,13)")
    for rule in flat["config.optimizer.lr_rules"]:
        if not (isinstance(rule, (list, tuple)) and [type(x) for x in rule] in ([str, int], [str, float])):
            raise UserError(
                f"config.optimizer.lr_rules has {rule!r}: give pairs of a pattern and a factor, such as "
                "(('^words/',0.2),)"
            )
        pattern, factor = rule
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.optimizer.lr_rules: {pattern!r} is no regular expression ({error})") from None
        if not 0 <= factor < float("inf"):
            raise UserError(f"config.optimizer.lr_rules: {pattern!r} has the factor {factor}: give a positive number")
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
