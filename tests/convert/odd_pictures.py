"""Pictures whose pixels are not simply 8-bit RGB."""

import io

import numpy as np
from PIL import Image


def odd_pictures() -> list[Image.Image]:
    """Turned by a note of the camera, transparent in every way, of 16 bits, of floats, of inks."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (40, 70, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, palette = io.BytesIO(), io.BytesIO()
    rgba.convert("RGB").save(turned, "PNG", exif=exif)
    rgba.convert("P").save(palette, "PNG", transparency=0)
    sixteen = Image.fromarray(rng.integers(0, 65536, (40, 70), dtype=np.uint16))
    unit = Image.fromarray(rng.random((40, 70), dtype=np.float32))
    return [Image.open(turned), rgba, Image.open(palette), rgba.convert("LA"), sixteen, sixteen.convert("I"), unit,
            rgba.convert("CMYK"), rgba.convert("L"), Image.new("LAB", (9, 9), (200, 100, 150))]  # fmt: skip
