"""Networks.  A new one is a function that returns a `Network`, and a line below."""

from smke_jax.networks.average import average
from smke_jax.networks.classifier import classifier
from smke_jax.networks.codes import autoencoder, quantizer
from smke_jax.networks.encoder import encoder
from smke_jax.networks.frozen import frozen
from smke_jax.networks.fused_towers import fused_towers
from smke_jax.networks.image_tower import image_tower
from smke_jax.networks.layered import layered_image, layered_text
from smke_jax.networks.masked_image_tower import masked_image_tower
from smke_jax.networks.patch_predictor import patch_predictor
from smke_jax.networks.projections import projections
from smke_jax.networks.text_classifier import text_classifier
from smke_jax.networks.text_tower import text_tower
from smke_jax.networks.two_towers import two_towers

NETWORKS = {
    "autoencoder": autoencoder,
    "average": average,
    "classifier": classifier,
    "encoder": encoder,
    "frozen": frozen,
    "fused_towers": fused_towers,
    "image_tower": image_tower,
    "layered_image": layered_image,
    "layered_text": layered_text,
    "masked_image_tower": masked_image_tower,
    "patch_predictor": patch_predictor,
    "projections": projections,
    "quantizer": quantizer,
    "text_classifier": text_classifier,
    "text_tower": text_tower,
    "two_towers": two_towers,
}
