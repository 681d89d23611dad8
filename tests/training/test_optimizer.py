"""Learning rate, decay, rules, AdamW, Muon, the logit-scale clamp and clipping, each against a plain formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import unflatten_dict
from transformers import get_polynomial_decay_schedule_with_warmup

from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.parts import part
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.optimizer import (
    MAX_LOG_SCALE,
    build_optimizer,
    decays,
    depths_of,
    is_muon_matrix,
    layer_factor,
    learning_rate_schedule,
    paths,
    peak_rate,
)
from smke_jax.training.step import abstract_state

BATCH, TOTAL, RATE = 512, 40, 2e-2


def optimizer(**changes):
    """The transformation at a constant-looking rate: no warm-up, and few of TOTAL steps are taken."""
    fields = {"learning_rate": RATE, "warmup_fraction": 0.0, "weight_decay": 0.0, **changes}
    return build_optimizer(batch_size=BATCH, total_steps=TOTAL, **fields)[0]


def one_update(tx, params, grads, steps: int = 1):
    """Parameters after `steps` steps with the same gradient, and the optimiser's state."""

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


@pytest.mark.parametrize("total,fraction", [(44_636, 0.1), (37, 0.1), (20, 0.25)])
def test_the_schedule_is_a_linear_warm_up_and_half_a_cosine(total, fraction):
    schedule = learning_rate_schedule(peak=3.0, total_steps=total, warmup_fraction=fraction)
    warmup = int(fraction * total)
    for step in {0, 1, warmup // 2, warmup - 1, warmup, warmup + 1, (warmup + total) // 2, total - 1, total}:
        rise = 3.0 * step / warmup
        fall = 1.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        np.testing.assert_allclose(float(schedule(step)), rise if step < warmup else fall, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("total", [30, 40])
def test_a_line_down_is_transformers_polynomial_of_power_1(total):
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.AdamW([parameter], lr=2e-5)
    theirs = get_polynomial_decay_schedule_with_warmup(adam, int(0.1 * total), total, lr_end=1e-7, power=1.0)
    ours = learning_rate_schedule(peak=2e-5, total_steps=total, warmup_fraction=0.1, shape="linear", final=1e-7)
    for step in range(total + 2):
        np.testing.assert_allclose(float(ours(step)), theirs.get_last_lr()[0], rtol=1e-5)
        adam.step()
        theirs.step()
    cosine = learning_rate_schedule(peak=2e-5, total_steps=total, warmup_fraction=0.1, final=1e-6)
    np.testing.assert_allclose([float(cosine(total)), float(cosine(total // 10))], [1e-6, 2e-5], rtol=1e-5)


def test_decay_of_everything_is_pytorchs_without_groups():
    params = {"block_0": {"mlp": {"kernel": 0, "bias": 0}}, "word_embedding": 0}
    params = jax.tree.map(lambda _: jnp.zeros((3, 3)), params) | {"norm": {"scale": jnp.zeros(3)}}
    params, grads = random_like(params, 0), random_like(params, 1)
    fields = {"weight_decay": 0.3, "schedule": "linear", "final_rate": 1e-7, "betas": (0.9, 0.98), "eps": 1e-6}
    tx, rates = build_optimizer(
        batch_size=BATCH, total_steps=TOTAL, learning_rate=RATE, warmup_fraction=0.0, decay_all=True, **fields
    )
    new = by_path(one_update(tx, params, grads, steps=3)[0])
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in by_path(params).items()}
    adam = torch.optim.AdamW(list(theirs.values()), lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.3)
    for step in range(3):
        adam.param_groups[0]["lr"] = float(rates(step))
        for name, x in by_path(grads).items():
            theirs[name].grad = torch.tensor(x)
        adam.step()
    for name, x in theirs.items():
        np.testing.assert_allclose(new[name], x.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_thesis_warm_up_of_two_gpus_is_4463_steps():
    schedule = learning_rate_schedule(peak=1.0, total_steps=44_636, warmup_fraction=0.1)
    assert float(schedule(4462)) < 1.0 == float(schedule(4463))


@pytest.mark.parametrize("batch,factor", [(64, 0.25), (256, 1), (1024, 4)])
def test_the_peak_grows_with_the_batch(batch, factor):
    _, schedule = build_optimizer(
        batch_size=batch, total_steps=100, learning_rate=2e-3, reference_batch=256, warmup_fraction=0.1
    )
    rates = [float(schedule(i)) for i in range(101)]
    np.testing.assert_allclose(max(rates), 2e-3 * factor, rtol=1e-6)
    assert rates.index(max(rates)) == 10


def test_from_a_batch_on_the_peak_grows_with_the_square_root():
    """README's batch of 32,768: AdamW at 1.28e-2 in proportion, 2.26e-3 with the root from 1,024 on."""
    rate = lambda batch, above: peak_rate(1e-4, batch_size=batch, reference_batch=256, sqrt_above=above)  # noqa: E731
    assert rate(32_768, 0) == pytest.approx(1.28e-2)
    assert rate(32_768, 1024) == pytest.approx(4e-4 * math.sqrt(32))
    assert rate(1024, 1024) == rate(1024, 0) == pytest.approx(4e-4)
    assert rate(512, 1024) == rate(512, 0)
    assert peak_rate(1e-4, batch_size=32_768, reference_batch=0, sqrt_above=1024) == 1e-4


# Of a student and its towers, of every teacher, of fusion networks and of terms: path -> (dimensions, decays).
NAMES = {
    "image_encoder/patch_embed/kernel": (4, True),
    "image_encoder/patch_embed/bias": (1, False),
    "image_encoder/cls_token": (3, False),
    "image_encoder/pos_embedding": (3, False),
    "image_encoder/relative_bias/table": (2, True),  # a matrix, whose name only holds the word "bias"
    "image_encoder/block_0/attention/query/kernel": (3, True),
    "image_encoder/block_0/attention/query/bias": (2, False),  # per head
    "image_encoder/block_0/attention/rel_pos_bias": (2, True),
    "image_encoder/block_0/layer_scale/gamma": (1, False),
    "text_encoder/word_embedding": (2, False),
    "text_encoder/position_embedding": (2, False),
    "text_encoder/type_embedding": (2, False),
    "text_encoder/embedding_norm/scale": (1, False),
    "text_encoder/embedding_projection/kernel": (2, True),  # a matrix beside an embedding
    "type_embedding": (2, False),
    "type_scale/gamma": (1, False),
    "token/embedding": (2, False),  # of nn.Embed
    "head/kernel": (2, True),
    "head/bias": (1, False),
    "terms/itc/logit_scale/out": (0, False),
    "terms/itm/out/image": (2, True),
}


@pytest.fixture(scope="module")
def every_kind():
    """A parameter under each of the NAMES, of random numbers."""
    shapes = {path: np.zeros((3, 4, 5, 6)[:dimensions]) for path, (dimensions, _) in NAMES.items()}
    params = random_like(unflatten_dict(shapes, sep="/"), 0)
    params["terms"]["itc"] = {"logit_scale": {"out": jnp.float32(2.0)}}
    return params


def test_what_decays_name_by_name():
    """Spec 0.3: matrices and convolutions; no bias, norm, [CLS] or embedding table, whatever else a path holds."""
    for path, (dimensions, expected) in NAMES.items():
        assert decays(path, jnp.zeros((2,) * dimensions)) == expected, path


def test_a_students_parameters_are_all_of_kinds_that_are_known():
    """By the last part of the path and the dimensions; a module of a new kind has to be added to the NAMES."""
    form = form_of("smoke")
    c = form.run()
    c.task, c.networks.student, c.terms.itc = form.pairs(vocab_size=20), form.student(), part("itc")
    experiment = build_experiment(resolve(c), None)
    shapes = abstract_state(experiment.recipe, optax.sgd(1.0), experiment.mesh, experiment.batch).params
    known = {(path.rpartition("/")[2], dimensions): expected for path, (dimensions, expected) in NAMES.items()}
    there = dict(zip(jax.tree.leaves(paths(shapes)), jax.tree.leaves(shapes), strict=True))
    assert {"student/image_encoder/cls_token", "student/type_embedding", "terms/itc/logit_scale/out"} <= set(there)
    assert len([path for path in there if "text_encoder" in path and path.endswith("embedding")]) == 3
    for path, leaf in there.items():
        name = "out" if "logit_scale" in path else path.rpartition("/")[2]
        assert decays(path, leaf) == (known[name, leaf.ndim] if name != "kernel" else True), path


def test_what_muon_takes_name_by_name():
    taken = {path for path, (dimensions, _) in NAMES.items() if is_muon_matrix(path, jnp.zeros((2,) * dimensions))}
    assert taken == {"text_encoder/embedding_projection/kernel", "head/kernel"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_is_the_rate_times_the_parameter_where_it_applies(every_kind, name):
    grads = random_like(every_kind, 1)
    plain = by_path(one_update(optimizer(name=name), every_kind, grads)[0])
    decayed = by_path(one_update(optimizer(name=name, weight_decay=0.5), every_kind, grads)[0])
    for path, value in by_path(every_kind).items():
        expected = -RATE * 0.5 * value if NAMES[path][1] else 0.0
        np.testing.assert_allclose(decayed[path] - plain[path], expected, rtol=1e-3, atol=1e-6, err_msg=path)


def test_rules_scale_the_rate_and_its_decay_and_the_first_match_wins(every_kind):
    grads = random_like(every_kind, 2)
    rules = (("image_encoder/block_0/attention", 0.5), ("image_encoder", 0.1), ("embedding", 3.0))
    plain, before = by_path(one_update(optimizer(weight_decay=0.1), every_kind, grads)[0]), by_path(every_kind)
    ruled = by_path(one_update(optimizer(weight_decay=0.1, lr_rules=rules), every_kind, grads)[0])
    seen = set()
    for path in before:
        if "logit_scale" in path:
            continue
        factor = 1.0
        if "image_encoder" in path:
            factor = 0.5 if "block_0/attention" in path else 0.1
        elif "embedding" in path:
            factor = 3.0
        seen.add(factor)
        change = factor * (plain[path] - before[path])
        np.testing.assert_allclose(ruled[path] - before[path], change, rtol=1e-3, atol=2e-6, err_msg=path)
    assert seen == {0.1, 0.5, 1.0, 3.0}


def test_a_rule_of_factor_0_is_refused_with_what_to_use():
    """It would cost a backward pass and count in the norm: `trained` leaves both out."""
    c = base()
    c.optimizer.lr_rules = (("text_encoder", 0.0),)
    with pytest.raises(UserError, match="'text_encoder' has the factor 0; .* the `trained` field of its network"):
        resolve(c)


def test_adamw_is_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    params = {"w": {"kernel": rng.standard_normal((5, 3))}, "v": {"bias": rng.standard_normal(4)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tx, schedule = build_optimizer(
        batch_size=BATCH, total_steps=10, learning_rate=RATE, warmup_fraction=0.2, weight_decay=0.05
    )
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
    after, _ = one_update(optimizer(name="muon"), params, random_like(params, 5, 1e-3))
    singular = np.linalg.svd(np.asarray(after["dense"]["kernel"]) / RATE, compute_uv=False)
    scale = 0.2 * math.sqrt(max(shape))
    # Five Newton-Schulz steps bring singular values near 1, not onto it; a square Gaussian has one near 0.
    assert np.all(singular < 1.3 * scale)
    assert np.all(singular[: -1 if shape[0] == shape[1] else None] > 0.6 * scale)
    rms = np.sqrt(np.mean(np.square(after["dense"]["kernel"]))) / RATE
    assert 0.12 < rms < 0.24  # 0.2 for a square matrix, as an AdamW update has


def test_muon_leaves_everything_else_to_adam(every_kind):
    grads = random_like(every_kind, 6)
    muon = by_path(one_update(optimizer(name="muon"), every_kind, grads, steps=2)[0])
    adam = by_path(one_update(optimizer(name="adamw"), every_kind, grads, steps=2)[0])
    for path, value in muon.items():
        matrix = value.ndim == 2 and path.endswith("kernel") and not path.startswith("terms/")
        assert np.allclose(value, adam[path], rtol=1e-5, atol=1e-6) != matrix, path


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("start,gradient,end", [
    (4.6, -1.0, MAX_LOG_SCALE), (0.01, 1.0, 0.0), (9.0, 0.0, MAX_LOG_SCALE), (-3.0, 0.0, 0.0),
])  # fmt: skip
def test_log_scales_stay_between_0_and_ln_100(name, start, gradient, end):
    scales = {"out": jnp.float32(start), "fc1": jnp.float32(2.0)}
    params = {"terms": {"itc": {"logit_scale": scales}}, "other": jnp.array([start])}
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    after, _ = one_update(optimizer(name=name, learning_rate=0.1), params, grads)  # a step of 0.1 overshoots both ends
    np.testing.assert_allclose(after["terms"]["itc"]["logit_scale"]["out"], end, atol=1e-6)
    np.testing.assert_allclose(after["terms"]["itc"]["logit_scale"]["fc1"], 2.0 - 0.1 * gradient, atol=1e-4)
    np.testing.assert_allclose(after["other"], start - 0.1 * gradient, atol=1e-4)  # only scales are clamped


def test_clip_norm_scales_the_gradient_as_a_whole():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # global norm 5
    # Adam's step is then close to the gradient over eps, so its size shows.
    clipped, _ = one_update(optimizer(clip_norm=1.0, eps=1e3), params, grads)
    plain, _ = one_update(optimizer(eps=1e3), params, grads)
    np.testing.assert_allclose(plain["a"][0] / clipped["a"][0], 5.0, rtol=0.02)
    np.testing.assert_allclose(plain["b"] / clipped["b"], 5.0, rtol=0.02)
    far, _ = one_update(optimizer(clip_norm=100.0, eps=1e3), params, grads)
    np.testing.assert_allclose(far["b"], plain["b"])


# ---- layers


@pytest.mark.parametrize(("path", "layer"), [
    ("net/encoder/patch_embed/kernel", 0),
    ("net/encoder/cls_token", 0),
    ("net/encoder/position_embedding", 0),
    ("net/encoder/stem/conv/kernel", 0),
    ("net/encoder/block_0/mlp/fc1/kernel", 1),
    ("net/encoder/block_5/norm1/scale", 6),
    ("net/encoder/norm/scale", 7),
    ("net/norm/scale", 7),
    ("net/head/kernel", 7),
    ("terms/itc/logit_scale/out", 7),
    ("net/other/block_1/attention/qkv/kernel", 2 + 4),  # an encoder of two layers: the last is one below the head
])  # fmt: skip
def test_rates_fall_from_layer_to_layer(path, layer):
    names = [f"net/encoder/block_{i}/mlp/fc1/kernel" for i in range(6)] + [f"net/other/block_{i}/x" for i in range(2)]
    assert layer_factor(path, depths_of([*names, path]), 0.81) == pytest.approx(0.81 ** (7 - layer))


def test_the_published_rates_of_six_layers():
    """Spec 3: of the stem, the blocks and the head, at a decay of 0.81."""
    names = [f"e/block_{i}/x" for i in range(6)]
    factors = [layer_factor(path, depths_of(names), 0.81) for path in ("e/patch_embed/kernel", *names, "head/kernel")]
    published = [2.3e-4, 2.8e-4, 3.5e-4, 4.3e-4, 5.3e-4, 6.6e-4, 8.1e-4, 1e-3]
    np.testing.assert_allclose(1e-3 * np.array(factors), published, rtol=0.02)


def test_layer_decay_scales_the_update_and_comes_on_top_of_rules(every_kind):
    grads, before = random_like(every_kind, 3), by_path(every_kind)
    rules = (("image_encoder/", 0.5),)
    plain = by_path(one_update(optimizer(weight_decay=0.1), every_kind, grads)[0])
    slower = by_path(one_update(optimizer(weight_decay=0.1, layer_decay=0.7, lr_rules=rules), every_kind, grads)[0])
    depths, seen = depths_of(list(before)), set()
    for path in before:
        if "logit_scale" in path:
            continue
        factor = layer_factor(path, depths, 0.7) * (0.5 if "image_encoder/" in path else 1.0)
        seen.add(round(factor, 6))
        change = factor * (plain[path] - before[path])
        np.testing.assert_allclose(slower[path] - before[path], change, rtol=1e-3, atol=2e-6, err_msg=path)
    assert len(seen) > 3
