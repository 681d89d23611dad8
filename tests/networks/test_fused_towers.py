"""Towers with a fusion encoder: one step is the same however it is spread; what it starts from; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.fused_forms import fused, seed
from smke_jax.losses.collective import ALONE
from smke_jax.models.fields import build_from
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.networks.fused_towers import fused_towers
from smke_jax.networks.start import lost_temperatures
from smke_jax.objectives.fused_itm import fused_itm
from smke_jax.objectives.itc import itc
from smke_jax.objectives.mlm import mlm
from smke_jax.objectives.vicreg import vicreg
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.passes.averaged import averaged
from smke_jax.selections.draws import draws
from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.training.build import build_part
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import init_state, make_train_step

VOCAB, MASK, LENGTH, BATCH = 30, 4, 7, 16
STEPS = 400
SIZES = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}
TEXT = part("bert", **SIZES, max_positions=LENGTH)
IMAGE = part("vit", **{**SIZES, "width": 12}, image_size=8, patch_size=4)


def network(kind="cross", vocab_size=VOCAB, mask_token=MASK, **fields):
    given = {"image": IMAGE, "text": TEXT, "fusion": part(kind, **SIZES), "embed": 6, "text_ratio": 0.5}
    return fused_towers(vocab_size=vocab_size, mask_token=mask_token, **given | fields)


def recipe(hardness=None, **fields):
    own = network(**fields)
    terms = {"itc": itc(levels=("out",), same_image="masked"), "itm": fused_itm(), "mlm": mlm()}
    return make_recipe(
        {"towers": own}, own.forward("towers", {}), terms, dict.fromkeys(terms, lambda progress: 1.0),
        batch=("image", "text", "text_mask", "text_words", "id"),
        selections=(draws(), hard_negatives(same_image="masked", hardness=hardness)),
    )  # fmt: skip


def batch():
    rng = np.random.default_rng(0)
    # Every other caption has words of two pieces: 0, 1, 1, 2, 2.
    numbers = np.where(np.arange(BATCH)[:, None] % 2, (np.arange(LENGTH) + 1) // 2, np.arange(LENGTH))
    words = np.where(np.arange(LENGTH) < rng.integers(1, LENGTH - 1, (BATCH, 1)), numbers, -1)
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


def test_words_and_matches_are_learned_from_the_image():
    """Sixteen grey and coloured squares with a word for each: the hidden word stands in the image alone."""
    rng = np.random.default_rng(0)
    colours = rng.permutation(np.stack(np.meshgrid([0, 120, 255], [0, 120, 255], [0, 255]), axis=-1).reshape(-1, 3))
    words = np.tile([-1, 0, -1, -1, -1, -1, -1], (BATCH, 1)).astype(np.int32)
    ids = np.where(words < 0, 2, 5 + np.arange(BATCH)[:, None]).astype(np.int32)
    pairs = {
        "image": np.broadcast_to(colours[:BATCH, None, None], (BATCH, 8, 8, 3)).astype(np.uint8),
        "text": ids, "text_words": words, "text_mask": (np.arange(LENGTH) < 3).astype(np.int32) * np.ones_like(ids),
        "id": np.arange(BATCH, dtype=np.int32),
    }  # fmt: skip
    made, mesh, tx = recipe(kind="concat", hardness=0.0), make_mesh(1), optax.adam(1e-2)
    state = init_state(made, tx, mesh, pairs, seed=0)
    step, on_devices = make_train_step(made, tx, mesh, total_steps=STEPS), put_batch(pairs, mesh)
    found = []
    for _ in range(STEPS):
        state, metrics = step(state, {}, on_devices)
        found.append(metrics)
    means = {name: np.mean([x[f"{name}/accuracy"] for x in found[-50:]]) for name in ("itm", "mlm")}
    assert means["itm"] > 0.85, "always no is right in two of three"
    assert means["mlm"] > 0.9, "one word in sixteen is right by chance"


# ---- masked words


def run(passes, arrays, params):
    """`arrays` and what `passes` make of them, one after the other."""
    arrays = dict(arrays)
    for p in passes:
        arrays |= p.run(params, {need: arrays[need] for need in p.needs}, None, False)
    return arrays


def with_draws(**fields):
    """(network, its parameters, the arrays of all passes but those of wrong pairs)."""
    own = network(**fields)
    params = {"towers": jax.jit(own.init)(jax.random.key(3), {})}
    arrays = {**batch(), "draws": np.arange(BATCH, dtype=np.int32)}
    passes = [p for p in own.forward("towers", {}) if not any("hard" in need for need in p.needs)]
    return own, params, run(passes, arrays, params)


def test_a_random_word_is_no_special_token():
    for special, found in (((0, 1, 2, 3, 4), set(range(5, VOCAB))), (tuple(range(VOCAB - 1)), {VOCAB - 1})):
        own = network(random_words=1.0, text_ratio=1.0, special_tokens=special)
        (hide,) = (p for p in own.forward("towers", {}) if p.name == "towers/hide_words")
        made = run([hide], {**batch(), "draws": np.arange(BATCH, dtype=np.int32)}, {})
        ids = np.asarray(made["masked_text/ids"])[np.asarray(made["masked_text/chosen"])]
        assert set(ids) <= found and len(set(ids)) > min(10, len(found) - 1)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_labels_are_the_words_that_stood_at_the_masked_places(unit):
    own, params, made = with_draws(text_unit=unit)
    text, ids, chosen = batch()["text"], np.asarray(made["masked_text/ids"]), np.asarray(made["masked_text/chosen"])
    labels, logits = np.asarray(made["masked_text/labels"]), np.asarray(made["masked_text/logits"])
    assert np.array_equal(chosen, ids == MASK) and np.array_equal(ids[~chosen], text[~chosen])
    assert not np.any(chosen & (batch()["text_words"] < 0)), "special tokens are never masked"
    for row in range(BATCH):
        places = np.flatnonzero(chosen[row])
        assert labels[row].tolist() == [*text[row, places], *[-1] * (labels.shape[1] - len(places))]
        # The logits are those of the fused token at that place: by hand, from the table of the text tower's words.
        own, token = params["towers"], np.asarray(made["masked_text/fused"])[row, places]
        x = token @ own["word_head"]["transform"]["kernel"] + own["word_head"]["transform"]["bias"]
        x = torch.nn.functional.gelu(torch.tensor(np.asarray(x))).numpy()
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        expected = x @ np.asarray(own["text_encoder"]["word_embedding"]).T + own["word_head"]["bias"]
        np.testing.assert_allclose(logits[row, : len(places)], expected, rtol=1e-4, atol=1e-5)


def test_whole_words_are_masked_and_labelled_with_all_of_their_pieces():
    _, _, made = with_draws(text_unit="word")
    words, text = batch()["text_words"], batch()["text"]
    labels, several = np.asarray(made["masked_text/labels"]), 0
    for row, chosen in enumerate(np.asarray(made["masked_text/chosen"])):
        masked = set(words[row, chosen])
        assert len(masked) == np.ceil(0.5 * len(set(words[row]) - {-1}))
        assert np.array_equal(chosen, np.isin(words[row], list(masked))), "a word is hidden as a whole"
        pieces = [int(text[row, place]) for word in sorted(masked) for place in np.flatnonzero(words[row] == word)]
        assert [x for x in labels[row] if x >= 0] == pieces
        several += len(pieces) > len(masked)
    assert several >= 4


def test_words_are_found_with_the_clean_image_and_the_average_sees_the_same_mask():
    own, params, made = with_draws()
    other = run(own.forward("towers", {})[:1], {"image": 255 - batch()["image"]}, params)
    fuse = next(p for p in own.forward("towers", {}) if p.name == "towers/fused_masked_text")
    changed = run([fuse], {**made, "image/states": other["image/states"]}, params)
    assert np.abs(changed["masked_text/logits"] - made["masked_text/logits"]).max() > 1e-4
    passes = own.forward("towers", {})
    hide = averaged(next(p for p in passes if p.name == "towers/hide_words"), "towers", "momentum", passes)
    seen = run([hide], {**batch(), "draws": made["draws"]}, {})
    np.testing.assert_array_equal(seen["momentum/masked_text/ids"], made["masked_text/ids"])


def test_vicreg_can_compare_the_fused_states_of_both_masked_views():
    _, _, made = with_draws(kind="concat", mask_cell=4)
    pair = ("masked_image/fused_cls", "masked_text/fused_cls")
    shapes = {name: jax.ShapeDtypeStruct(made[name].shape, jnp.float32) for name in pair}
    term = vicreg(pair=pair)
    value, _ = term.value(*term.init(jax.random.key(0), shapes), made, ALONE)
    assert np.isfinite(value) and {made[name].shape for name in pair} == {(BATCH, SIZES["width"])}
    assert np.abs(made[pair[0]] - made[pair[1]]).max() > 1e-3 and np.abs(made[pair[0]] - made["pair/cls"]).max() > 1e-3


def test_pooled_over_the_tokens_padding_does_not_count():
    _, params, made = with_draws(pool="mean", mask_cell=0)
    mask = batch()["text_mask"][:, :, None]
    mean = (np.asarray(made["text/states"]) * mask).sum(1) / mask.sum(1)
    own = params["towers"]["text_projection"]
    np.testing.assert_allclose(made["text/out"], mean @ own["kernel"] + own["bias"], rtol=1e-4, atol=1e-6)


def test_the_published_sizes():
    """Counted by hand: ViT-B/16 at 256 pixels, BERT-base in two halves, the second attending to images too."""
    own = build_part("networks", "towers", fused(form_of(""), "cross"), vocab_size=30_522)
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes_of(own).items()}
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    image = 12 * layer + 768 * (16 * 16 * 3) + 768 + 768 * (1 + 1 + 256) + 2 * 768
    cross = 4 * (768 * 768 + 768) + 2 * 768
    assert counts["image_encoder"] == image and counts["fusion"] == 6 * (layer + cross)
    assert counts["text_encoder"] == 6 * layer + 768 * (30_522 + 512 + 2 + 2)


def test_the_seed_s_sizes():
    """Spec B.2: 21.7 million parameters of the image tower, 3.15 million per layer of BERT-small."""
    own = build_part("networks", "towers", seed("concat"), vocab_size=30_522)
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes_of(own).items()}
    assert round(counts["image_encoder"] / 1e6, 1) == 21.7 and round(counts["text_encoder"] / 1e6 - 2 * 3.15, 1) == 15.9
    assert round((counts["fusion"] - 384 * 512 - 512) / 2e6, 2) == 3.15


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


def test_the_head_of_words_comes_with_the_layers_of_the_fusion(tmp_path):
    path, encoder = bert(tmp_path / "bert")
    shapes = shapes_of(network(fusion=part("cross", **SIZES)))["word_head"]
    head = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), shapes)
    model = {**TEXT, "depth": 3, "vocab_size": VOCAB, "word_head": True}
    save_params(tmp_path / "bert" / PARAMS, {**encoder, "word_head": head}, {"model": model})
    own = network(text_start=path, fusion_start=path, fusion=part("cross", **{**SIZES, "depth": 2}))
    found = own.start(shapes_of(own))
    jax.tree.map(np.testing.assert_array_equal, found.params["word_head"], head)
    assert found.origins["word_head"] == f"the head of words of {path}"
    alone = network(text_start=path, fusion=part("cross", **SIZES))
    assert set(alone.start(shapes_of(alone)).params) == {"text_encoder"}


def test_an_export_begins_the_next_run(tmp_path):
    own = network(fusion=part("concat", **SIZES))
    params, description = own.export(own.init(jax.random.key(1), {}), {})
    save_params(tmp_path / PARAMS, params, {"model": {**description, "logit_scales": {"itc": {"out": 3.0}}}})
    again = network(fusion=part("concat", **SIZES), start=str(tmp_path))
    found = again.start(shapes_of(again))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.terms == {"itc": {"logit_scale": {"out": 3.0}}}
    terms = {"contrast": {"logit_scale": {"out": 1.0}}, "itm": {}}
    (line,) = lost_temperatures("towers", terms, found)
    assert line == "towers: its learned temperature of 'itc' (out) is of no term here, and is left out"
    assert not lost_temperatures("towers", {"itc": {"logit_scale": {"out": 1.0}}}, found)
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
        ({"text": {**TEXT, "word_width": 4}}, "text.word_width: the head of words reads a table as wide as the layers"),
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
