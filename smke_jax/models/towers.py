"""The towers that a student can be made of: {type: module}.

An image tower has `image_size`.  It is called with normalised images (B, S, S, 3) and returns (B, 1 + N, D).  A text
tower is called with ids and mask (B, L) and returns (B, L, D).  Both have `width`, D, and take `added` (D,), which they
add to every token, and `deterministic`.  Position 0 holds what stands for the whole image or caption.
The image towers that cut an image in patches, VITS, also take `hidden`, see `vision.hide`.
"""

from smke_jax.models.beit import BeitEncoder
from smke_jax.models.clip import ClipTextTower
from smke_jax.models.efficientnet import EfficientNetLiteTower
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder
from smke_jax.models.vit import VitEncoder

IMAGE_TOWERS = {
    "beit": BeitEncoder,
    "data2vec2": ImageEncoder,
    "efficientnet_lite": EfficientNetLiteTower,
    "vit": VitEncoder,
}
VITS = {name: module for name, module in IMAGE_TOWERS.items() if "patch_size" in module.__dataclass_fields__}
TEXT_TOWERS = {"bert": TextEncoder, "clip_text": ClipTextTower}
