"""Evaluators.  A new one is a function that returns an `Evaluator`, and a line below."""

from smke_jax.evaluators.layer_agreement import layer_agreement
from smke_jax.evaluators.retrieval import retrieval
from smke_jax.evaluators.scene_probe import scene_probe

EVALUATORS = {"layer_agreement": layer_agreement, "retrieval": retrieval, "scene_probe": scene_probe}
