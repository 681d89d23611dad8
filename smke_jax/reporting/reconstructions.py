"""What a report shows of rebuilt patches: pixels as they are, and histograms of gradients as strokes along edges."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from smke_jax.reporting import html

SIDE = 288  # pixels of a drawn picture
LABELS = ("photo", "what the network sees", "what it makes of the hidden patches", "what is there")


def drawn_reconstruction(example: tuple) -> list[list[str]]:
    """(photo, seen, predicted, target) -> [[picture, label], …], the pictures embedded.

    Each is uint8 (S, S, 3), or HOG, float (rows, columns, bins).
    """
    return [[html.photo(_picture(x), SIDE), label] for x, label in zip(example, LABELS, strict=True)]


def reconstructions_section(examples: Sequence[Sequence], at: str) -> str:
    """What `drawn_reconstruction` made, as a titled box; `at` ends the title."""
    rows = [html.hits(html.hit(picture, None, label, alt=label) for picture, label in found) for found in examples]
    note = (
        "What the network makes of hidden patches stands where they were; the other patches are as they are. Gradients "
        "are strokes along the edges, the brighter the more of them there are in a square."
    )
    return html.section("Hidden patches and what was made of them" + at, *rows, note=note) if rows else ""


def strokes(cells: np.ndarray) -> np.ndarray:
    """HOG (rows, columns, bins) -> uint8 (SIDE, SIDE, 3): in every cell one stroke for each bin, along its edge.

    The angle of a gradient is counted from the vertical, atan2(gx, gy), so that the edge of the angle φ, at a right
    angle to its gradient, has the direction (cos φ, -sin φ): to the right, and up where y points down.
    """
    rows, columns, bins = cells.shape
    size, scale = SIDE / max(rows, columns), 255 / max(float(cells.max()), 1e-12)
    image = Image.new("L", (round(size * columns), round(size * rows)))
    draw = ImageDraw.Draw(image)
    for row, column in np.ndindex(rows, columns):
        x, y = (column + 0.5) * size, (row + 0.5) * size
        for bin_ in np.argsort(cells[row, column]):  # the brightest last
            angle = (bin_ + 0.5) * math.pi / bins
            across, down = math.cos(angle) * size / 2, -math.sin(angle) * size / 2
            bright = round(float(cells[row, column, bin_]) * scale)
            draw.line((x - across, y - down, x + across, y + down), fill=bright, width=max(1, round(size / 10)))
    return np.asarray(image.convert("RGB"))


def _picture(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8:
        return strokes(x)
    return np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.NEAREST))
