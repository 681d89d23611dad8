"""S-SMKE in JAX: small image-text retrieval models distilled from a frozen, self-supervised image teacher."""

__version__ = "0.1.0"
