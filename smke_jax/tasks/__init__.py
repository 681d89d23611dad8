"""Tasks.  A new one is a function that returns a `Draft`, and a line below."""

from smke_jax.tasks.captions import captions
from smke_jax.tasks.labelled_images import labelled_images
from smke_jax.tasks.labelled_text import labelled_text
from smke_jax.tasks.pairs import images, pairs
from smke_jax.tasks.text import text

TASKS = {
    "captions": captions,
    "images": images,
    "labelled_images": labelled_images,
    "labelled_text": labelled_text,
    "pairs": pairs,
    "text": text,
}
