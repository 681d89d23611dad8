"""What a compiled program sends between devices."""

import re

import numpy as np


def collectives(compiled) -> list[tuple[str, int]]:
    """(kind, elements of the result) of every collective in a compiled program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\][^ ]* ({kinds})\(", compiled.as_text())
    return [(kind, int(np.prod([int(n) for n in shape.split(",") if n]))) for shape, kind in found]
