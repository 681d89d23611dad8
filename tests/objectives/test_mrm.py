"""Masked representations: value and gradient by PyTorch, on 1, 2 and 8 devices; no gradient reaches the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from over_devices import DEVICES, assert_near, run_together, spread, tensors

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives.mrm import mrm

B, N, L, D, HIDDEN = 16, 4, 5, 6, 7
SHAPES = {
    "masked_image/fused": (B, N, D), "momentum/pair/image": (B, N, D), "masked_image/chosen": (B, N),
    "masked_text/fused": (B, L, D), "momentum/pair/text": (B, L, D), "masked_text/chosen": (B, L),
}  # fmt: skip
rng = np.random.default_rng(0)
REPS = {
    name: rng.random(shape) < 0.4 if name.endswith("chosen") else rng.normal(size=shape).astype(np.float32)
    for name, shape in SHAPES.items()
}
REPS["masked_text/chosen"][:4] = False  # two devices of eight have no masked words
LEARNED = ("masked_image/fused", "masked_text/fused")


def test_it_is_what_pytorch_computes():
    term = mrm(hidden=HIDDEN)
    params, slots = term.init(jax.random.key(0), {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in REPS.items()})
    params = jax.tree.map(lambda x: x + 0.1, params)
    leaves, tree = jax.tree.flatten(params)

    own = {name: torch.tensor(np.asarray(x, np.float64), requires_grad=True) for name, x in enumerate(leaves)}
    layers = jax.tree.unflatten(tree, list(own.values()))
    reps = dict(zip(REPS, tensors(*(x.astype(np.float64) for x in REPS.values())), strict=True))
    losses = []
    for view, modality in (("masked_image", "image"), ("masked_text", "text")):
        where = torch.tensor(REPS[f"{view}/chosen"])
        x, clean = reps[f"{view}/fused"][where], reps[f"momentum/pair/{modality}"][where].detach()
        x = F.gelu(x @ layers["fc1"]["kernel"] + layers["fc1"]["bias"]) @ layers["fc2"]["kernel"]
        losses.append(F.mse_loss(x + layers["fc2"]["bias"], F.layer_norm(clean, (D,))))
    (sum(losses) / 2).backward()

    def ours(*arrays, scope):
        params, reps = jax.tree.unflatten(tree, arrays[: len(leaves)]), dict(zip(REPS, arrays[len(leaves) :]))
        return term.value(params, slots, reps, scope)

    floats = [len(leaves) + i for i, name in enumerate(REPS) if not name.endswith("chosen")]
    arrays, to = (*leaves, *REPS.values()), (*range(len(leaves)), *floats)
    for devices in DEVICES:
        case = {0: spread(devices, ours, whole=tuple(range(len(leaves))))}
        (value, metrics), gradients = run_together(case, arrays, to=to)[0]
        assert_near(value, (sum(losses) / 2).item())
        assert_near(metrics["loss_masked_text"], losses[1].item())
        for gradient, tensor in zip(gradients[: len(leaves)], own.values(), strict=True):
            assert_near(gradient, tensor.grad.numpy(), 1e-4)
        found = dict(zip((name for name in REPS if not name.endswith("chosen")), gradients[len(leaves) :]))
        for name in LEARNED:
            assert_near(found[name], reps[name].grad.numpy(), 1e-4)
        for name in set(found) - set(LEARNED):
            assert not np.any(found[name]), "no gradient reaches the target"


def test_a_collapse_shows():
    """All targets alike: nothing is left to learn once the prediction is constant, and the metrics are 0."""
    term = mrm(views=("masked_text",))
    same = REPS | {"momentum/pair/text": np.broadcast_to(np.arange(D, dtype=np.float32), (B, L, D))}
    params, slots = term.init(jax.random.key(0), {"masked_text/fused": jax.ShapeDtypeStruct((B, L, D), jnp.float32)})
    x = np.arange(D) - 2.5
    params["fc2"] = {"kernel": jnp.zeros((D, D)), "bias": jnp.asarray(x / x.std(), jnp.float32)}
    loss, metrics = term.value(params, slots, same, ALONE)
    assert loss < 1e-4
    assert all(metrics[f"embedding_std/masked_text_{what}"] < 1e-3 for what in ("target", "prediction"))
    healthy = term.value(params, slots, REPS, ALONE)[1]
    assert healthy["embedding_std/masked_text_target"] > 0.5


def test_other_views_are_refused():
    for views in ((), ("masked_sound",)):
        with pytest.raises(UserError, match="give masked_image or masked_text, or both"):
            mrm(views=views)
