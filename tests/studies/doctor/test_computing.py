"""The tiny training of the doctor against PyTorch in 64 bits, and that wrong numbers are noticed."""

import jax
import numpy as np
import torch

from smke_jax.studies.doctor import computing
from smke_jax.studies.doctor.computing import LOSSES, STEPS, check_collective, check_training


def reference() -> list[float]:
    """The same training, written with PyTorch in 64 bits."""
    double = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    rows = {name: double(x) for name, x in computing.batch().items() if name != "id"}
    matrices = {
        (side, which): double(x).requires_grad_() for side, own in computing.parameters().items()
        for which, x in own.items()
    }  # fmt: skip
    scale = double(np.log(1 / 0.07)).requires_grad_()
    fields = computing.OPTIMIZER
    common = {"betas": fields["betas"], "eps": fields["eps"], "lr": fields["learning_rate"]}
    optimizer = torch.optim.AdamW(
        [{"params": list(matrices.values()), "weight_decay": fields["weight_decay"]},
         {"params": [scale], "weight_decay": 0.0}], **common,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    found = []
    for _ in range(STEPS):
        images, texts = (
            torch.nn.functional.normalize(
                torch.nn.functional.gelu(x @ matrices[side, "in"], approximate="tanh") @ matrices[side, "out"]
            )
            for side, x in rows.items()
        )
        logits, right = scale.exp() * images @ texts.T, torch.arange(computing.ROWS)
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(logits, right) + entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found.append(loss.item())
    return found


def test_the_stored_losses_are_those_of_pytorch():
    np.testing.assert_allclose(LOSSES, reference(), rtol=1e-6)
    assert LOSSES[-1] < 0.8 * LOSSES[0]  # there is something to get wrong


def test_a_sound_machine_passes_and_wrong_numbers_are_noticed(monkeypatch):
    found = computing.losses(8)
    monkeypatch.setattr(computing, "losses", {8: found}.get)
    exact, rounded = check_training()
    assert exact.ok and rounded.ok, (exact, rounded)
    assert "8 of 8 devices" in exact.said
    monkeypatch.setattr(computing, "LOSSES", tuple(1.001 * x for x in LOSSES))
    exact, rounded = check_training()
    assert not exact.ok and "do not train here" in exact.said
    assert rounded.ok  # a thousandth is within the rounding of bfloat16


def test_every_device_has_the_sum():
    finding = check_collective()
    assert finding.ok and "8 devices" in finding.said


def test_a_device_that_fails_is_a_finding(monkeypatch):
    def fails():
        raise jax.errors.JaxRuntimeError("INTERNAL: link is down\n  at some place")

    monkeypatch.setattr(computing, "check_collective", fails)
    (finding,) = computing.check_computing()
    assert not finding.ok and finding.said.startswith("a device fails (INTERNAL: link is down): ")
