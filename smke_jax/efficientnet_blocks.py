"""The blocks of an EfficientNet-Lite, from its two multipliers."""

import math
from typing import NamedTuple

DIVISOR = 8  # numbers of channels are multiples of it


class Stage(NamedTuple):
    """So many blocks with these sizes; the first of them has the stride, the others have stride 1."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


# Of Lite0: both multipliers are 1.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def blocks_of(width_multiplier: float, depth_multiplier: float) -> list[Stage]:
    """The blocks of a network of the family in order, each as a stage that is not repeated.

    Numbers of channels are multiplied and rounded to the nearest multiple of 8, but never by more than a tenth
    downwards.  Numbers of blocks are multiplied and rounded up; those of the first and of the last stage stay.
    """
    blocks = []
    for i, stage in enumerate(STAGES):
        multiplier = 1 if i in (0, len(STAGES) - 1) else depth_multiplier
        channels = _rounded(stage.channels * width_multiplier)
        for place in range(math.ceil(stage.repeats * multiplier)):
            stride = stage.stride if place == 0 else 1
            blocks.append(stage._replace(repeats=1, stride=stride, channels=channels))
    return blocks


def _rounded(channels: float) -> int:
    nearest = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return nearest if nearest >= 0.9 * channels else nearest + DIVISOR
