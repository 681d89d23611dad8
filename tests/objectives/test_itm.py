"""Image-text matching: how wrong partners are drawn, the loss against PyTorch, and why adding features cannot work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.errors import UserError
from smke_jax.losses.collective import Scope
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.matching import draw_negatives
from smke_jax.objectives import TERMS
from smke_jax.parallel.mesh import DATA_AXES, make_mesh
from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.training.recipe import take

BATCH, WIDTH = 8, 5
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4], np.int32)

rng = np.random.default_rng(0)
QUERIES, CANDIDATES = (np.asarray(normalise(rng.normal(size=(BATCH, WIDTH)))) for _ in range(2))


@pytest.mark.parametrize("same_image", [False, True], ids=["own", "same image"])
@pytest.mark.parametrize("hardness", [0.0, 2.5], ids=["uniform", "hard"])
def test_drawn_as_often_as_the_softmax_says(hardness, same_image):
    count, ids = 4000, IDS if same_image else None
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, QUERIES, CANDIDATES, hardness, ids=ids)))
    drawn = np.stack([np.bincount(row, minlength=BATCH) for row in np.asarray(draw(keys)).T])  # (B queries, B)

    weights = np.exp(hardness * QUERIES.astype(np.float64) @ CANDIDATES.T)
    weights[(IDS[:, None] == IDS) if same_image else np.eye(BATCH, dtype=bool)] = 0
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert np.all(drawn[expected == 0] == 0)
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(drawn / count - expected) <= 5 * deviation)
    assert np.abs(np.corrcoef(np.asarray(draw(keys)).T[:2]))[0, 1] < 0.1, "queries share their draws"


def test_drawn_over_the_global_batch_whatever_the_devices():
    key = jax.random.key(1)
    whole = draw_negatives(key, QUERIES, CANDIDATES, 3.0, ids=IDS)
    for devices in (2, 8):
        rows = PartitionSpec(DATA_AXES)
        spread = jax.shard_map(
            lambda q, c, ids: draw_negatives(key, q, c, 3.0, scope=Scope(DATA_AXES), ids=ids),
            mesh=make_mesh(devices), in_specs=rows, out_specs=rows,
        )  # fmt: skip
        np.testing.assert_array_equal(jax.jit(spread)(QUERIES, CANDIDATES, IDS), whole)


@pytest.mark.parametrize("fusion", ["additive", "gelu"])
def test_value_and_gradient(fusion):
    term = TERMS["itm"](levels=("fc1", "out"), fusion=fusion, width=7)
    rng = np.random.default_rng(3)
    sizes = {"image/fc1": 9, "text/fc1": 9, "image/out": WIDTH, "text/out": WIDTH}
    reps = {name: rng.normal(size=(BATCH, size)).astype(np.float32) for name, size in sizes.items()}
    params, _ = term.init(jax.random.key(0), {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()})
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    select = hard_negatives(hardness=2.0)
    chosen = select.run({}, {**reps, "id": IDS}, Scope(key=jax.random.key(5)))

    def loss(params, reps):
        return term.value(params, (), {need: take({**reps, **chosen}, need) for need in term.needs}, Scope())

    with jax.default_matmul_precision("highest"):
        (value, metrics), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, reps)

    texts, images = (np.asarray(chosen[f"hard_{side}"]) for side in ("text", "image"))
    t = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in reps.items()}
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True), params)
    losses, right = {}, {}
    for level in ("fc1", "out"):
        shown = [(i, i, 1) for i in range(BATCH)]
        shown += [(i, texts[i], 0) for i in range(BATCH)] + [(images[i], i, 0) for i in range(BATCH)]
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


def test_hard_negatives_are_as_hard_as_the_contrast_has_learned():
    """Spec 10: the softmax of ITC's logits, its temperature included."""
    reps = {"image/out": jnp.asarray(QUERIES), "text/out": jnp.asarray(CANDIDATES), "id": jnp.asarray(IDS)}
    learned, key = hard_negatives(), jax.random.key(2)
    assert learned.reads == ("terms/itc",)
    state = {"terms/itc": {"logit_scale": {"out": jnp.log(3.0)}}}
    found = learned.run(state, reps, Scope(key=key))
    first, second = jax.random.split(key)
    np.testing.assert_array_equal(found["hard_text"], draw_negatives(first, QUERIES, CANDIDATES, 3.0))
    np.testing.assert_array_equal(found["hard_image"], draw_negatives(second, CANDIDATES, QUERIES, 3.0))


def test_unknown_fusions_are_refused():
    with pytest.raises(UserError, match="itm.fusion is 'concat': known are additive, gelu"):
        TERMS["itm"](fusion="concat")


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
    term, select = TERMS["itm"](levels=("out",), fusion=fusion, width=32), hard_negatives(hardness=0.0)
    rng = np.random.default_rng(0)
    reps = {f"{side}/out": jnp.asarray(rng.normal(size=(things, things)), jnp.float32) for side in ("image", "text")}
    reps["id"] = jnp.arange(things)
    params, _ = term.init(jax.random.key(0), {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()})
    tx = optax.adam(1e-2)

    def step(carry, key):
        params, opt_state = carry
        shown = reps | select.run({}, reps, Scope(key=key))
        loss = lambda params: term.value(params, (), {x: take(shown, x) for x in term.needs}, Scope())  # noqa: E731
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics["accuracy"]

    keys = jax.random.split(jax.random.key(1), 1000)
    _, accuracy = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return float(np.mean(accuracy[-100:]))


def test_adding_features_stays_at_two_thirds_and_a_non_linearity_does_not():
    assert abs(train_matching("additive") - 2 / 3) < 0.01
    assert train_matching("gelu") > 0.95
