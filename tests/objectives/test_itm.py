"""Image-text matching: the loss against PyTorch, and why adding features cannot work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.losses.matching import draw_negatives
from smke_jax.objectives.itm import itm

BATCH = 8
SIZES = {"image/fc1": 9, "text/fc1": 9, "image/out": 5, "text/out": 5}


def wrong(name):
    return f"{name}@hard_{name.partition('/')[0]}"


@pytest.mark.parametrize("fusion", ["additive", "gelu"])
def test_value_and_gradient(fusion):
    term = itm(levels=("fc1", "out"), fusion=fusion, width=7)
    rng = np.random.default_rng(3)
    reps = {name: rng.normal(size=(BATCH, size)).astype(np.float32) for name, size in SIZES.items()}
    chosen = {side: rng.integers(0, BATCH, BATCH) for side in ("image", "text")}
    assert set(term.needs) == {*SIZES, *(wrong(name) for name in SIZES)}
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()}
    params, _ = term.init(jax.random.key(0), shapes | {wrong(k): x for k, x in shapes.items()})
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)

    def loss(params, reps):
        rows = {wrong(name): x[chosen[name.partition("/")[0]]] for name, x in reps.items()}
        return term.value(params, (), reps | rows, ALONE)

    with jax.default_matmul_precision("highest"):
        (value, metrics), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
            params, {k: jnp.asarray(x) for k, x in reps.items()}
        )

    t = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in reps.items()}
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True), params)
    losses, right = {}, {}
    for level in ("fc1", "out"):
        shown = [(i, i, 1) for i in range(BATCH)]
        shown += [(i, chosen["text"][i], 0) for i in range(BATCH)] + [(chosen["image"][i], i, 0) for i in range(BATCH)]
        logits = []
        for i, j, _ in shown:
            hidden = t[f"image/{level}"][i] @ p[level]["image"] + t[f"text/{level}"][j] @ p[level]["text"]
            hidden = torch.nn.functional.gelu(hidden) if fusion == "gelu" else hidden
            logits.append(hidden @ p[level]["head"]["kernel"] + p[level]["head"]["bias"])
        labels = torch.tensor([label for _, _, label in shown])
        losses[level] = torch.nn.functional.cross_entropy(torch.stack(logits), labels)
        right[level] = (torch.stack(logits).argmax(1) == labels).double().mean().item()
    (sum(losses.values()) / 2).backward()

    np.testing.assert_allclose(value, sum(x.item() for x in losses.values()) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(list(right.values())), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy_fc1"], right["fc1"], rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves((p, t)), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_unknown_fusions_are_refused():
    with pytest.raises(UserError, match="itm.fusion is 'concat': known are additive, gelu"):
        itm(fusion="concat")


# ---- why the thesis saw 66.67 %


def expected_loss(f, g):
    """The mean over all draws of uniform negatives, for the logit f[image] + g[caption] of every pair of a batch."""
    logits = f[:, None] + g
    apart = ~np.eye(len(f), dtype=bool)
    wrong = jnp.sum(jax.nn.softplus(logits), where=apart) / (len(f) - 1)  # of each image a caption, so twice
    return (jnp.sum(jax.nn.softplus(-jnp.diagonal(logits))) + 2 * wrong) / (3 * len(f))


def test_the_best_sum_of_an_image_and_a_caption_says_always_no():
    """At the constant log(1/2) nothing can be gained, to first order and so, the loss being convex, anywhere."""
    with jax.enable_x64():
        best = np.full(BATCH, np.log(1 / 2) / 2)
        value, grads = jax.value_and_grad(expected_loss, argnums=(0, 1))(best, best)
        np.testing.assert_allclose(value, np.log(3) - 2 / 3 * np.log(2), rtol=1e-12)
        np.testing.assert_allclose(grads, 0, atol=1e-15)
        curvature = np.asarray(jax.hessian(lambda x: expected_loss(x[:BATCH], x[BATCH:]))(np.zeros(2 * BATCH)))
        assert np.linalg.eigvalsh(curvature).min() > -1e-12
        rng = np.random.default_rng(0)
        for scale in (0.01, 0.3, 3.0):
            f, g = rng.normal(0, scale, (2, BATCH))
            assert expected_loss(best + f, best + g) > value


def train_matching(fusion):
    """Accuracy after training the term alone: 16 things, an image and a caption of each, all in every batch."""
    things = 16
    term = itm(levels=("out",), fusion=fusion, width=32)
    rng = np.random.default_rng(0)
    image, text = jnp.asarray(rng.normal(size=(2, things, things)), jnp.float32)
    shapes = {f"{side}/out": jax.ShapeDtypeStruct((things, things), jnp.float32) for side in ("image", "text")}
    params, _ = term.init(jax.random.key(0), shapes)
    tx = optax.adam(1e-2)

    def step(carry, key):
        params, opt_state = carry
        texts, images = (draw_negatives(k, image, text, 0.0) for k in jax.random.split(key))
        reps = {"image/out": image, "text/out": text, "image/out@hard_image": image[images]}
        reps["text/out@hard_text"] = text[texts]
        loss = lambda params: term.value(params, (), reps, ALONE)  # noqa: E731
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics["accuracy"]

    keys = jax.random.split(jax.random.key(1), 1000)
    _, accuracy = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return float(np.mean(accuracy[-100:]))


def test_adding_features_stays_at_two_thirds_and_a_non_linearity_does_not():
    assert abs(train_matching("additive") - 2 / 3) < 0.01
    assert train_matching("gelu") > 0.95
