"""A linear probe: how well a representation tells the attributes of a scene apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TRAIN_SHARE = 0.7


def attribute_probe(
    features: np.ndarray, attributes: Mapping[str, np.ndarray], *, ridge: float = 1e-3, seed: int = 0
) -> dict[str, float]:
    """Mean one-vs-rest area under the ROC curve per attribute group, on scenes the probe was not fitted to.

    features: (N, D) float; attributes: name -> (N, K) bool. A ridge regression from the standardised features
    to each label is solved in closed form on 70 % of the scenes; `ridge` is relative to the number of these
    scenes. 0.5 is chance, 1 is perfect. Labels that are constant on the held-out scenes are left out; a group
    without any other label gives nan. Raises ValueError where a group does not have N rows.
    """
    number = len(features)
    for name, labels in attributes.items():
        if len(labels) != number:
            raise ValueError(f"attribute {name!r} has {len(labels)} rows, the features have {number}")
    order = np.random.default_rng(seed).permutation(number)
    fitted, held_out = np.split(order, [round(TRAIN_SHARE * number)])
    features = np.asarray(features, np.float64)
    mean, scale = features[fitted].mean(0), features[fitted].std(0)
    standard = (features - mean) / np.maximum(scale, 1e-8)
    labels = np.concatenate([np.asarray(a, np.float64) for a in attributes.values()], axis=1)
    x, y = standard[fitted], labels[fitted] - labels[fitted].mean(0)
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
    areas = area_under_curve(standard[held_out] @ weights, labels[held_out] > 0.5)
    ends = np.cumsum([a.shape[1] for a in attributes.values()])[:-1]
    return {
        name: float(np.nanmean(part)) if np.isfinite(part).any() else float("nan")
        for name, part in zip(attributes, np.split(areas, ends))
    }


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column of scores (N, K) for bool labels (N, K): (K,), nan if constant.

    It is the chance that a positive scores above a negative, equal scores counting one half.
    """
    areas = np.full(scores.shape[1], np.nan)
    for column, (score, label) in enumerate(zip(scores.T, labels.T)):
        positives = int(label.sum())
        negatives = len(label) - positives
        if positives and negatives:
            _, group, size = np.unique(score, return_inverse=True, return_counts=True)
            rank = (np.cumsum(size) - (size - 1) / 2)[group]  # 1-based, the mean rank among equal scores
            areas[column] = (rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return areas
