"""Objectives.  A new one is one file here, one line below, and its name in a config's `terms`."""

from smke_jax.objectives.itc import itc
from smke_jax.objectives.reconstruct import reconstruct
from smke_jax.objectives.regress import regress
from smke_jax.objectives.siglip import siglip
from smke_jax.objectives.target_itc import target_itc
from smke_jax.objectives.vicreg import vicreg

TERMS = {
    "itc": itc,
    "reconstruct": reconstruct,
    "regress": regress,
    "siglip": siglip,
    "target_itc": target_itc,
    "vicreg": vicreg,
}
