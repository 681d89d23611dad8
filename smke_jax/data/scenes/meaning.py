"""What the five captions of a scene say, decided before any word is chosen.

A meaning is a claim: there are different objects of these descriptions, the first two of them in this
relation, on this background, and (sometimes) so many objects in all. Anything not mentioned is left open. The
wording follows the meaning, so the truth of a caption can be computed exactly, without reading its text.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from smke_jax.data.scenes.world import ABSENT, GRID, SLOTS, Layout

TEMPLATES = ("relation", "list", "inverse", "background", "partial")
FEATURES = ("shape", "colour", "size", "texture")
RELATIONS = ("left", "above", "inside", "right", "below", "contains")  # the inverse of r is (r + 3) % 6
LEFT, ABOVE, INSIDE = range(3)
OPEN = -1  # not mentioned
PAIRS = np.array([(0, 1), (0, 2), (1, 2)], np.int8)

# How often a template mentions each of FEATURES, for scenes of two and of three objects.
MENTION = {
    "relation": ((1, 1, 0.8, 0.85), (1, 1, 0.8, 0.85)),
    "list": ((1, 1, 0.8, 0.9), (1, 1, 0.3, 0.4)),
    "inverse": ((1, 1, 0.6, 0.7), (1, 1, 0.6, 0.7)),
    "background": ((1, 1, 0.45, 0.6), (1, 1, 0.45, 0.6)),
    "partial": ((0.9, 1, 0.4, 0.55), (0.9, 1, 0.4, 0.55)),
}


@dataclasses.dataclass(frozen=True)
class Meanings:
    """The claims of N x 5 captions, int8; OPEN where a caption does not say.

    features: (N, 5, 3, 4) value of each of FEATURES per mentioned object; mentioned: (N, 5) how many objects
    are mentioned, 2 or 3; relation: (N, 5) of the first to the second, an index into RELATIONS; count: (N, 5)
    objects in all; background: (N, 5).
    """

    features: np.ndarray
    mentioned: np.ndarray
    relation: np.ndarray
    count: np.ndarray
    background: np.ndarray

    def __len__(self) -> int:
        return len(self.mentioned)

    def __getitem__(self, rows) -> Meanings:
        """The captions of the scenes chosen by a slice, an index array or a boolean mask."""
        return Meanings(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


def choose_meanings(layout: Layout, rng: np.random.Generator) -> Meanings:
    """One claim per scene and template, true of its scene; deterministic in the state of `rng`."""
    number = len(layout)
    everything = np.stack([getattr(layout, name) for name in FEATURES], axis=-1)  # (N, 3, 4)
    features = np.full((number, len(TEMPLATES), SLOTS, len(FEATURES)), OPEN, np.int8)
    open_to_all = np.full((number, len(TEMPLATES)), OPEN, np.int8)
    mentioned, relation = np.full_like(open_to_all, 2), open_to_all.copy()
    count, background = open_to_all.copy(), open_to_all.copy()
    for index, template in enumerate(TEMPLATES):
        if template == "list":
            slots = _shuffled_slots(layout, rng)
            mentioned[:, index] = layout.count
            count[:, index] = np.where(rng.random(number) < 0.5, layout.count, OPEN)
        elif template in ("relation", "inverse"):
            slots, relation[:, index] = _related_pair(layout, rng)
            if template == "inverse":
                slots, relation[:, index] = slots[:, [1, 0, 2]], relation[:, index] + 3
        else:
            slots = _shuffled_slots(layout, rng)
            says = 1.0 if template == "background" else 0.5
            background[:, index] = np.where(rng.random(number) < says, layout.background, OPEN)
        chance = np.array(MENTION[template])[layout.count - 2][:, None, :]  # (N, 1, 4)
        said = rng.random((number, SLOTS, len(FEATURES))) < chance
        said &= (np.arange(SLOTS) < mentioned[:, index, None])[..., None]
        values = np.take_along_axis(everything, slots[..., None].astype(np.int64), axis=1)
        features[:, index] = np.where(said, values, OPEN)
    assert not (features == ABSENT).any()
    return Meanings(features, mentioned, relation, count, background)


def _shuffled_slots(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """(N, 3) slots in random order, the empty one last."""
    return np.argsort(rng.random((len(layout), SLOTS)) + ~layout.present, axis=1)


def _related_pair(layout: Layout, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Slots (N, 3), the first two of which stand in the relation (N,): LEFT, ABOVE or INSIDE.

    A nested pair is chosen in about two thirds of the nested scenes.
    """
    number, rows = len(layout), np.arange(len(layout))
    pair = np.where(layout.count == 3, rng.integers(3, size=number), 0)
    pair[layout.nested & (rng.random(number) < 0.5)] = 0
    first, second = PAIRS[pair].T
    row_a, column_a = np.divmod(layout.cell[rows, first], GRID)
    row_b, column_b = np.divmod(layout.cell[rows, second], GRID)
    inside = layout.nested & (pair == 0)
    # Two cells differ in their column, their row, or both; then either may be told.
    sideways = (column_a != column_b) & ((row_a == row_b) | (rng.random(number) < 0.5))
    relation = np.where(inside, INSIDE, np.where(sideways, LEFT, ABOVE)).astype(np.int8)
    swap = inside | np.where(sideways, column_a > column_b, row_a > row_b)
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    return np.stack([first, second, SLOTS - first - second], axis=1), relation
