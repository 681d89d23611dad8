"""Tasks.  A new one is a function that returns a `Draft`, and a line below."""

from smke_jax.tasks.pairs import images, pairs
from smke_jax.tasks.text import text

TASKS = {"images": images, "pairs": pairs, "text": text}
