"""Matching by a fusion encoder: value and gradient by PyTorch, on 1, 2 and 8 devices; no pair of one image is wrong."""

import numpy as np
import torch
import torch.nn.functional as F
from over_devices import DEVICES, assert_near, run_together, spread, tensors

from smke_jax.losses.collective import ALONE
from smke_jax.objectives.fused_itm import fused_itm

B = 16
rng = np.random.default_rng(0)
MATCHES = [rng.normal(size=(B, 2)).astype(np.float32) for _ in range(3)]
ID = rng.integers(0, 9, B).astype(np.int32)
CHOSEN = [rng.integers(0, B, B) for _ in range(2)]


def found(ids):
    """{devices: ((loss, metrics), gradients by the three logits)}."""
    term = fused_itm()

    def ours(*arrays, scope):
        return term.value({}, (), dict(zip(term.needs, arrays, strict=True)), scope)

    run = lambda devices: run_together({0: spread(devices, ours)}, (*MATCHES, *ids), to=(0, 1, 2))[0]  # noqa: E731
    return {devices: run(devices) for devices in DEVICES}


def test_it_is_what_pytorch_computes_over_pairs_of_different_images():
    ids = [ID, *(ID[rows] for rows in CHOSEN)]
    wrong = [x != ID for x in ids[1:]]
    assert not all(x.all() for x in wrong) and len({x.reshape(8, 2).sum(1).tobytes() for x in wrong}) == 2
    logits = tensors(*MATCHES)
    kept = [logits[0], *(x[torch.tensor(where)] for x, where in zip(logits[1:], wrong, strict=True))]
    labels = torch.cat([torch.ones(B), torch.zeros(sum(len(x) for x in kept[1:]))]).long()
    loss = F.cross_entropy(torch.cat(kept), labels)
    loss.backward()
    accuracy = (torch.cat(kept).argmax(1) == labels).double().mean().item()
    for (value, metrics), gradients in found(ids).values():
        assert_near(value, loss.item())
        assert_near(metrics["accuracy"], accuracy)
        assert_near(metrics["same_image"], 1 - np.mean(np.concatenate(wrong)))
        for ours, theirs in zip(gradients, logits, strict=True):
            assert_near(ours, theirs.grad.numpy())


def test_of_equal_logits_it_is_the_entropy_of_a_coin():
    """Closed case: log 2, and a network that always says no is right in two of three."""
    term = fused_itm()
    ids = [np.arange(B, dtype=np.int32), *(np.roll(np.arange(B), x).astype(np.int32) for x in (1, 2))]
    logits = [np.zeros((B, 2), np.float32)] * 3
    loss, metrics = term.value({}, (), dict(zip(term.needs, [*logits, *ids], strict=True)), ALONE)
    assert_near(loss, np.log(2))
    assert_near(metrics["accuracy"], 2 / 3)
    assert metrics["same_image"] == 0
