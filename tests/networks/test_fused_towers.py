"""Towers with a fusion encoder: one step is the same however it is spread; what it starts from; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.errors import UserError
from smke_jax.models.fields import build_from
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.networks.fused_towers import fused_towers
from smke_jax.objectives.fused_itm import fused_itm
from smke_jax.objectives.itc import itc
from smke_jax.objectives.mlm import mlm
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.selections.draws import draws
from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import init_state, make_train_step

VOCAB, MASK, LENGTH, BATCH = 30, 4, 7, 16
SIZES = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}
TEXT = part("bert", **SIZES, max_positions=LENGTH)
IMAGE = part("vit", **{**SIZES, "width": 12}, image_size=8, patch_size=4)


def network(kind="cross", vocab_size=VOCAB, mask_token=MASK, **fields):
    given = {"image": IMAGE, "text": TEXT, "fusion": part(kind, **SIZES), "embed": 6, "text_ratio": 0.5}
    return fused_towers(vocab_size=vocab_size, mask_token=mask_token, **given | fields)


def recipe(**fields):
    own = network(**fields)
    terms = {"itc": itc(levels=("out",), same_image="masked"), "itm": fused_itm(), "mlm": mlm()}
    return make_recipe(
        {"towers": own}, own.forward("towers", {}), terms, dict.fromkeys(terms, lambda progress: 1.0),
        batch=("image", "text", "text_mask", "text_words", "id"),
        selections=(draws(), hard_negatives(same_image="masked")),
    )  # fmt: skip


def batch():
    rng = np.random.default_rng(0)
    words = np.where(np.arange(LENGTH) < rng.integers(1, LENGTH - 1, (BATCH, 1)), np.arange(LENGTH), -1)
    words = np.concatenate([np.full((BATCH, 1), -1), words[:, :-1]], axis=1)
    return {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8),
        "text": np.where(words < 0, 2, rng.integers(5, VOCAB, (BATCH, LENGTH))).astype(np.int32),
        "text_mask": (np.arange(LENGTH) < 2 + (words >= 0).sum(axis=1, keepdims=True)).astype(np.int32),
        "text_words": words.astype(np.int32),
        "id": (np.arange(BATCH) // 2).astype(np.int32),
    }


def stepped(devices, micro_batch):
    """(metrics, parameters) after one step."""
    made, mesh, tx = recipe(), make_mesh(devices), optax.sgd(0.5)
    state = init_state(made, tx, mesh, batch(), seed=0)
    step = make_train_step(made, tx, mesh, total_steps=4, micro_batch=micro_batch)
    with jax.default_matmul_precision("highest"):
        state, metrics = step(state, {}, put_batch(batch(), mesh))
    return jax.device_get((metrics, state.params))


def test_a_step_is_the_same_on_any_devices_and_in_micro_batches():
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)  # noqa: E731
    one = stepped(1, 0)
    assert one[0]["mlm/masked_tokens"] == np.mean(np.ceil((batch()["text_words"] >= 0).sum(axis=1) / 2))
    jax.tree.map(near, stepped(8, 1), one)


# ---- what it starts from


def bert(folder, depth=3, **fields):
    """A file with an encoder of text of random weights -> (path, parameters)."""
    model = {**TEXT, **fields, "depth": depth, "vocab_size": VOCAB}
    module = build_from(model, TEXT_TOWERS["bert"])
    params = module.init(jax.random.key(5), jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), jnp.int32))["params"]
    folder.mkdir()
    save_params(folder / PARAMS, params, {"model": model})
    return str(folder), params


def shapes_of(own):
    return jax.eval_shape(lambda: own.init(jax.random.key(0), {}))


def test_text_and_fusion_divide_the_layers_of_a_file(tmp_path):
    path, theirs = bert(tmp_path / "bert")
    own = network(text_start=path, fusion_start=path, fusion=part("cross", **{**SIZES, "depth": 2}))
    found = own.start(shapes_of(own))
    for name in ("attention", "norm1", "mlp", "norm2"):
        same = lambda a, b: np.testing.assert_array_equal(a, b)  # noqa: E731
        jax.tree.map(same, found.params["text_encoder"]["block_0"][name], theirs["block_0"][name])
        jax.tree.map(same, found.params["fusion"]["block_1"][name], theirs["block_2"][name])
    assert set(found.params) == {"text_encoder", "fusion"} and "cross" not in found.params["fusion"]["block_0"]
    assert found.origins["fusion"] == f"layers 1-2 of {path}" and len(found.digests) == 2


def test_an_export_begins_the_next_run(tmp_path):
    own = network(fusion=part("concat", **SIZES))
    params, description = own.export(own.init(jax.random.key(1), {}), {})
    save_params(tmp_path / PARAMS, params, {"model": {**description, "logit_scales": {"itc": {"out": 3.0}}}})
    again = network(fusion=part("concat", **SIZES), start=str(tmp_path))
    found = again.start(shapes_of(again))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.terms == {"itc": {"logit_scale": {"out": 3.0}}}
    with pytest.raises(UserError, match="fusion.mlp_dim is 12 there and 13 here; set them alike"):
        other = network(fusion=part("concat", **{**SIZES, "mlp_dim": 13}), start=str(tmp_path))
        other.start(shapes_of(other))
    larger = network(fusion=part("concat", **SIZES), start=str(tmp_path), image={**IMAGE, "image_size": 16})
    table = larger.start(shapes_of(larger)).params["image_encoder"]["position_embedding"]
    assert table.shape == (1 + 16, 12), "interpolated from 2 × 2 places to 4 × 4"
    np.testing.assert_array_equal(table[0], params["image_encoder"]["position_embedding"][0])


# ---- what it refuses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"fusion": part("cross", **{**SIZES, "width": 16})},
            "set fusion.width=8, the width of the text tower",
        ),
        ({"fusion": part("bert", **SIZES)}, "fusion.type: there is no 'bert' here; it is one of concat, cross"),
        ({"image": {**IMAGE, "token_drop": 0.5}}, "image.token_drop: fusion reads every patch, set it to 0"),
        ({"pool": "max"}, "pool 'max' is neither cls nor mean"),
        ({"text_unit": "letter"}, "text_unit 'letter' is neither token nor word"),
        ({"text_ratio": 0.0}, "text_ratio is 0.0: it has to be above 0 and at most 1"),
        ({"random_words": 0.6, "kept_words": 0.5}, r"random_words \+ kept_words is 1.1: it has to be"),
        ({"start": "x", "text_start": "y"}, "start begins all of it: set text_start=random beside it"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        network(**fields)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, _ = bert(tmp_path / "bert", depth=1)
    wide, _ = bert(tmp_path / "wide", width=16)
    for file, fusion, message in (
        (path, {**SIZES, "depth": 2}, "has 1 layers: fusion.depth is 2"),
        (wide, SIZES, "the fusion cannot start from .*: width is 16 there and 8 here; set them alike"),
    ):
        own = network(fusion=part("cross", **fusion), fusion_start=file)
        with pytest.raises(UserError, match=message):
            own.start(shapes_of(own))
    with pytest.raises(UserError, match="holds a model of type 'bert': give what `smke export` wrote of a run with"):
        own = network(start=path)
        own.start(shapes_of(own))


def test_a_vocabulary_without_a_mask_cannot_be_masked():
    own = network(mask_token=-1)
    hide = next(p for p in own.forward("towers", {}) if p.name == "towers/hide_words")
    assert "text_words" not in hide.needs
    with pytest.raises(UserError, match="the vocabulary of config.task has no .MASK., so that no words can be masked"):
        hide.run({}, {}, None, True)
