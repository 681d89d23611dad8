"""Rendering of layouts to 32x32 RGB images, vectorised over objects.

Each shape is a gauge: a function of the plane that is 1 on the outline and scales with the distance from the
middle. Inside, outline, hollow and anti-aliasing are then one comparison for all shapes. An object never
leaves its 16x16 cell, so it is drawn on its cell only, a quarter of the pixels.
"""

from __future__ import annotations

import numpy as np

from smke_jax.data.scenes.world import GRID, SHAPES, SIZES, SLOTS, TEXTURES, Layout

SIDE = 32
CELL_SIDE = SIDE // GRID
JITTER = 0.03 * SIDE  # pixels, each way
RADIUS = np.array([4.2, 6.7], np.float32)  # pixels: small, large; large + jitter still fits the cell
WALL = np.array([1.6, 2.0], np.float32)  # pixels: thickness of a hollow object
PERIOD = np.array([3.0, 4.0], np.float32)  # pixels: one bar and one gap of a striped object
GAP_COVER = 0.35  # a gap keeps a tint of the colour, or a small striped square would be two loose bars
TRIANGLE_DROP = 0.25  # the gauge's middle of a triangle lies this far (in radii) below the middle of its box
NOISE = 5.0  # grey levels, standard deviation per channel of each pixel
CHUNK = 1024  # scenes drawn at once: bounds the memory and keeps the arrays in cache

COLOUR_RGB = np.array(
    [  # order of world.COLOURS
        (225, 30, 35),
        (255, 140, 0),
        (250, 230, 40),
        (30, 160, 50),
        (40, 215, 225),
        (40, 70, 235),
        (160, 55, 205),
        (255, 130, 195),
    ],
    np.float32,
)
BACKGROUND_RGB = np.array(
    [  # order of world.BACKGROUNDS
        (12, 12, 14),
        (240, 240, 240),
        (128, 128, 128),
        (84, 54, 34),
    ],
    np.float32,
)


def draw(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8 of N scenes; jitter, brightness and pixel noise come from `rng`."""
    images = np.empty((len(layout), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(layout), CHUNK):
        rows = slice(start, start + CHUNK)
        images[rows] = _draw_chunk(layout[rows], rng)
    return images


def _draw_chunk(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    number = len(layout)
    # (scene, cell, y, x, channel): contiguous per cell while drawing, put in image order at the end.
    canvas = np.empty((number, GRID * GRID, CELL_SIDE, CELL_SIDE, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[layout.background][:, None, None, None, :]
    offset = rng.uniform(-JITTER, JITTER, (number, SLOTS, 2)).astype(np.float32)
    offset[layout.nested, 1] = offset[layout.nested, 0]  # keeps to its container's middle
    in_triangle = layout.nested & (layout.shape[:, 0] == SHAPES.index("triangle"))
    offset[in_triangle, 1, 0] += TRIANGLE_DROP * RADIUS[1]
    for slot in range(SLOTS):  # in order, so that slot 1 lies on top of its container in slot 0
        who = np.flatnonzero(layout.present[:, slot])
        cell = layout.cell[who, slot]
        alpha = _coverage(
            layout.shape[who, slot], layout.size[who, slot], layout.texture[who, slot], offset[who, slot]
        )[..., None]
        under = canvas[who, cell]
        paint = COLOUR_RGB[layout.colour[who, slot]][:, None, None, :]
        canvas[who, cell] = under + alpha * (paint - under)
    canvas *= rng.uniform(0.85, 1.1, (number, 1, 1, 1, 1)).astype(np.float32)
    canvas += NOISE * rng.standard_normal(canvas.shape, np.float32)
    image = canvas.reshape(number, GRID, GRID, CELL_SIDE, CELL_SIDE, 3).swapaxes(2, 3)
    return np.clip(image.reshape(number, SIDE, SIDE, 3), 0, 255).astype(np.uint8)


def _coverage(shape, size, texture, offset) -> np.ndarray:
    """How much of each pixel of its cell each of M objects covers: (M, 16, 16) float32 in [0, 1].

    shape, size, texture: (M,) indices; offset: (M, 2) pixels (y, x) of the object's middle from the cell's.
    """
    radius = RADIUS[size][:, None, None]
    axis = np.arange(CELL_SIDE, dtype=np.float32) - (CELL_SIDE - 1) / 2
    y = np.broadcast_to((axis[:, None] - offset[:, 0, None, None]), (len(shape), CELL_SIDE, CELL_SIDE))
    x = np.broadcast_to((axis[None, :] - offset[:, 1, None, None]), y.shape)
    gauge = np.empty(y.shape, np.float32)
    for index, name in enumerate(SHAPES):
        rows = shape == index
        gauge[rows] = GAUGES[name](y[rows] / radius[rows], x[rows] / radius[rows])
    depth = (1 - gauge) * radius  # about the distance to the outline, in pixels, positive inside
    alpha = _soft(depth)
    hollow = texture == TEXTURES.index("hollow")
    alpha[hollow] *= _soft(WALL[size[hollow]][:, None, None] - depth[hollow])
    striped = texture == TEXTURES.index("striped")
    period = PERIOD[size[striped]][:, None, None]
    bar = _soft(np.abs(x[striped] - period * np.round(x[striped] / period)) - 0.2 * period)
    alpha[striped] *= GAP_COVER + (1 - GAP_COVER) * bar
    return alpha


def _soft(distance: np.ndarray) -> np.ndarray:
    """A half-plane's coverage of a pixel whose middle lies `distance` pixels inside it."""
    return np.clip(distance + 0.5, 0, 1)


def _circle(y, x):
    return np.sqrt(y * y + x * x)


def _square(y, x):
    return np.maximum(np.abs(y), np.abs(x)) / 0.9


def _triangle(y, x):
    y = y - TRIANGLE_DROP
    return np.maximum(y / 0.75, (2 * np.abs(x) - y) / 1.25)


def _diamond(y, x):
    return (np.abs(y) + np.abs(x)) / 1.08


def _cross(y, x):
    y, x = np.abs(y), np.abs(x)
    return np.minimum(np.maximum(y, x / 0.4), np.maximum(x, y / 0.4))


GAUGES = {"circle": _circle, "square": _square, "triangle": _triangle, "diamond": _diamond, "cross": _cross}
assert tuple(GAUGES) == SHAPES and len(RADIUS) == len(SIZES)
