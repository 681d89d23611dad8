"""Linen modules.  Those below are parts that a config can name."""

from smke_jax.models.fusion import FUSIONS
from smke_jax.models.resnet import ResNet
from smke_jax.models.shared import SHARED
from smke_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS

MODELS = {
    **IMAGE_TOWERS,
    **TEXT_TOWERS,
    "resnet": ResNet,
    **SHARED,
    **FUSIONS,
}
