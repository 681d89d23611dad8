"""How much of a scene a self-supervised encoder's [CLS] holds: linear probes of the scenes' known attributes."""

import numpy as np

from smke_jax.data.datasets import scenes
from smke_jax.data.scenes import attribute_probe
from smke_jax.data.transforms import squash
from smke_jax.evaluation.embed import embed_batches

PROBED = 7_000


def probe_encoder(encode, params, *, image_size: int, batch_size: int, mesh) -> dict:
    """Mean one-vs-rest AUC per attribute group (0.5 = chance) of ridge probes on the first 7,000 training scenes.

    `encode` comes from `make_encoder` of the views pass.  -> {'protocol', 'auc': {group: AUC}, 'effective_rank'}.
    """
    split = scenes().train
    batches = (
        {
            "view1": np.stack(
                [squash(image, image_size) for image in split.images[start : min(start + batch_size, PROBED)]]
            )
        }
        for start in range(0, PROBED, batch_size)
    )
    features = embed_batches(encode, params, batches, "view1/cls", PROBED, batch_size, mesh)
    attributes = {name: labels[:PROBED] for name, labels in split.attributes.items()}
    return {
        "protocol": f"ridge probe of [CLS] on {PROBED} training scenes, 70/30, mean one-vs-rest AUC",
        "auc": attribute_probe(features, attributes),
        "effective_rank": effective_rank(features),
    }


def effective_rank(features: np.ndarray) -> float:
    """exp(entropy) of the covariance's normalised eigenvalues: how many directions (N, D) features really use."""
    energy = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    share = energy[energy > 0] / energy.sum()
    return float(np.exp(-np.sum(share * np.log(share))))
