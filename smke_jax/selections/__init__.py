"""Selections.  A new one is a function that returns a `Selection`, and a line below."""

from smke_jax.selections.corpus_negatives import corpus_negatives
from smke_jax.selections.draws import draws
from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.selections.mixup import mixup

SELECTIONS = {
    "corpus_negatives": corpus_negatives,
    "draws": draws,
    "hard_negatives": hard_negatives,
    "mixup": mixup,
}
