"""Masked image modelling as a run computes it: value and gradient are PyTorch's, on any devices, in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.losses.collective import ALONE
from smke_jax.networks.average import average
from smke_jax.networks.image_tower import image_tower
from smke_jax.networks.patch_predictor import patch_predictor
from smke_jax.objectives.mim import mim
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.passes.averaged import averaged
from smke_jax.passes.predict_patches import TARGETS
from smke_jax.selections.draws import draws
from smke_jax.training.recipe import key_of, make_recipe
from smke_jax.training.step import init_state, make_train_step, run_selection

RATE = 0.1
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
    "id": (np.arange(16) // 2).astype(np.int32),
}
TOWER = part("vit", image_size=16, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=12, init_std=0.2)


def recipe_of_all():
    """One tower, and for each target a predictor and a term: their losses add up."""
    tower = image_tower(start="random", model=TOWER, mask_cell=8, mask_ratio=0.5)
    networks, passes = {"tower": tower}, [*tower.forward("tower", {})]
    passes += [averaged(p, "tower", "teacher", passes[:3]) for p in passes[:3]]
    for target in TARGETS:
        networks[target] = patch_predictor(target=target, hidden=(6,) if target == "ema" else (), makes=target)
        passes += networks[target].forward(target, {})
    networks["teacher"] = average(of="tower", decay=0.9)
    terms = {target: mim(makes=target, watched=target == "ema") for target in TARGETS}
    always = dict.fromkeys(TARGETS, lambda progress: 1.0)
    return make_recipe(networks, passes, terms, always, batch=("image", "id"), selections=(draws(),))


def stepped(recipe, devices, micro_batch=0):
    """[(parameters, metrics) at the start and after each of two steps on the same batch], and the random key."""
    mesh, tx = make_mesh(devices), optax.sgd(RATE)
    state = init_state(recipe, tx, mesh, BATCH, seed=0)
    seen, key = [jax.device_get((state.params, {}))], state.rng.copy()
    step = make_train_step(recipe, tx, mesh, total_steps=4, micro_batch=micro_batch)
    with jax.default_matmul_precision("highest"):
        for _ in range(2):
            state, metrics = step(state, {}, put_batch(BATCH, mesh))
            seen.append(jax.device_get((state.params, metrics)))
    return seen, key


def distance_by_torch(target, found, wanted):
    """Of the hidden patches (n, K), as the papers' codes have it."""
    if target == "pixel":  # SimMIM: the sum over hidden pixels, divided by their number and by three channels
        return (found - wanted).abs().sum() / (found.numel() / 3 + 1e-5) / 3
    if target == "ema":
        return torch.nn.functional.l1_loss(found, torch.nn.functional.layer_norm(wanted, wanted.shape[-1:]))
    return torch.nn.functional.mse_loss(found, wanted)


@pytest.mark.slow
def test_value_and_gradient_are_pytorchs_and_the_same_on_any_devices_and_in_micro_batches():
    recipe = recipe_of_all()
    seen, rng = stepped(recipe, 1)
    (start, _), (params, metrics), _ = seen
    key = jax.random.fold_in(rng, 0)
    seeds = run_selection(draws(), make_mesh(1), {}, BATCH, key=key_of(key, "draws"))["draws"]
    runs = {p.name: p for p in recipe.passes}
    arrays = {"image": BATCH["image"], "draws": seeds}

    @jax.jit
    def forward(tower):
        whole = runs["tower"].run({"tower": tower}, arrays, key, True)
        targets = runs["tower/targets"].run({}, arrays, key, True)
        # Before the first step the average is the network itself.
        wanted = {"ema": whole["image/tokens"]} | {name: targets[f"image/{name}"] for name in TARGETS if name != "ema"}
        return tokens(tower)[0], tokens(tower)[1], wanted

    def tokens(tower):
        made = runs["tower/masked"].run({"tower": tower}, arrays, key, True)
        return made["masked_image/tokens"], made["masked_image/chosen"]

    with jax.default_matmul_precision("highest"):
        encoded, mask, wanted = jax.device_get(forward(start["tower"]))
    hidden = mask == 1
    assert hidden.sum(1).tolist() == [8] * 16
    x = torch.tensor(encoded, requires_grad=True)
    for target in TARGETS:
        head = {name: {k: torch.tensor(v, requires_grad=True) for k, v in start[target][name].items()}
                for name in sorted(start[target])}  # fmt: skip
        y = x
        for i, own in enumerate(head.values()):
            y = (torch.nn.functional.gelu(y) if i else y) @ own["kernel"] + own["bias"]
        expected = distance_by_torch(target, y[hidden], torch.tensor(wanted[target])[hidden])
        expected.backward()
        np.testing.assert_allclose(metrics[f"{target}/loss"], expected.item(), rtol=1e-5)
        for name, own in head.items():
            for what, tensor in own.items():
                moved = (start[target][name][what] - params[target][name][what]) / RATE
                np.testing.assert_allclose(moved, tensor.grad, rtol=2e-3, atol=5e-6)

    @jax.jit
    def pulled(tower, cotangent):
        return jax.grad(lambda tower: jnp.sum(tokens(tower)[0] * cotangent))(tower)

    with jax.default_matmul_precision("highest"):
        gradient = pulled(start["tower"], x.grad.numpy())
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, start["tower"], params["tower"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-5), moved, gradient)
    assert np.abs(gradient["mask_token"]).max() > 1e-5, "the mask token learns"

    for devices, micro_batch in ((8, 0), (2, 4)):
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)  # noqa: E731
        jax.tree.map(near, stepped(recipe, devices, micro_batch)[0], seen)


def test_visible_patches_do_not_count():
    error = RNG.normal(size=(4, 6)) ** 2
    mask = np.tile([1, 1, 0, 0, 0, 1], (4, 1))
    reps = {"mim/error": error, "masked_image/chosen": mask}
    value, _ = mim().value({}, (), {k: jnp.asarray(x, jnp.float32) for k, x in reps.items()}, ALONE)
    np.testing.assert_allclose(value, error[mask == 1].mean(), rtol=1e-6)


def test_a_target_of_other_patches_is_named():
    network = patch_predictor(of="masked_image/tokens", target="hog")
    specs = {"masked_image/tokens": jax.ShapeDtypeStruct((2, 4, 8), np.float32)}
    with pytest.raises(Exception, match="nothing makes image/hog: name a network in config.networks that does"):
        network.init(jax.random.key(0), specs)
    specs["image/hog"] = jax.ShapeDtypeStruct((2, 9, 108), np.float32)
    with pytest.raises(Exception, match="masked_image/tokens has 4 patches and image/hog 9: set `of`"):
        network.init(jax.random.key(0), specs)
    with pytest.raises(Exception, match="target is 'pixels': did you mean pixel"):
        patch_predictor(target="pixels")
