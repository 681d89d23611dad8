"""What the codebook term keeps and reports, against plain NumPy, alone and spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.losses.collective import ALONE
from smke_jax.objectives.image_vq import image_vq
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.training.recipe import Recipe
from smke_jax.training.step import run_terms

BATCH, CODES, WIDTH = 16, 12, 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def made_up(seed, codes=None):
    """Representations as the autoencoder makes them with `codes`."""
    rng = np.random.default_rng(seed)
    latent = unit(rng.normal(size=(BATCH, WIDTH))).astype(np.float32)
    codes = unit(rng.normal(size=(CODES, WIDTH))).astype(np.float32) if codes is None else np.asarray(codes)
    both = {f"{name}": rng.normal(size=(BATCH, 6)).astype(np.float32) for name in ("code/reconstruction", "target/cls")}
    return both | {"code/latent": latent, "code/similarity": latent @ codes.T}


def start(term):
    reps = made_up(0)
    return term.init(jax.random.key(0), {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()})


def test_it_begins_with_unit_codes_of_equal_use():
    _, slots = start(image_vq())
    np.testing.assert_allclose(np.linalg.norm(slots["codes"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(slots["usage"], np.full(CODES, 1 / CODES), rtol=1e-6)
    assert not slots["started"]


@pytest.mark.parametrize("restart", [False, True])
def test_updates(restart):
    """K-means on the first batch, wherever the random codes were; from then on moving averages, and restarts."""
    decay, below = 0.5, 0.6  # no share lies on the border
    term = image_vq(decay=decay, dead_below=below, restart=restart)
    _, slots = start(term)
    update = jax.jit(term.update)
    first = made_up(1, slots["codes"])
    slots = update(slots, first)
    x = first["code/latent"].astype(np.float64)
    codes = x[np.arange(CODES)]
    for _ in range(10):
        nearest = np.argmax(x @ codes.T, axis=1)
        codes = np.stack([unit(x[nearest == j].mean(0)) if np.any(nearest == j) else codes[j] for j in range(CODES)])
    np.testing.assert_allclose(slots["codes"], codes, atol=1e-5)
    assert slots["started"]
    usage, restarted = np.full(CODES, 1 / CODES), 0
    for seed in range(2, 6):
        reps = made_up(seed, slots["codes"])
        codes, x = np.asarray(slots["codes"], np.float64), reps["code/latent"].astype(np.float64)
        nearest = np.argmax(reps["code/similarity"], axis=1)
        for j in np.unique(nearest):
            codes[j] = unit(decay * codes[j] + (1 - decay) * unit(x[nearest == j].mean(0)))
        usage = decay * usage + (1 - decay) * np.bincount(nearest, minlength=CODES) / BATCH
        dead = np.flatnonzero(usage * CODES < below)
        if restart:
            worst = np.argsort([x[i] @ codes[nearest[i]] for i in range(BATCH)])
            codes[dead], usage[dead] = x[worst[: len(dead)]], 1 / CODES
            restarted += len(dead)
        slots = update(slots, reps)
        np.testing.assert_allclose(slots["codes"], codes, atol=1e-5)
        np.testing.assert_allclose(slots["usage"], usage, rtol=1e-5)
    assert restarted or not restart, "the test tests something"


def test_of_more_dead_codes_than_images_the_others_stay_dead():
    term, size = image_vq(restart=True, dead_below=0.5), 3 * BATCH
    rng = np.random.default_rng(0)
    codes = unit(rng.normal(size=(size, WIDTH))).astype(np.float32)
    usage = np.zeros(size, np.float32)
    usage[-2:] = 0.5
    reps = made_up(1, codes)
    slots = {"codes": jnp.asarray(codes), "usage": jnp.asarray(usage), "started": jnp.ones((), jnp.bool)}
    after = term.update(slots, reps)
    np.testing.assert_allclose(after["usage"][:BATCH], 1 / size, rtol=1e-6)
    nearest = np.argmax(reps["code/similarity"], axis=1)
    share = 0.01 * np.bincount(nearest, minlength=size) / BATCH
    np.testing.assert_allclose(after["usage"][BATCH:], (0.99 * usage + share)[BATCH:], rtol=1e-5)
    assert {tuple(x) for x in np.asarray(after["codes"][:BATCH])} == {tuple(x) for x in reps["code/latent"]}


def test_real_updates_are_the_same_over_8_devices():
    """K-means, averages and restarts of rows that lie spread over the devices."""
    term = image_vq(decay=0.5, dead_below=0.7, restart=True)

    def after(devices):
        mesh, (_, slots) = make_mesh(devices), start(term)
        update = jax.jit(term.update)
        for seed in range(1, 5):
            slots = update(slots, put_batch(made_up(seed, jax.device_get(slots["codes"])), mesh))
        return jax.device_get(slots)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), after(1), after(8))


@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_reported_is_of_the_global_batch(devices):
    term = image_vq(dead_below=0.5)
    _, slots = start(term)
    usage = np.array([0.3, 0.3, 0.2, 0.1, 0.1, 0, 0, 0, 0, 0, 0, 0], np.float32)
    slots, reps = slots | {"usage": jnp.asarray(usage)}, made_up(3, slots["codes"])
    mesh = make_mesh(devices)
    recipe = Recipe({}, (), {"t": term}, {})
    run = jax.jit(lambda slots, reps: run_terms(recipe, mesh, {"t": {}}, {"t": slots}, reps, key=jax.random.key(0)))
    losses, metrics = jax.device_get(run(slots, put_batch(reps, mesh)))
    nearest = np.argmax(reps["code/similarity"], axis=1)
    a, b = unit(reps["code/reconstruction"]), unit(reps["target/cls"])
    rebuilt = np.mean(1 - np.sum(a * b, axis=1))
    distance = np.mean(np.square(reps["code/latent"] - np.asarray(slots["codes"])[nearest]))
    entropy = -sum(p * np.log(p) for p in usage if p)
    expected = {
        "loss_reconstruction": rebuilt,
        "loss_commitment": distance,
        "codes_in_batch": len(set(nearest)) / CODES,
        "perplexity": np.exp(entropy),
        "dead_codes": 7 / 12,
    }
    assert {name.removeprefix("t/") for name in metrics} == set(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(metrics[f"t/{name}"], wanted, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(losses["t"], rebuilt + distance, rtol=1e-5)


def test_a_code_that_no_image_has_dies_and_a_restart_brings_it_back():
    """Codes that begin all over the sphere, and images that are all of one side from then on."""
    rng = np.random.default_rng(0)

    def near_a_pole():
        return unit(np.array([1, 0, 0]) + 0.2 * rng.normal(size=(BATCH, WIDTH))).astype(np.float32)

    def dead_share(restart):
        term = image_vq(decay=0.9, restart=restart)
        _, slots = start(term)
        update, value = jax.jit(term.update), jax.jit(lambda slots, reps: term.value({}, slots, reps, ALONE)[1])
        slots = update(slots, made_up(1, slots["codes"]))
        for _ in range(100):
            latent = near_a_pole()
            reps = made_up(0) | {"code/latent": latent, "code/similarity": latent @ np.asarray(slots["codes"]).T}
            slots = update(slots, reps)
        return float(value(slots, reps)["dead_codes"])

    assert dead_share(restart=False) > 0.5
    assert dead_share(restart=True) == 0
