"""What is in a scene: layouts sampled as arrays of attributes, each described once only.

A scene is a background and two or three objects on a 2x2 grid of cells. An attribute is stored as an index
into the tuples below, one array row per scene and one column per object slot. In a quarter of the scenes slot
1 lies inside slot 0 and shares its cell; otherwise every object has a cell of its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "hollow")
BACKGROUNDS = ("black", "white", "gray", "brown")
GRID = 2
CELLS = GRID * GRID
SLOTS = 3
ABSENT = -2  # the value of every attribute of an empty slot; -1 is taken by "not mentioned" in captions
NESTED_SHARE = 0.27  # as drawn; a quarter is left after illegible scenes are dropped


@dataclasses.dataclass(frozen=True)
class Layout:
    """Attributes of N scenes, as int8 indices; a slot without an object holds ABSENT throughout.

    background (N,), nested (N,) bool: slot 1 is inside slot 0; shape, colour, size, texture, cell: (N, 3).
    Cells count row by row from the top left.
    """

    background: np.ndarray
    nested: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    texture: np.ndarray
    cell: np.ndarray

    def __len__(self) -> int:
        return len(self.background)

    def __getitem__(self, rows) -> Layout:
        """The scenes chosen by a slice, an index array or a boolean mask."""
        return Layout(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    @property
    def present(self) -> np.ndarray:
        """Which slots hold an object: (N, 3) bool."""
        return self.shape != ABSENT

    @property
    def count(self) -> np.ndarray:
        """Objects per scene: (N,) int, 2 or 3."""
        return self.present.sum(1)


def canonical_keys(layout: Layout) -> np.ndarray:
    """One int64 per scene, (N,), equal exactly when two scenes have the same description.

    The key holds the background and, per object, shape, colour, size, texture, cell and whether it is inside
    another; it does not depend on the order of the slots.
    """
    inside = np.zeros_like(layout.shape)
    inside[:, 1] = layout.nested
    code = np.zeros(layout.shape.shape, np.int64)
    parts = (
        (layout.shape, SHAPES),
        (layout.colour, COLOURS),
        (layout.size, SIZES),
        (layout.texture, TEXTURES),
        (layout.cell, range(CELLS)),
        (inside, range(2)),
    )
    for values, names in parts:
        code = code * len(names) + values
    code = np.sort(np.where(layout.present, code + 1, 0), axis=1)
    key = layout.background.astype(np.int64)
    for slot in range(SLOTS):
        key = key * 2048 + code[:, slot]  # 5 * 8 * 2 * 3 * 4 * 2 = 1,920 objects and the empty slot
    return key


def sample_layouts(number: int, rng: np.random.Generator, *, avoid: np.ndarray | None = None) -> Layout:
    """`number` scenes, no two with the same canonical key and none with a key in `avoid`.

    Deterministic in the state of `rng` and the other arguments.
    """
    kept = _draw(0, rng)
    while len(kept) < number:
        fresh = _draw(int(1.15 * number) + 64, rng)
        fresh = fresh[_legible(fresh)]
        if avoid is not None:
            fresh = fresh[~np.isin(canonical_keys(fresh), avoid)]
        kept = _concatenate(kept, fresh)
        kept = kept[np.sort(np.unique(canonical_keys(kept), return_index=True)[1])]
    return kept[:number]


def _draw(number: int, rng: np.random.Generator) -> Layout:
    """Independent scenes, some of them illegible or alike."""

    def uniform(names):
        return rng.integers(len(names), size=(number, SLOTS), dtype=np.int8)

    background = rng.integers(len(BACKGROUNDS), size=number, dtype=np.int8)
    nested = rng.random(number) < NESTED_SHARE
    shape, colour, size, texture = uniform(SHAPES), uniform(COLOURS), uniform(SIZES), uniform(TEXTURES)
    cell = rng.permuted(np.tile(np.arange(CELLS, dtype=np.int8), (number, 1)), axis=1)[:, :SLOTS]
    size[nested, 0], size[nested, 1] = SIZES.index("large"), SIZES.index("small")
    cell[nested, 1] = cell[nested, 0]
    empty = np.zeros((number, SLOTS), bool)
    empty[:, -1] = rng.random(number) < 0.5
    for values in (shape, colour, size, texture, cell):
        values[empty] = ABSENT
    return Layout(background, nested, shape, colour, size, texture, cell)


def _legible(layout: Layout) -> np.ndarray:
    """(N,) bool: no two objects share shape and colour, none lies in a container of its colour."""
    good = ~(layout.nested & (layout.colour[:, 0] == layout.colour[:, 1]))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        good &= (layout.shape[:, a] != layout.shape[:, b]) | (layout.colour[:, a] != layout.colour[:, b])
    return good


def _concatenate(a: Layout, b: Layout) -> Layout:
    return Layout(**{f.name: np.concatenate([getattr(a, f.name), getattr(b, f.name)]) for f in dataclasses.fields(a)})


def attribute_labels(layout: Layout) -> dict[str, np.ndarray]:
    """What a probe can ask of a scene, as multi-hot bool arrays (N, K).

    colour (8), shape (5), texture (3), size (2), shape_colour (40), cell_colour (32), cell_shape (20), inside
    (1), count (2: two, three), background (4).
    """
    shape, colour, cell = (values.astype(np.int64) for values in (layout.shape, layout.colour, layout.cell))

    def hot(values, classes):
        return (values[:, :, None] == np.arange(classes)).any(1)

    def pair(a, b, classes_a, classes_b):
        return hot(np.where(layout.present, a * classes_b + b, ABSENT), classes_a * classes_b)

    return {
        "colour": hot(colour, len(COLOURS)),
        "shape": hot(shape, len(SHAPES)),
        "texture": hot(layout.texture, len(TEXTURES)),
        "size": hot(layout.size, len(SIZES)),
        "shape_colour": pair(shape, colour, len(SHAPES), len(COLOURS)),
        "cell_colour": pair(cell, colour, CELLS, len(COLOURS)),
        "cell_shape": pair(cell, shape, CELLS, len(SHAPES)),
        "inside": layout.nested[:, None],
        "count": layout.count[:, None] == np.arange(2, 4),
        "background": layout.background[:, None] == np.arange(len(BACKGROUNDS)),
    }
