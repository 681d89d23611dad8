"""How much of a scene the feature of an image encoder holds: linear probes of the drawn scenes' known attributes."""

import numpy as np

from smke_jax.data.datasets import SCENES, scenes
from smke_jax.data.scenes import SPLITS, attribute_probe
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.tasks.base import Split, Task, first_rows

PROBED = 7_000


def scene_probe(*, feature: str = "encoder/cls", split: str = "train", every: int = 0) -> Evaluator:
    """Mean one-vs-rest AUC per attribute group (0.5 is chance) of ridge probes of `feature` (B, D), on 7,000 scenes."""
    what = "[CLS]" if feature.endswith("/cls") else feature

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        source, _, name_of_split = on.name.partition(" ")
        if source not in SCENES or name_of_split not in SPLITS:
            raise UserError(f"{on.name} are no drawn scenes: a scene probe knows the attributes of those alone")
        labels = scenes(source).split(name_of_split)
        features = encode((feature,), first_rows(on, PROBED))[feature]
        attributes = {group: known[: len(features)] for group, known in labels.attributes.items()}
        areas, rank = attribute_probe(features, attributes), effective_rank(features)
        protocol = f"ridge probe of {what} on {len(features)} scenes of {split}, 70/30, mean one-vs-rest AUC"
        record = {"protocol": protocol, "auc": areas, "effective_rank": rank}
        lines = [f"{protocol}; effective rank {rank:.1f}", *(f"  {g:14}{value:.3f}" for g, value in areas.items())]
        scalars = {f"auc/{group}": value for group, value in areas.items()} | {"effective_rank": rank}
        return Figures(scalars, record, summary="\n".join(lines))

    return Evaluator((feature,), run, split, every)


def effective_rank(features: np.ndarray) -> float:
    """exp(entropy) of the covariance's normalised eigenvalues: how many directions (N, D) features really use."""
    energy = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    share = energy[energy > 0] / energy.sum()
    return float(np.exp(-np.sum(share * np.log(share))))
