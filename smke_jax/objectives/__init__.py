"""Objectives.  A new one is one file here, one line below, and its name in a config's `terms`."""

from smke_jax.objectives.bank_itc import bank_itc
from smke_jax.objectives.classify import classify
from smke_jax.objectives.cmli import cmli
from smke_jax.objectives.cosine import cosine
from smke_jax.objectives.fused_itm import fused_itm
from smke_jax.objectives.hard_itc import hard_itc
from smke_jax.objectives.image_vq import image_vq
from smke_jax.objectives.intra_modal import intra_modal
from smke_jax.objectives.itc import itc
from smke_jax.objectives.itm import itm
from smke_jax.objectives.kl import kl
from smke_jax.objectives.layer_means import layer_means
from smke_jax.objectives.mim import mim
from smke_jax.objectives.mlm import mlm
from smke_jax.objectives.momentum_itc import momentum_itc
from smke_jax.objectives.mrm import mrm
from smke_jax.objectives.proximal_itc import proximal_itc
from smke_jax.objectives.ranking import ranking
from smke_jax.objectives.reconstruct import reconstruct
from smke_jax.objectives.regress import regress
from smke_jax.objectives.relational_kl import relational_kl
from smke_jax.objectives.score import score
from smke_jax.objectives.score_kl import score_kl
from smke_jax.objectives.siglip import siglip
from smke_jax.objectives.structure import structure
from smke_jax.objectives.target_cmli import target_cmli
from smke_jax.objectives.target_cmli_cosine import target_cmli_cosine
from smke_jax.objectives.target_code import target_code
from smke_jax.objectives.target_itc import target_itc
from smke_jax.objectives.vicreg import vicreg

TERMS = {
    "bank_itc": bank_itc,
    "classify": classify,
    "cmli": cmli,
    "cosine": cosine,
    "fused_itm": fused_itm,
    "hard_itc": hard_itc,
    "image_vq": image_vq,
    "intra_modal": intra_modal,
    "itc": itc,
    "itm": itm,
    "kl": kl,
    "layer_means": layer_means,
    "mim": mim,
    "mlm": mlm,
    "momentum_itc": momentum_itc,
    "mrm": mrm,
    "proximal_itc": proximal_itc,
    "ranking": ranking,
    "reconstruct": reconstruct,
    "regress": regress,
    "relational_kl": relational_kl,
    "score": score,
    "score_kl": score_kl,
    "siglip": siglip,
    "structure": structure,
    "target_cmli": target_cmli,
    "target_cmli_cosine": target_cmli_cosine,
    "target_code": target_code,
    "target_itc": target_itc,
    "vicreg": vicreg,
}
