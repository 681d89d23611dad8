"""Linen modules.  Those below are parts that a config can name."""

from smke_jax.models.efficientnet import EfficientNetLite
from smke_jax.models.resnet import ResNet
from smke_jax.models.shared import SHARED
from smke_jax.models.teachers import Beit
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder
from smke_jax.models.vit import Vit

MODELS = {
    "beit": Beit,
    "bert": TextEncoder,
    "data2vec2": ImageEncoder,
    "efficientnet_lite": EfficientNetLite,
    "resnet": ResNet,
    "vit": Vit,
    **SHARED,
}
