"""Captions in parts by their length: the same numbers as all of them at full width, and fewer tokens."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import collectives
from tiny import tiny_config

from smke_jax.models.fields import build_from
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import Pass
from smke_jax.passes.by_length import by_length, fitting, parts_of
from smke_jax.passes.micro_batch import in_micro_batches
from smke_jax.passes.words import words
from smke_jax.tasks.base import caption_lengths
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.loop import train_and_evaluate

WIDTH, ROWS = 24, 512
LENGTHS = np.clip(np.random.default_rng(0).poisson(9, 2_000) + 3, 3, WIDTH)


def batch(lengths) -> dict[str, np.ndarray]:
    mask = (np.arange(WIDTH) < np.asarray(lengths)[:, None]).astype(np.int32)
    ids = np.random.default_rng(1).integers(1, 40, mask.shape).astype(np.int32)
    return {"text": ids * mask, "text_mask": mask}


BATCHES = {
    "fits": batch(LENGTHS[:ROWS]),
    "half of the captions are long": batch(np.r_[np.full(ROWS // 2, WIDTH), np.full(ROWS // 2, 3)]),
}


@pytest.mark.parametrize("rows", [64, 100, 512])
@pytest.mark.parametrize("width", [WIDTH, 64])
def test_parts_hold_nearly_every_batch_with_few_tokens(rows, width):
    parts = parts_of(LENGTHS, rows, width)
    counts, widths = np.array(parts).T
    assert counts.sum() == rows and widths[-1] == width and list(widths) == sorted(set(widths))
    assert counts @ widths < (0.85 if width == WIDTH else 0.45) * rows * width
    rng = np.random.default_rng(2)
    drawn = np.sort(rng.choice(LENGTHS, (2_000, rows)), axis=1)
    fits = (drawn[:, counts.cumsum() - 1] <= widths).all(1)
    assert fits.mean() > 0.999


def test_more_devices_make_each_surer():
    (alone, *_), (one_of_many, *_) = parts_of(LENGTHS, 512, WIDTH), parts_of(LENGTHS, 512, WIDTH, devices=256)
    assert one_of_many[0] < alone[0] or one_of_many[1] > alone[1]


@pytest.mark.parametrize("lengths, rows", [(np.full(2_000, WIDTH), ROWS), (LENGTHS, 63), (LENGTHS[:0], ROWS)])
def test_long_captions_few_rows_and_no_captions_stay_whole(lengths, rows):
    assert parts_of(lengths, rows, WIDTH) == ((rows, WIDTH),)


@pytest.fixture(scope="module")
def tower():
    model = build_from(
        {"type": "bert", "vocab_size": 40, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}, TEXT_TOWERS["bert"]
    )
    # Larger than they begin, so that attention is far from even and padding would tell.
    params = model.init(jax.random.key(0), *(x[:2] for x in BATCHES["fits"].values()))["params"]
    return words(model, "net"), {"net": jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)}


def value_and_gradients(p, params, arrays, mesh):
    """Of a sum in which every row has other weights."""
    weights = jnp.cos(jnp.arange(ROWS * 16.0)).reshape(ROWS, 16)

    def total(params, arrays):
        made = p.run(params, arrays, jax.random.key(0), True)["words/feature"]
        return (weights * jnp.sin(made)).sum(), made

    (_, made), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params, put_batch(arrays, mesh))
    return {"made": made, "grads": grads}


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("name", BATCHES)
def test_rows_and_gradients_are_those_of_all_at_full_width(tower, name, devices):
    p, params = tower
    mesh = make_mesh(devices)
    cut = by_length(p, mesh, LENGTHS)
    expected = value_and_gradients(p, params, BATCHES[name], mesh)
    found = value_and_gradients(cut, params, BATCHES[name], mesh)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected["grads"]))
    assert largest > 1
    for (path, one), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-6 * largest, err_msg=jax.tree_util.keystr(path))


def width_of_each(params, arrays, key, train):
    """As a pass: of every row the tokens that it was computed with."""
    return {"width": jnp.full((len(arrays["text"]), 1), arrays["text"].shape[1], jnp.float32)}


@pytest.mark.parametrize("devices, size", [(1, 0), (2, 0), (8, 0), (2, 64)])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_fits_runs_in_its_parts_and_another_one_as_a_whole(name, devices, size):
    mesh, arrays = make_mesh(devices), BATCHES[name]
    cut = by_length(Pass("net", (), ("text", "text_mask"), ("width",), width_of_each), mesh, LENGTHS)
    p = in_micro_batches(cut, mesh, size)
    run = jax.jit(
        lambda arrays: (p.run({}, arrays, jax.random.key(0), True), fitting(LENGTHS, arrays["text_mask"], mesh, size))
    )
    made, share = run(put_batch(arrays, mesh))
    widths, rows = np.asarray(made["width"])[:, 0], size or ROWS // devices
    assert share == (name == "fits")
    if name != "fits":
        assert set(widths) == {WIDTH}
        return
    for count, width in (parts := parts_of(LENGTHS, rows, WIDTH, devices)):
        assert np.sum(widths == width) == count * ROWS // rows
    assert len(parts) > 1 and np.all(arrays["text_mask"].sum(1) <= widths)


def test_rows_stay_on_their_devices(tower):
    p, params = tower
    mesh = make_mesh(8)
    cut = by_length(p, mesh, LENGTHS)
    total = lambda params, arrays: cut.run(params, arrays, jax.random.key(0), True)["words/feature"].sum()  # noqa: E731
    compiled = jax.jit(jax.grad(total)).lower(params, put_batch(BATCHES["fits"], mesh)).compile()
    assert {kind for kind, _ in collectives(compiled)} == {"all-reduce"}


def test_micro_batches_are_cut_too(tower):
    p, params = tower
    mesh = make_mesh(2)
    cut = in_micro_batches(by_length(p, mesh, LENGTHS), mesh, 64)
    expected = value_and_gradients(p, params, BATCHES["fits"], mesh)
    found = value_and_gradients(cut, params, BATCHES["fits"], mesh)
    np.testing.assert_allclose(found["made"], expected["made"], rtol=2e-5, atol=2e-6)
    for one, other in zip(jax.tree.leaves(expected["grads"]), jax.tree.leaves(found["grads"]), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_what_is_made_of_every_token_is_not_cut():
    made = []

    def run(params, arrays, key, train):
        made.append(arrays["text"].shape)
        return {"text/tokens": arrays["text"].astype(jnp.float32)}

    p = by_length(Pass("net", ("net",), ("text", "text_mask"), ("text/tokens",), run), make_mesh(1), LENGTHS)
    found = p.run({}, BATCHES["fits"], None, False)
    assert found["text/tokens"].shape == (ROWS, WIDTH) and made[-1] == (ROWS, WIDTH)


def test_lengths_are_those_of_the_rows_that_are_trained_on():
    """Every process reads all of them, as a training reads its batches."""
    drawn = iter([{"text_mask": np.eye(8, dtype=np.int32)[:4].cumsum(1)}] * 3)
    seen = []
    task = SimpleNamespace(
        example=lambda: {"text_mask": None}, length=lambda: 4, batches=lambda plan: seen.append(plan) or drawn
    )
    assert caption_lengths(task, 10).tolist() == [8, 7, 6, 5] * 3
    assert seen[0].arrays == {"text_mask"} and seen[0].process == (0, 1)
    assert not len(caption_lengths(SimpleNamespace(example=lambda: {"image": None})))


def test_a_run_has_the_same_losses(tmp_path):
    """Two steps of 64 pairs, without dropout; `split_by_length` changes the program and nothing that it computes."""
    logged = {}
    for split in (True, False):
        c = tiny_config()
        c.task.update(source="few_scenes", vocab_size=300, max_length=48)
        c.evaluators.retrieval.split, c.terms.target_itc.bank_size = "gallery", 0
        c.update(batch_size=64, total_steps=2, num_devices=1, split_by_length=split)
        task = build_experiment(resolve(c.copy_and_resolve_references()), tmp_path / "facts").task
        assert len(parts_of(caption_lengths(task), 64, 48)) > 1
        train_and_evaluate(c, tmp_path / str(split))
        lines = (tmp_path / str(split) / "metrics.jsonl").read_text().splitlines()
        logged[split] = [row for row in map(json.loads, lines) if "loss" in row]
    assert len(logged[True]) == 2 and [row["captions_fit"] for row in logged[True]] == [1, 1]
    assert "captions_fit" not in logged[False][0]
    for one, other in zip(*logged.values(), strict=True):
        for name in ("loss", "itc/loss", "target_itc/loss", "grad_norm"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)
