"""Evaluators.  A new one is a function that returns an `Evaluator`, and a line below."""

from smke_jax.evaluators.accuracy import accuracy
from smke_jax.evaluators.labels import labels
from smke_jax.evaluators.layer_agreement import layer_agreement
from smke_jax.evaluators.masked_words import masked_words
from smke_jax.evaluators.probe import probe
from smke_jax.evaluators.reconstruction import reconstruction
from smke_jax.evaluators.rerank import rerank
from smke_jax.evaluators.retrieval import retrieval
from smke_jax.evaluators.scene_probe import scene_probe
from smke_jax.evaluators.word_patches import word_patches
from smke_jax.evaluators.zero_shot import zero_shot

EVALUATORS = {
    "accuracy": accuracy,
    "labels": labels,
    "layer_agreement": layer_agreement,
    "masked_words": masked_words,
    "probe": probe,
    "reconstruction": reconstruction,
    "rerank": rerank,
    "retrieval": retrieval,
    "scene_probe": scene_probe,
    "word_patches": word_patches,
    "zero_shot": zero_shot,
}
