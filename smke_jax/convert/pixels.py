"""What a network expects of its pixels: mean and standard deviation of each channel, of values in [0, 1]."""

from smke_jax.convert.shapes import section
from smke_jax.descriptions import MEAN, STD

IMAGENET = (MEAN, STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # spec A.1
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # EfficientNet-Lite takes (x - 127) / 128 of pixels x up to 255


def pixel_statistics(config: dict, usual: tuple, *, certain: bool = False) -> dict:
    """{'mean': (3,), 'std': (3,)} for a description; `usual` holds where `config` is silent.

    `config` is transformers' preprocessor_config.json or timm's config.json.  Where `usual` counts and is not
    `certain` for such a file, 'assumed' names it too.
    """
    timm = section(config, "pretrained_cfg")
    said = {name: config.get(f"image_{name}") or timm.get(name) for name in ("mean", "std")}
    found = {name: tuple(x or otherwise) for (name, x), otherwise in zip(said.items(), usual, strict=True)}
    assumed = [name for name, x in said.items() if not x and not certain]
    return found | ({"assumed": assumed} if assumed else {})
