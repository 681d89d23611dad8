"""Evaluators.  A new one is a function that returns an `Evaluator`, and a line below."""

from smke_jax.evaluators.accuracy import accuracy
from smke_jax.evaluators.retrieval import retrieval
from smke_jax.evaluators.scene_probe import scene_probe

EVALUATORS = {"accuracy": accuracy, "retrieval": retrieval, "scene_probe": scene_probe}
