"""Losses on similarities within a batch, STRUCTURE and relational KL, against float64 PyTorch on 1, 2 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from over_devices import DEVICES, assert_near, run_together, spread, tensors, unit_rows

from smke_jax.losses.relational import relational_kl
from smke_jax.losses.structure import jensen_shannon, structure_loss

BATCH = 8
TEMPERATURE, SCALE, TARGET_SCALE = 0.2, np.float32(4.0), 7.0

rng = np.random.default_rng(0)
BEFORE, AFTER = (rng.normal(size=(BATCH, width)).astype(np.float32) + 0.5 for width in (5, 3))
A, B, TARGET = unit_rows(rng, BATCH, 3), unit_rows(rng, BATCH, 3), unit_rows(rng, BATCH, 6)


def structure(before, after, a, b, target, scale, scope, *, levels):
    return structure_loss(before, after, levels=levels, temperature=TEMPERATURE, scope=scope), ()


def relational(before, after, a, b, target, scale, scope, *, diagonal):
    targets = target[:, :3], target[:, 3:]  # what the teacher says of one side and of the other
    there, back = relational_kl(a, b, targets, scale, TARGET_SCALE, diagonal=diagonal, scope=scope)
    return there + 3 * back, (there, back)  # another factor for each, so that they cannot be mistaken


CASES = {
    **{("structure", levels): functools.partial(structure, levels=levels) for levels in (1, 3)},
    **{("relational", diagonal): functools.partial(relational, diagonal=diagonal) for diagonal in (True, False)},
}


@pytest.fixture(scope="module", params=DEVICES)
def outcomes(request):
    """{case: ((loss, more), gradients by before, after, a, b, target and scale)}, compiled as one program."""
    runs = {f"{name} {option}": spread(request.param, case, whole=(5,)) for (name, option), case in CASES.items()}
    return run_together(runs, (BEFORE, AFTER, A, B, TARGET, SCALE), to=(0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize("levels", [1, 3])
def test_structure(outcomes, levels):
    """As the paper says it: rows normalised, then centred; powers of a stochastic matrix; JS over the level."""
    (after,) = tensors(AFTER)

    def walk(x):
        x = torch.nn.functional.normalize(x, dim=1)
        x = x - x.mean(0)
        return torch.softmax(x @ x.T / TEMPERATURE, dim=1)

    def kl(p, q):
        return sum(torch.sum(one * torch.log(one / other)) for one, other in zip(p, q, strict=True)) / BATCH

    before, loss = walk(torch.tensor(BEFORE, dtype=torch.float64)), 0
    for level in range(1, levels + 1):
        p, q = (torch.linalg.matrix_power(x, level) for x in (before, walk(after)))
        loss = loss + (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2 / level
    (loss / levels).backward()
    (value, _), (by_before, by_after, *_) = outcomes[f"structure {levels}"]
    np.testing.assert_allclose(value, loss.item() / levels, rtol=1e-5)
    assert_near(by_after, after.grad.numpy(), 1e-4)
    assert not np.any(by_before), "what was there before learns nothing"
    assert value > 0.01


@pytest.mark.parametrize("diagonal", [True, False])
def test_relational_kl(outcomes, diagonal):
    """One row at a time over the rows that count, by PyTorch's kl_div."""
    a, b, scale = tensors(A, B, SCALE)
    first, second = torch.tensor(TARGET, dtype=torch.float64).split(3, dim=1)

    def one_way(queries, keys, first, second):
        losses = []
        for i in range(BATCH):
            rows = [j for j in range(BATCH) if diagonal or j != i]
            q = torch.log_softmax(scale * keys[rows] @ queries[i], dim=0)
            p = torch.softmax(TARGET_SCALE * second[rows] @ first[i], dim=0)
            losses.append(torch.nn.functional.kl_div(q, p, reduction="sum"))
        return torch.stack(losses).mean()

    expected = one_way(a, b, first, second), one_way(b, a, second, first)
    (expected[0] + 3 * expected[1]).backward()
    (_, found), (_, _, by_a, by_b, by_target, by_scale) = outcomes[f"relational {diagonal}"]
    np.testing.assert_allclose(found, [x.item() for x in expected], rtol=1e-5)
    for ours, theirs in ((by_a, a), (by_b, b), (by_scale, scale)):
        assert_near(ours, theirs.grad.numpy())
    assert not np.any(by_target), "the teacher learns nothing"


def test_structure_by_hand_and_what_leaves_it_at_0():
    """Other lengths and a rotation change no neighbourhood."""
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    run = jax.jit(functools.partial(structure_loss, levels=2, temperature=TEMPERATURE))
    np.testing.assert_allclose(run(BEFORE, (3 * BEFORE @ turn).astype(np.float32)), 0, atol=1e-6)
    # Two rows, which come to lie on each other: softmax(±1 / 0.2) before, ½ and ½ after.
    opposite, same = np.array([[1.0, 0], [-1, 0]], np.float32), np.array([[1.0, 0], [1, 0]], np.float32)
    near = 1 / (1 + np.exp(-2 / TEMPERATURE))
    p, q = np.array([near, 1 - near]), np.array([0.5, 0.5])
    expected = sum(x @ np.log(x / ((p + q) / 2)) for x in (p, q)) / 2
    one_level = jax.jit(functools.partial(structure_loss, levels=1, temperature=TEMPERATURE))
    np.testing.assert_allclose(one_level(opposite, same), expected, rtol=1e-5)


def test_jensen_shannon_of_distributions_that_share_nothing_is_log_2():
    p, q = np.array([1.0, 0, 0], np.float32), np.array([0, 0.5, 0.5], np.float32)
    value, gradient = jax.jit(jax.value_and_grad(jensen_shannon, argnums=1))(p, q)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    assert jnp.abs(jensen_shannon(q, q)) < 1e-7
