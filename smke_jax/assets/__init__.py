"""Assets.  A new one is a function that returns an `Asset`, and a line below."""

from smke_jax.assets.features import stored_features

ASSETS = {"stored_features": stored_features}
