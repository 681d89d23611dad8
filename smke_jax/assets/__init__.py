"""Assets.  A new one is a function that returns an `Asset`, and a line below."""

from smke_jax.assets.corpus import corpus
from smke_jax.assets.features import stored_features

ASSETS = {"corpus": corpus, "stored_features": stored_features}
