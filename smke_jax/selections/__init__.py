"""Selections.  A new one is a function that returns a `Selection`, and a line below."""

from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.selections.mask_seeds import mask_seeds
from smke_jax.selections.mixup import mixup

SELECTIONS = {"hard_negatives": hard_negatives, "mask_seeds": mask_seeds, "mixup": mixup}
