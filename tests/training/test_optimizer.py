"""Learning rate, decay, rules, AdamW, Muon, the logit-scale clamp and clipping, each against a plain formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from smke_jax.config import base, smoke
from smke_jax.models.student import build_student
from smke_jax.training.optimizer import MAX_LOG_SCALE, build_optimizer, learning_rate, paths

BATCH, TOTAL = 512, 40


def settings(**changes) -> ConfigDict:
    config = base().optimizer
    config.update(learning_rate=1e-2, warmup_fraction=0.0, weight_decay=0.0, **changes)
    return config


def first_rate(config) -> float:
    return config.learning_rate * BATCH / 256


def one_update(config, params, grads, steps: int = 1):
    """Parameters after `steps` steps with the same gradient, and the optimiser's state."""
    tx, _ = build_optimizer(config, batch_size=BATCH, total_steps=TOTAL)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[0])(params)


def random_like(tree, seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), tree)


def by_path(tree) -> dict[str, np.ndarray]:
    names = jax.tree.leaves(paths(tree))
    return dict(zip(names, map(np.asarray, jax.tree.leaves(tree)), strict=True))


@pytest.fixture(scope="module")
def student_params():
    """Every kind of parameter that a student with one term has, filled with random numbers."""
    c = base()
    c.terms.itc = {"levels": ("fc1", "out")}
    c = smoke(c)
    student = build_student(c.student, vocab_size=20, target_dim=32)
    text = jax.ShapeDtypeStruct((2, 6), jnp.int32)
    shapes = jax.eval_shape(
        student.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), text, text
    )["params"]
    params = random_like({"student": shapes}, 0)
    return {**params, "terms": {"itc": {"logit_scale": jnp.full(2, 2.0)}}}


@pytest.mark.parametrize("total,fraction", [(44_636, 0.1), (37, 0.1), (20, 0.25)])
def test_the_schedule_is_a_linear_warm_up_and_half_a_cosine(total, fraction):
    schedule = learning_rate(peak=3.0, total_steps=total, warmup_fraction=fraction)
    warmup = int(fraction * total)
    for step in {0, 1, warmup // 2, warmup - 1, warmup, warmup + 1, (warmup + total) // 2, total - 1, total}:
        rise = 3.0 * step / warmup
        fall = 1.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        np.testing.assert_allclose(float(schedule(step)), rise if step < warmup else fall, rtol=1e-4, atol=1e-6)


def test_the_thesis_warm_up_of_two_gpus_is_4463_steps():
    schedule = learning_rate(peak=1.0, total_steps=44_636, warmup_fraction=0.1)
    assert float(schedule(4462)) < 1.0 == float(schedule(4463))


@pytest.mark.parametrize("batch", [64, 256, 1024])
def test_the_peak_grows_with_the_batch(batch):
    config = settings()
    config.learning_rate, config.warmup_fraction = 2e-3, 0.1
    _, schedule = build_optimizer(config, batch_size=batch, total_steps=100)
    rates = [float(schedule(i)) for i in range(101)]
    np.testing.assert_allclose(max(rates), 2e-3 * batch / 256, rtol=1e-6)
    assert rates.index(max(rates)) == 10


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_spares_vectors_cls_tables_and_scales(student_params, name):
    grads = random_like(student_params, 1)
    config = settings(name=name)
    plain = by_path(one_update(config, student_params, grads)[0])
    config.weight_decay = 0.5
    decayed = by_path(one_update(config, student_params, grads)[0])
    before = by_path(student_params)
    assert any(path.endswith("bias") for path in before)
    assert {"student/image_encoder/cls_token", "student/type_embedding", "terms/itc/logit_scale"} <= set(before)
    assert len([path for path in before if "text_encoder" in path and path.endswith("embedding")]) == 3
    for path, value in before.items():
        spared = value.ndim == 1 or path.endswith(("embedding", "cls_token"))
        assert spared or path.endswith("kernel"), f"{path}: a kind of parameter this test does not know"
        expected = 0.0 if spared else -first_rate(config) * 0.5 * value
        np.testing.assert_allclose(decayed[path] - plain[path], expected, rtol=1e-3, atol=1e-6, err_msg=path)
    assert before["student/image_encoder/patch_embed/kernel"].ndim == 4


def test_rules_scale_the_rate_and_its_decay_and_the_first_match_wins(student_params):
    grads = random_like(student_params, 2)
    config = settings()
    config.weight_decay = 0.1
    plain, before = by_path(one_update(config, student_params, grads)[0]), by_path(student_params)
    config.lr_rules = (("image_encoder/block_0/mlp", 0.5), ("image_encoder", 0.1), ("mlp", 3.0))
    ruled = by_path(one_update(config, student_params, grads)[0])
    seen = set()
    for path in before:
        if "logit_scale" in path:
            continue
        factor = 1.0
        if "image_encoder" in path:
            factor = 0.5 if "block_0/mlp" in path else 0.1
        elif "mlp" in path:
            factor = 3.0
        seen.add(factor)
        change = factor * (plain[path] - before[path])
        np.testing.assert_allclose(ruled[path] - before[path], change, rtol=1e-3, atol=2e-6, err_msg=path)
    assert seen == {0.1, 0.5, 1.0, 3.0}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_factor_0_freezes_without_state_or_decay(student_params, name):
    grads = random_like(student_params, 3)
    config = settings(name=name)
    config.weight_decay = 0.3
    _, state = one_update(config, student_params, grads)
    config.lr_rules = (("student/text_encoder", 0),)
    after, frozen_state = one_update(config, student_params, grads, steps=2)
    after, before = by_path(after), by_path(student_params)
    for path in before:
        assert np.array_equal(after[path], before[path]) == ("text_encoder" in path), path
    states = [x for x in by_path(frozen_state) if "text_encoder" in x]
    assert states == []
    assert [x for x in by_path(state) if "text_encoder" in x]


def test_frozen_gradients_do_not_count_in_clipping():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    grads = {"a": {"kernel": jnp.full((2, 2), 0.1)}, "b": {"kernel": jnp.full((2, 2), 1e6)}}
    config = settings(clip_norm=1.0, lr_rules=(("b", 0),), eps=1.0)
    clipped, _ = one_update(config, params, grads)
    config.clip_norm = 0.0
    plain, _ = one_update(config, params, grads)
    np.testing.assert_array_equal(clipped["a"]["kernel"], plain["a"]["kernel"])


def test_adamw_is_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    params = {"w": {"kernel": rng.standard_normal((5, 3))}, "v": {"bias": rng.standard_normal(4)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    config = settings()
    config.update(warmup_fraction=0.2, weight_decay=0.05)
    total = 10
    tx, schedule = build_optimizer(config, batch_size=BATCH, total_steps=total)
    state = tx.init(params)
    kernel = torch.nn.Parameter(torch.tensor(np.asarray(params["w"]["kernel"])))
    bias = torch.nn.Parameter(torch.tensor(np.asarray(params["v"]["bias"])))
    groups = [{"params": [kernel], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-6)
    for step in range(5):
        grads = random_like(params, 10 + step, 0.1)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        kernel.grad = torch.tensor(np.asarray(grads["w"]["kernel"]))
        bias.grad = torch.tensor(np.asarray(grads["v"]["bias"]))
        adamw.step()
    np.testing.assert_allclose(params["w"]["kernel"], kernel.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["v"]["bias"], bias.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_matrices_move_by_a_scaled_orthogonal_matrix(shape):
    params = {"dense": {"kernel": jnp.zeros(shape)}}
    config = settings(name="muon")
    after, _ = one_update(config, params, random_like(params, 5, 1e-3))
    singular = np.linalg.svd(np.asarray(after["dense"]["kernel"]) / first_rate(config), compute_uv=False)
    scale = 0.2 * math.sqrt(max(shape))
    # Five Newton-Schulz steps bring singular values near 1, not onto it; a square Gaussian has one near 0.
    assert np.all(singular < 1.3 * scale)
    assert np.all(singular[: -1 if shape[0] == shape[1] else None] > 0.6 * scale)
    rms = np.sqrt(np.mean(np.square(after["dense"]["kernel"]))) / first_rate(config)
    assert 0.12 < rms < 0.24  # 0.2 for a square matrix, as an AdamW update has


def test_muon_leaves_everything_else_to_adam(student_params):
    grads = random_like(student_params, 6)
    muon = by_path(one_update(settings(name="muon"), student_params, grads, steps=2)[0])
    adam = by_path(one_update(settings(name="adamw"), student_params, grads, steps=2)[0])
    for path, value in muon.items():
        matrix = value.ndim == 2 and path.endswith("kernel")
        assert np.allclose(value, adam[path], rtol=1e-5, atol=1e-6) != matrix, path


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("start,gradient,end", [
    (4.6, -1.0, MAX_LOG_SCALE), (0.01, 1.0, 0.0), (9.0, 0.0, MAX_LOG_SCALE), (-3.0, 0.0, 0.0),
])  # fmt: skip
def test_log_scales_stay_between_0_and_ln_100(name, start, gradient, end):
    params = {"terms": {"itc": {"logit_scale": jnp.array([start, 2.0])}}, "other": jnp.array([start])}
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    config = settings(name=name)
    config.learning_rate = 0.05  # one step of 0.1 overshoots both ends
    after, _ = one_update(config, params, grads)
    np.testing.assert_allclose(after["terms"]["itc"]["logit_scale"][0], end, atol=1e-6)
    np.testing.assert_allclose(after["terms"]["itc"]["logit_scale"][1], 2.0 - 0.1 * gradient, atol=1e-4)
    np.testing.assert_allclose(after["other"], start - 0.1 * gradient, atol=1e-4)  # only scales are clamped


def test_clip_norm_scales_the_gradient_as_a_whole():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # global norm 5
    config = settings(clip_norm=1.0)
    config.eps = 1e3  # Adam's step is then close to the gradient over eps, so its size shows
    clipped, _ = one_update(config, params, grads)
    config.clip_norm = 0.0
    plain, _ = one_update(config, params, grads)
    np.testing.assert_allclose(plain["a"][0] / clipped["a"][0], 5.0, rtol=0.02)
    np.testing.assert_allclose(plain["b"] / clipped["b"], 5.0, rtol=0.02)
    config.clip_norm = 100.0
    np.testing.assert_allclose(one_update(config, params, grads)[0]["b"], plain["b"])
