"""Objectives.  A new one is one file here, one line below, and its name in a config's `terms`."""

from smke_jax.objectives.cmli import cmli
from smke_jax.objectives.cosine import cosine
from smke_jax.objectives.itc import itc
from smke_jax.objectives.itm import itm
from smke_jax.objectives.kl import kl
from smke_jax.objectives.ranking import ranking
from smke_jax.objectives.reconstruct import reconstruct
from smke_jax.objectives.regress import regress
from smke_jax.objectives.siglip import siglip
from smke_jax.objectives.target_cmli import target_cmli
from smke_jax.objectives.target_cmli_cosine import target_cmli_cosine
from smke_jax.objectives.target_itc import target_itc
from smke_jax.objectives.vicreg import vicreg

TERMS = {
    "cmli": cmli,
    "cosine": cosine,
    "itc": itc,
    "itm": itm,
    "kl": kl,
    "ranking": ranking,
    "reconstruct": reconstruct,
    "regress": regress,
    "siglip": siglip,
    "target_cmli": target_cmli,
    "target_cmli_cosine": target_cmli_cosine,
    "target_itc": target_itc,
    "vicreg": vicreg,
}
