"""ITC with banks of keys against float64 PyTorch, and what its banks hold."""

import jax
import numpy as np
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives.bank_itc import bank_itc
from smke_jax.objectives.memory_bank import UNFILLED
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.training.recipe import Recipe
from smke_jax.training.step import run_terms

BATCH = 8
WIDTH = {"fc1": 6, "out": 4}
LEVELS = tuple(WIDTH)
OTHER = {"image": "text", "text": "image"}


def made_up(seed, images=9):
    rng = np.random.default_rng(seed)
    reps = {
        f"{prefix}{side}/{level}": rng.normal(size=(BATCH, width)).astype(np.float32)
        for prefix in ("", "momentum/") for side in OTHER for level, width in WIDTH.items()
    }  # fmt: skip
    return reps | {"id": rng.integers(0, images, BATCH).astype(np.int32)}


def shapes(reps):
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()}


def reference(reps, past, keys, log_scales, masked):
    """-> (loss, tensors with gradients); `past`: what the banks hold, as pairs of one example's representations and id.

    Row by row: every query's logits with its own key, the others' and the bank's, and the class is the first.
    """
    t = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in reps.items() if k != "id"}
    scales = {level: torch.tensor(float(x), dtype=torch.float64, requires_grad=True) for level, x in log_scales.items()}
    ids, losses = reps["id"], []
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
    for level, scale in scales.items():
        for side, other in OTHER.items():
            name = f"{keys}{other}/{level}"
            key = t[name].detach() if keys else t[name]
            for i in range(BATCH):
                rows = [i] + [j for j in range(BATCH) if j != i and not (masked and ids[j] == ids[i])]
                stored = [torch.tensor(old[name].astype(np.float64)) for old, image in past if image != ids[i]]
                candidates = unit(torch.stack([*key[rows], *stored]))
                logits = scale.exp() * candidates @ unit(t[f"{side}/{level}"][i])
                losses.append(-torch.log_softmax(logits, 0)[0])
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), t, scales


@pytest.mark.parametrize("keys,masked,size,pushes,devices", [
    ("", False, 24, 2, 8), ("", True, 21, 4, 1), ("momentum/", False, 24, 2, 1), ("momentum/", False, 21, 4, 8),
])  # fmt: skip
def test_value_and_gradient(keys, masked, size, pushes, devices):
    """Of two levels, with a bank that is filled in part and spread over devices, and one that has wrapped around."""
    term = bank_itc(LEVELS, keys, size, same_image="masked" if masked else "negative")
    reps = {name: x for name, x in made_up(9).items() if name in term.needs}
    params, banks = term.init(jax.random.key(0), shapes(reps))
    past = []
    for seed in range(pushes):
        old = made_up(seed)
        banks = term.update(banks, old)
        past += [({k: v[i] for k, v in old.items()}, old["id"][i]) for i in range(BATCH)]
    past = past[-size:]
    log_scales = {level: params["logit_scale"][level] - shift for level, shift in zip(LEVELS, (0.3, 0.8), strict=True)}
    expected, tensors, d_scales = reference(reps, past, keys, log_scales, masked)

    mesh = make_mesh(devices)
    recipe = Recipe({}, (), {"t": term}, {})

    @jax.jit
    def run(scales, features, ids, banks):
        def loss(scales, features):
            everything = {**features, "id": ids}
            own = {"t": {"logit_scale": scales}}, {"t": banks}
            losses, metrics = run_terms(recipe, mesh, *own, everything, key=jax.random.key(0))
            return losses["t"], metrics

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(scales, features)

    batch = put_batch(reps, mesh)
    with jax.default_matmul_precision("highest"):
        (value, metrics), (d_log_scales, d_reps) = run(log_scales, batch, batch.pop("id"), banks)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose((metrics["t/loss_fc1"] + metrics["t/loss_out"]) / 2, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["t/bank_filled"], min(1, pushes * BATCH / size), rtol=1e-6)
    for level in LEVELS:
        np.testing.assert_allclose(d_log_scales[level], d_scales[level].grad, rtol=1e-4)
    for name, gradient in d_reps.items():
        wanted = np.zeros_like(gradient) if name.startswith("momentum/") else tensors[name].grad
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("keys", ["", "momentum/"])
def test_the_banks_hold_normalised_keys_of_every_side_and_level(keys):
    term, reps = bank_itc(LEVELS, keys, 20), made_up(0)
    _, banks = term.init(jax.random.key(0), shapes(reps))
    banks = term.update(banks, reps)
    for side in OTHER:
        for level in LEVELS:
            x = reps[f"{keys}{side}/{level}"]
            expected = x / np.linalg.norm(x, axis=1, keepdims=True)
            np.testing.assert_allclose(banks[side][level].features[:BATCH], expected, rtol=1e-5)
            np.testing.assert_array_equal(banks[side][level].ids, [*reps["id"], *[UNFILLED] * 12])


def test_random_vectors_count_from_the_start():
    """The thesis' initial content (spec 11): in the positive orthant, different in every bank."""
    reps = made_up(0)
    with_random, without = (bank_itc(("out",), "", 30, random_bank=random) for random in (True, False))
    params, banks = with_random.init(jax.random.key(0), shapes(reps))
    image, text = (np.asarray(banks[side]["out"].features) for side in OTHER)
    assert np.all(image >= 0) and np.all(text >= 0) and not np.any(image == text)
    loss, metrics = with_random.value(params, banks, reps, ALONE)
    empty, _ = without.value(params, without.init(jax.random.key(0), shapes(reps))[1], reps, ALONE)
    assert loss > empty + 0.1 and metrics["bank_filled"] == 1


def test_a_bank_smaller_than_the_batch_is_refused():
    with pytest.raises(UserError, match=f"bank_itc.bank_size 7 is smaller than the batch of {BATCH}: raise it"):
        bank_itc(("out",), "", 7).init(jax.random.key(0), shapes(made_up(0)))
