"""Images with one class each: the layouts in which they lie on disk, and a source of each of their splits."""

from smke_jax.data.labelled.layouts import LAYOUTS, open_labelled
from smke_jax.data.labelled.source import LabelledSource

__all__ = ["LAYOUTS", "LabelledSource", "open_labelled"]
