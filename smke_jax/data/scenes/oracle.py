"""The exact truth of every caption on every scene, and the retrieval ceiling that follows from it.

A caption mentions only part of its scene, so it can be true of other scenes too; no model can then tell which
one was meant. Truth is computed from meanings, never from text.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from smke_jax.data.scenes.meaning import FEATURES, OPEN, TEMPLATES, Meanings
from smke_jax.data.scenes.world import GRID, SLOTS, Layout

KS = (1, 5, 10)


def truth(meanings: Meanings, layout: Layout) -> np.ndarray:
    """Whether caption c of scene n is true of scene s: (N, 5, S) bool, for N meanings and S layouts.

    A caption is true if its objects can be matched with different objects of the scene so that descriptions
    and relation hold, and the count and background it states are right.
    Needs about 65 N S bytes.
    """
    shape = meanings.mentioned.shape
    features = meanings.features.reshape(-1, SLOTS, len(FEATURES))
    mentioned = meanings.mentioned.reshape(-1)
    values = np.stack([getattr(layout, name) for name in FEATURES], axis=-1)  # (S, 3, 4)
    holds = np.zeros((len(mentioned), len(layout)), bool)
    relations = _relations(layout)
    relation = meanings.relation.reshape(-1)
    # fits[e][s]: (C, S) bool, object e of the caption can be the scene's object in slot s.
    fits = [
        [_fits(features[:, e], values[:, s]) & layout.present[:, s] | (mentioned <= e)[:, None] for s in range(SLOTS)]
        for e in range(SLOTS)
    ]
    for slots in itertools.permutations(range(SLOTS)):
        related = relations[:, slots[0], slots[1]].T  # (7, S)
        holds |= fits[0][slots[0]] & fits[1][slots[1]] & fits[2][slots[2]] & related[relation]
    for claimed, actual in ((meanings.count, layout.count), (meanings.background, layout.background)):
        claimed = claimed.reshape(-1, 1)
        holds &= (claimed == OPEN) | (claimed == actual)
    return holds.reshape(*shape, len(layout))


def _fits(described: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(C, 4) descriptions against (S, 4) objects: (C, S) bool."""
    fits = np.ones((len(described), len(values)), bool)
    for feature in range(len(FEATURES)):
        claimed = described[:, feature, None]
        fits &= (claimed == OPEN) | (claimed == values[:, feature])
    return fits


def _relations(layout: Layout) -> np.ndarray:
    """Which of RELATIONS hold from slot a to slot b: (S, 3, 3, 7) bool; the last, at OPEN, always."""
    row, column = np.divmod(layout.cell, GRID)
    left = column[:, :, None] < column[:, None, :]
    above = row[:, :, None] < row[:, None, :]
    inside = np.zeros_like(left)
    inside[:, 1, 0] = layout.nested
    forward = [left, above, inside]
    inverse = [relation.swapaxes(1, 2) for relation in forward]
    return np.stack([*forward, *inverse, np.ones_like(left)], axis=-1)


def ceiling(meanings: Meanings, layout: Layout) -> dict[str, float]:
    """Recall in percent that a perfect reader reaches on a gallery; meanings[i] must describe layout[i].

    `t2i_r@k`: ties among the scenes a caption is true of are broken at random; `t2i_r@1/<template>` likewise.
    `i2t_r@k`: any of a scene's five captions within the first k, ties among all true captions broken at
    random.
    `i2t_specific_r@k`: the same, but true captions of fewer scenes come first.
    `ambiguous_captions`: percentage of captions that are true of more than one scene.
    """
    true = truth(meanings, layout)
    own = np.arange(len(layout))
    if not true[own, :, own].all():
        raise ValueError("a caption is not true of its own scene: meanings and layout differ in order")
    scenes = true.sum(-1)  # (N, 5) how many scenes each caption is true of
    result = {f"t2i_r@{k}": 100 * float(np.minimum(1, k / scenes).mean()) for k in KS}
    for index, template in enumerate(TEMPLATES):
        result[f"t2i_r@1/{template}"] = 100 * float((1 / scenes[:, index]).mean())
    for k in KS:
        for name, rank in (("i2t", np.zeros_like(scenes)), ("i2t_specific", scenes)):
            chances = [_chance_of_own(rank[true[:, :, i]], np.nonzero(true[:, :, i])[0] == i, k) for i in own]
            result[f"{name}_r@{k}"] = 100 * float(np.mean(chances))
    result["ambiguous_captions"] = 100 * float((scenes > 1).mean())
    return result


def _chance_of_own(rank: np.ndarray, own: np.ndarray, k: int) -> float:
    """Chance that one of the `own` (M,) candidates is among the first k by `rank` (M,), ties random."""
    best = rank[own].min()  # only the first level with an own candidate matters: later ones come after it
    tied, mine = int((rank == best).sum()), int((own & (rank == best)).sum())
    room = min(max(k - int((rank < best).sum()), 0), tied)
    return 1 - math.comb(tied - mine, room) / math.comb(tied, room)
