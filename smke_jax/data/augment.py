"""Augmentation of labelled images: RandAugment on PIL images and random erasing on their pixels (spec 0.5)."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)  # ImageNet's mean colour, which fills what a rotated or shifted image does not cover
LEVELS = 10.0  # the highest magnitude
APPLIED = 0.5  # probability of each chosen operation
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))  # of ImageNet's pixels


def rand_augment(
    image: Image.Image, rng: np.random.Generator, *, magnitude: float, std: float = 0.5, count: int = 2
) -> Image.Image:
    """`count` of OPERATIONS, drawn with replacement, each applied with probability 1/2; RGB -> RGB of the same size.

    Each draws its own magnitude from a normal distribution around `magnitude` of 0 to 10, clipped to that range.
    Source: RandAugment (Cubuk et al. 2020), in the form that timm calls rand-m9-mstd0.5-inc1: all operations are the
    stronger, the higher the magnitude.
    """
    for chosen in rng.integers(len(OPERATIONS), size=count):
        if rng.random() < APPLIED:
            level = float(np.clip(rng.normal(magnitude, std), 0, LEVELS)) / LEVELS
            sign = 1 if rng.random() < 0.5 else -1
            image = list(OPERATIONS.values())[chosen](image, level, sign)
    return image


def random_erasing(
    pixels: np.ndarray,
    rng: np.random.Generator,
    probability: float,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """With `probability` one rectangle of uint8 pixels (H, W, 3) becomes noise; a copy where it does.

    area:   of the rectangle, as a share of the image, uniform
    aspect: height / width, uniform in its logarithm; ten tries to find a rectangle that fits
    The noise is standard normal in each pixel and channel, as the network sees them after normalisation with ImageNet's
    statistics.  In the eight bits of the pixels it is clipped at about two standard deviations.
    Source: Random Erasing (Zhong et al. 2020), with timm's mode 'pixel'.
    """
    if rng.random() >= probability:
        return pixels
    height, width = pixels.shape[:2]
    for _ in range(10):
        size = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = (rng.normal(size=(h, w, 3)) * STD + MEAN) * 255
            pixels = pixels.copy()
            pixels[top : top + h, left : left + w] = np.clip(np.rint(noise), 0, 255).astype(np.uint8)
            return pixels
    return pixels


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    added = int(level * 110)
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


def _posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    bits = 4 - int(level * 4)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _enhanced(kind: Callable) -> Callable:
    """1 leaves the image as it is; 0.1 is the weakest and 1.9 the strongest."""
    return lambda image, level, sign: kind(image).enhance(max(0.1, 1 + sign * 0.9 * level))


# {name: (image, level in 0 … 1, sign ±1) -> image}
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "rotate": lambda image, level, sign: image.rotate(sign * 30 * level, Image.Resampling.BICUBIC, fillcolor=FILL),
    "posterize": _posterize,
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(level * 256)),
    "solarize_add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign: _moved(image, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level, sign: _moved(image, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    "translate_x": lambda image, level, sign: _moved(image, (1, 0, sign * 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": lambda image, level, sign: _moved(image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.height)),
}
