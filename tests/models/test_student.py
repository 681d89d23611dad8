"""The student: its size, its token types, its independence of padding, and how it is built."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_student import HEADS, IDS, IMAGES, LENGTH, MASK, MLP, VOCAB, WIDTH, config, of_thesis, shapes_of, start
from torch_parts import quick_jit

from smke_jax.config_files import load_config
from smke_jax.errors import UserError
from smke_jax.models.student import build_student
from smke_jax.models.text import TextEncoder
from smke_jax.training.state import count_parameters

ROOT = Path(__file__).resolve().parents[2]


def test_parameter_counts_of_the_thesis():
    """Spec 25, to the last parameter."""
    parts, of_terms, _ = of_thesis("s_smke")
    assert count_parameters((parts, of_terms)) == 117_167_618
    assert count_parameters(parts["image_encoder"]) == 43_120_128
    assert count_parameters(parts["text_encoder"]) == 66_364_416
    assert count_parameters(parts["shared"]) == 7_088_640
    assert count_parameters(parts["head_norm"]) + count_parameters(parts["head"]) == 592_128
    assert parts["type_embedding"].shape == (2, 768)
    assert count_parameters(parts["type_scale"]) == 768
    assert set(parts) == {
        "image_encoder", "text_encoder", "shared", "head_norm", "head", "type_embedding", "type_scale"
    }  # fmt: skip
    shapes = jax.tree.map(lambda x: x.shape, of_terms)
    assert shapes == {"itc": {"logit_scale": {"fc1": (), "out": ()}}, "target_itc": {}}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((parts, of_terms))), "parameters stay fp32"


def test_memory_bank_of_the_thesis():
    _, _, slots = of_thesis("s_smke")
    assert not jax.tree.leaves(slots["itc"])
    assert [x.shape for x in jax.tree.leaves(slots["target_itc"])] == [(65_536, 768), (65_536,), ()]


@functools.cache
def small():
    """(apply(params, images, ids, mask, method=…), random parameters) of a student with stems and a shared block."""
    model, params = start(config(), seed=2)

    @functools.partial(jax.jit, static_argnames="method")
    def apply(params, *inputs, method="__call__"):
        return model.apply({"params": params}, *inputs, method=method)

    return apply, params


def test_methods_equal_the_call():
    apply, params = small()
    both = apply(params, IMAGES, IDS, MASK)
    image, text = apply(params, IMAGES, method="encode_image"), apply(params, IDS, MASK, method="encode_text")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), both, (image, text))


def test_token_types_are_row_0_for_text_and_row_1_for_images():
    apply, params = small()

    def out(row=None):
        table = params["type_embedding"].copy()
        if row is not None:
            table[row] += 3.0
        return [x["out"] for x in apply(params | {"type_embedding": table}, IMAGES, IDS, MASK)]

    (image, text), (image_0, text_0), (image_1, text_1) = out(), out(0), out(1)
    np.testing.assert_array_equal(image_0, image)
    assert np.abs(text_0 - text).max() > 1e-2
    np.testing.assert_array_equal(text_1, text)
    assert np.abs(image_1 - image).max() > 1e-2


def test_token_types_start_as_almost_nothing():
    model, _ = start(config())
    gamma = quick_jit(model.init)(jax.random.key(0), IMAGES, IDS, MASK)["params"]["type_scale"]["gamma"]
    np.testing.assert_array_equal(gamma, np.full(WIDTH, 1e-5, np.float32))


def test_text_does_not_depend_on_padding():
    model, params = start(config({}, depth=1, text={**config(depth=1).text, "max_positions": LENGTH + 3}))
    params = jax.tree.map(jnp.asarray, params)
    encode = jax.jit(lambda ids, mask: model.apply({"params": params}, ids, mask, method="encode_text"))
    short = encode(IDS, MASK)
    ids, mask = np.where(MASK == 1, IDS, 8), np.pad(MASK, ((0, 0), (0, 3)))
    longer = encode(np.pad(ids, ((0, 0), (0, 3)), constant_values=7), mask)
    for level in short:
        np.testing.assert_allclose(longer[level], short[level], rtol=1e-4, atol=1e-4)
    assert np.abs(encode(IDS, np.ones_like(MASK))["out"] - short["out"]).max() > 1e-2, "the mask does nothing"


def test_different_widths_are_refused():
    model, _ = start(config())
    wide = TextEncoder(vocab_size=VOCAB, max_positions=LENGTH, width=16, depth=1, num_heads=HEADS, mlp_dim=MLP)
    with pytest.raises(UserError, match="equal widths: image 8, text 16"):
        shapes_of(model.clone(text_encoder=wide))


def test_build_student_reads_the_config():
    c = load_config(str(ROOT / "configs/s_smke.py")).networks.student
    c.text.dropout, c.image.token_drop = 0.1, 0.5
    c.shared.layer_scale = 0.3
    model = build_student(c, vocab_size=123, target_dim=7)
    parts = model.image_encoder, model.text_encoder, model.shared
    assert (model.text_encoder.vocab_size, model.target_dim) == (123, 7)
    assert [part.norm_eps for part in parts] == [1e-6, 1e-12, 1e-6]
    assert (model.text_encoder.norm_order, model.image_encoder.norm_order) == ("post", "post")
    assert (model.shared.depth, model.shared.layer_scale) == (1, 0.3)
    assert (model.text_encoder.dropout, model.image_encoder.token_drop) == (0.1, 0.5)
    assert [(part.dtype, part.residual_dtype) for part in parts] == 3 * [(jnp.bfloat16, jnp.float32)]
