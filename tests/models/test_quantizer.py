"""The autoencoder of [CLS] against PyTorch, what its decoder sees, and the quantiser that is left of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_parts import assert_near, block, gradients, linear, quick_jit, randomised, to_torch

from smke_jax.models.beit import relative_position_index
from smke_jax.models.quantizer import Autoencoder, Quantizer
from smke_jax.objectives.base import Scope
from smke_jax.objectives.image_vq import image_vq

BATCH, GRID, WIDTH, HEADS, MLP, CODES, CODE_DIM, EPS = 6, 3, 8, 2, 12, 5, 4, 1e-6
KEY = jax.random.key(3)


def model(masked):
    return Autoencoder(CODE_DIM, HEADS, MLP, masked, EPS)


def inputs():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(CODES, CODE_DIM))
    return {
        "cls": rng.normal(size=(BATCH, WIDTH)).astype(np.float32),
        "patches": rng.normal(size=(BATCH, GRID**2, WIDTH)).astype(np.float32),
        "codes": jnp.asarray(codes / np.linalg.norm(codes, axis=1, keepdims=True), jnp.float32),
    }


def run(autoencoder, params, x):
    return autoencoder.apply({"params": params}, x["cls"], x["patches"], x["codes"], rngs={"mask": KEY})


def parameters(autoencoder):
    shapes = jax.eval_shape(lambda: autoencoder.init({"params": KEY, "mask": KEY}, **inputs())["params"])
    return randomised(shapes, seed=1)


def reference(p, x, visible):
    """-> (latent, cosines, reconstruction) in float64, with every patch visible or none."""
    cls, patches, codes = (torch.tensor(np.asarray(x[name], np.float64)) for name in ("cls", "patches", "codes"))
    latent = F.normalize(linear(p["down"]["fc2"], torch.tanh(linear(p["down"]["fc1"], cls))), dim=1)
    cosines = latent.detach() @ codes.T
    code = codes[cosines.argmax(1)]
    quantised = latent + (code - latent).detach()
    rest = patches if visible else p["mask_token"].expand_as(patches)
    tokens = torch.cat([linear(p["up"], quantised)[:, None], rest], dim=1)
    bias = p["relative_bias"]["table"][torch.tensor(relative_position_index(GRID)).long()].permute(2, 0, 1)[None]
    return latent, cosines, block(p["decoder"], tokens, heads=HEADS, order="pre", eps=EPS, bias=bias)[0][:, 0]


@pytest.mark.parametrize("masked,visible", [(0.0, True), (1.0, False)])
def test_outputs_loss_and_gradients_equal_pytorch(masked, visible):
    """The gradient reaches `down` through the code, as if it had not been chosen, and by the commitment."""
    autoencoder, x, term = model(masked), inputs(), image_vq(commitment=0.7)
    params = parameters(autoencoder)
    slots = {"codes": x["codes"], "usage": jnp.full(CODES, 1 / CODES)}

    @quick_jit
    def loss_and_gradients(params):
        def loss(params):
            out = run(autoencoder, params, x)
            names = ("code/latent", "code/similarity", "code/reconstruction")
            return term.value({}, slots, dict(zip(names, out, strict=True)) | {"target/cls": x["cls"]}, Scope())[0], out

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (value, out), d_params = loss_and_gradients(params)
    p = to_torch(params)
    latent, cosines, rebuilt = expected = reference(p, x, visible)
    code, cls = (torch.tensor(np.asarray(x[name], np.float64)) for name in ("codes", "cls"))
    code = code[cosines.argmax(1)]
    loss = (1 - F.cosine_similarity(rebuilt, cls)).mean() + 0.7 * F.mse_loss(latent, code)
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    for ours, theirs in zip(out, expected, strict=True):
        assert_near(ours, theirs.detach().numpy())
    if visible:
        assert not np.any(d_params.pop("mask_token"))
        p.pop("mask_token")
    assert_near(d_params, gradients(p), 2e-5)


def test_of_every_image_the_decoder_sees_so_many_patches_and_no_others():
    autoencoder, x = model(0.7), inputs()
    params = parameters(autoencoder)
    rebuilt = lambda patches: run(autoencoder, params, x | {"patches": patches})[2].sum()  # noqa: E731
    seen = np.any(np.asarray(quick_jit(jax.grad(rebuilt))(x["patches"])) != 0, axis=-1)
    assert np.all(seen.sum(axis=1) == 2), "2 of 9, the thesis' 19 of 196 being rounded down too"
    assert len(np.unique(seen, axis=0)) > 1, "every image has a mask of its own"
    assert int(196 * (1 - Autoencoder(CODE_DIM, HEADS, MLP).masked)) == 19


def test_a_new_decoder_has_no_idea_of_positions():
    params = quick_jit(model(0.5).init)({"params": KEY, "mask": KEY}, **inputs())["params"]
    assert not np.any(params["relative_bias"]["table"]) and params["relative_bias"]["table"].shape == (28, HEADS)
    assert "ls1" not in params["decoder"] and "bias" not in params["decoder"]["attention"]["key"]


def test_the_quantiser_names_the_code_that_the_autoencoder_took():
    autoencoder, x = model(0.9), inputs()
    params = parameters(autoencoder)

    @quick_jit
    def both(params, x):
        code = Quantizer(CODES, CODE_DIM).apply({"params": {"down": params["down"], "codes": x["codes"]}}, x["cls"])
        return run(autoencoder, params, x), code

    (latent, cosines, _), code = both(params, x)
    np.testing.assert_allclose(np.linalg.norm(latent, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(code, np.argmax(cosines, axis=1))
    assert code.dtype == jnp.int32 and len(set(code.tolist())) > 1
