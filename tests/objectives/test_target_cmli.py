"""Target-CMLI, as in the text and with the author's last cosines, against float64 PyTorch in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives import TERMS

BATCH, PATCHES, WORDS, WIDTH = 4, 5, 3, 6
MASK = (np.arange(WORDS) < np.array([3, 0, 1, 2])[:, None]).astype(np.int32)
SHAPES = {
    "image/head": (WIDTH,), "text/head": (WIDTH,), "target/cls": (WIDTH,),
    "image/head_tokens": (PATCHES, WIDTH), "text/head_tokens": (WORDS, WIDTH), "target/tokens": (PATCHES, WIDTH),
}  # fmt: skip


def made_up(needs):
    rng = np.random.default_rng(0)
    reps = {name: rng.normal(size=(BATCH, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return {name: x for name, x in (reps | {"text/mask": MASK}).items() if name in needs}


def evaluate(term, params, reps):
    """(loss, metrics, gradients of parameters and of all floating-point representations)."""
    learned = {k: v for k, v in reps.items() if v.dtype == np.float32}

    def loss(params, learned):
        return term.value(params, (), reps | learned, ALONE)

    with jax.default_matmul_precision("highest"):
        (value, metrics), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, learned)
    return value, metrics, grads


def as_torch(reps):
    return {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in reps.items() if k != "text/mask"}


def assert_near(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-4, atol=1e-7), ours, theirs)


def test_as_in_the_text():
    term = TERMS["target_cmli"](width=4)
    reps = made_up(term.needs)
    kernel = np.random.default_rng(1).normal(size=(WIDTH, 4)).astype(np.float32)
    value, metrics, (d_params, d_reps) = evaluate(term, {"kernel": kernel}, reps)

    t, g = as_torch(reps), torch.tensor(kernel.astype(np.float64), requires_grad=True)
    errors = []
    for i in range(BATCH):
        patches = t["target/tokens"][i] @ g
        for word in t["text/head_tokens"][i][MASK[i] == 1] @ g:
            nearest = max(patches, key=lambda patch: F.cosine_similarity(word, patch, dim=0).item())  # noqa: B023
            errors.append(torch.mean((word - nearest) ** 2))
    assert len(errors) == 6
    image, text = F.mse_loss(t["image/head_tokens"], t["target/tokens"]), torch.stack(errors).mean()
    ((image + text) / 2).backward()
    np.testing.assert_allclose(value, (image + text).item() / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_text"], text.item(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["spread"], (t["target/tokens"] @ g).flatten(0, 1).std(0, correction=0).mean().item(), rtol=1e-5
    )
    assert_near(d_params, {"kernel": g})
    assert_near(d_reps, t)


def test_as_the_code_has_it_last():
    term = TERMS["target_cmli_cosine"]()
    reps = made_up(term.needs)
    value, metrics, (_, d_reps) = evaluate(term, {}, reps)

    t = as_torch(reps)
    near = torch.nn.CosineEmbeddingLoss()
    same = torch.ones(BATCH)
    image, cls = (near(t[f"{side}/head"], t["target/cls"], same) for side in ("image", "text"))
    best = []
    for i in range(BATCH):
        cosines = F.cosine_similarity(t["text/head_tokens"][i][:, None], t["target/tokens"][i], dim=2)
        best.append(cosines[MASK[i] == 1].max() if MASK[i].any() else torch.tensor(-1.0, dtype=torch.float64))
    patch = (1 - torch.stack(best)).mean()
    ((patch + cls) / 4 + image / 2).backward()
    np.testing.assert_allclose(value, ((patch + cls) / 4 + image / 2).item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_patch"], patch.item(), rtol=1e-5)
    assert_near(d_reps, t)


def test_patches_without_a_counterpart_are_refused():
    term = TERMS["target_cmli"]()
    reps = made_up(term.needs)
    reps["image/head_tokens"] = reps["image/head_tokens"][:, :3]
    with pytest.raises(UserError, match=r"\(3, 6\) of the student with \(5, 6\) of the teacher: set .*token_drop=0"):
        term.value({"kernel": jnp.ones((WIDTH, 2))}, (), reps, ALONE)
