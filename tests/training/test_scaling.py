"""Micro-batches, fsdp, remat and the ring in the real train step: the same numbers, less memory, no stray transfers."""

import functools
import re

import jax
import numpy as np
import pytest

from smke_jax.config import base, smoke
from smke_jax.errors import UserError
from smke_jax.parallel import rules
from smke_jax.parallel.mesh import check_batch_size, make_mesh, put_batch, replicated
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import build_recipe
from smke_jax.training.step import abstract_state, init_state, make_train_step

BATCH, VOCAB, BANK, STEPS = 16, 13, 24, 3


@pytest.fixture(autouse=True)
def small_arrays_are_split(monkeypatch):
    monkeypatch.setattr(rules, "FSDP_FROM", 100)


def config(**changes):
    c = base()
    c.terms.itc = {"levels": ("fc1", "out"), "mask_same_image": True}
    c.terms.target_itc = {"bank_size": 1}
    c = smoke(c)
    c.terms.target_itc.bank_size = BANK
    for part in (c.student.image, c.student.text, c.student.shared, c.teacher):
        part.update({k: v for k, v in dict(width=16, mlp_dim=24, image_size=16, patch_size=8).items() if k in part})
    c.optimizer.update(learning_rate=1e-2 * 256 / BATCH, warmup_fraction=0.0)
    c.update_from_flattened_dict(changes)
    return c


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            "image": rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8),
            "text": rng.integers(0, VOCAB, (BATCH, 5)).astype(np.int32),
            "text_mask": (np.arange(5) < rng.integers(2, 6, (BATCH, 1))).astype(np.int32),
            "id": rng.integers(0, 12, BATCH).astype(np.int32),
        }


def build(c, devices):
    """(mesh, abstract state, state, frozen, compiled step) of a config."""
    mesh = make_mesh(devices, fsdp_size=c.fsdp_size if c.sharding == "fsdp" else 1)
    recipe, batch = build_recipe(c, vocab_size=VOCAB), next(batches())
    tx, _ = build_optimizer(c.optimizer, batch_size=BATCH, total_steps=10)
    abstract = abstract_state(recipe, tx, mesh, batch, sharding=c.sharding)
    state = init_state(recipe, tx, mesh, batch, seed=0, sharding=c.sharding)
    teacher = next(p for p in recipe.passes if p.name == "teacher")
    frozen = jax.jit(lambda: {"teacher": teacher.init(jax.random.key(9), batch)}, out_shardings=replicated(mesh))()
    step = make_train_step(
        recipe, tx, mesh, total_steps=10, layout=abstract, micro_batch=c.micro_batch, loss_impl=c.loss_impl
    )
    return mesh, abstract, state, frozen, step.lower(state, frozen, put_batch(batch, mesh)).compile()


def train(c, devices):
    mesh, _, state, frozen, step = build(c, devices)
    history = []
    for batch in batches():
        state, metrics = step(state, frozen, put_batch(batch, mesh))
        history.append(jax.device_get(metrics))
    return jax.device_get((state.params, state.slots)), history


@functools.cache
def plain():
    return train(config(), 1)


def assert_the_same(one, other, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


WAYS = {
    "micro-batches": (1, {"micro_batch": 4}),
    "micro-batches on 4 devices": (4, {"micro_batch": 2}),
    "ring on 4": (4, {"loss_impl": "ring"}),
    "fsdp on 4": (4, {"sharding": "fsdp"}),
    "fsdp in pairs on 8": (8, {"sharding": "fsdp", "fsdp_size": 2}),
    "remat": (1, {"student.remat": "blocks"}),
    "remat of all but products": (2, {"student.remat": "dots"}),
    "everything": (
        4, {"sharding": "fsdp", "fsdp_size": 2, "micro_batch": 2, "loss_impl": "ring", "student.remat": "dots"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_three_steps_give_the_same_numbers(way):
    """Against one device, whole batch, gather: metrics, gradients' norm, parameters and bank after three steps."""
    devices, changes = WAYS[way]
    state, history = train(config(**changes), devices)
    expected_state, expected_history = plain()
    assert_the_same(expected_history, history, 1e-4)
    assert_the_same(expected_history[0], history[0], 1e-5)
    assert_the_same(expected_state, state, 3e-5)


def test_fsdp_splits_what_is_large_and_makes_it_where_it_lies():
    c = config(sharding="fsdp")
    mesh = make_mesh(4, fsdp_size=0)
    recipe, batch = build_recipe(c, vocab_size=VOCAB), next(batches())
    tx, _ = build_optimizer(c.optimizer, batch_size=BATCH, total_steps=10)
    state = init_state(recipe, tx, mesh, batch, seed=0, sharding="fsdp")
    abstract = abstract_state(recipe, tx, mesh, batch, sharding="fsdp")
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), abstract, state)

    kernel = state.params["student"]["shared"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (16, 24) and kernel.addressable_shards[0].data.shape == (16, 6)
    assert state.params["student"]["shared"]["norm1"]["scale"].sharding.is_fully_replicated
    in_part = [x for x in jax.tree.leaves((state.params, state.opt_state)) if not x.sharding.is_fully_replicated]
    assert sum(x.size for x in in_part) > 0.9 * sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))
    bank = state.slots["target_itc"]
    assert bank.features.addressable_shards[0].data.shape == (BANK // 4, 16)
    assert bank.ids.addressable_shards[0].data.shape == (BANK // 4,) and bank.head.sharding.is_fully_replicated
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        jax.device_get(state.params), jax.device_get(init_state(recipe, tx, make_mesh(1), batch, seed=0).params),
    )  # fmt: skip


def test_rules_by_path_and_shape():
    mesh = make_mesh(8, fsdp_size=4)  # two groups of four
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)  # noqa: E731
    tree = {
        "params": {"kernel": shape(12, 40), "tall": shape(40, 13), "odd": shape(33, 35), "bias": shape(40)},
        "slots": {"t": {"features": shape(16, 3), "ids": shape(16), "head": shape()}, "u": {"features": shape(20, 3)}},
    }
    found = rules.specs(tree, mesh, "fsdp")
    assert found["params"]["kernel"] == jax.P(None, "fsdp") and found["params"]["tall"] == jax.P("fsdp", None)
    assert found["params"]["odd"] == found["params"]["bias"] == found["slots"]["t"]["head"] == jax.P()
    assert found["slots"]["t"]["features"] == found["slots"]["t"]["ids"] == jax.P(("data", "fsdp"))
    assert found["slots"]["u"]["features"] == jax.P(), "20 rows do not divide by 8"
    replicated_params = rules.specs(tree, mesh)["params"]
    assert all(spec == jax.P() for spec in replicated_params.values())


def collectives(compiled) -> list[tuple[str, int]]:
    """(kind, elements of the result) of every collective in a compiled program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\][^ ]* ({kinds})\(", compiled.as_text())
    return [(kind, int(np.prod([int(n) for n in shape.split(",") if n]))) for shape, kind in found]


@pytest.mark.parametrize("impl", ["gather", "ring"])
def test_the_bank_stays_where_it_is(impl):
    """No collective of a step on 8 devices carries the bank's features, in the loss or in the update."""
    c = config(loss_impl=impl)
    c.terms.target_itc.bank_size = bank = 8 * 160
    *_, step = build(c, 8)
    found = collectives(step)
    assert found, "nothing is exchanged at all?"
    part = bank * c.teacher.width // 8
    assert not [(kind, n) for kind, n in found if kind != "all-reduce" and n >= part]  # all-reduce: the gradients
    assert ("collective-permute" in {kind for kind, _ in found}) == (impl == "ring")


def test_micro_batches_move_nothing_and_take_less_memory():
    """Per device: no all-to-all for cutting the batch, and temporary memory that shrinks with the micro-batch."""
    whole, cut = (build(config(micro_batch=size), 2)[-1] for size in (0, 2))
    assert {kind for kind, _ in collectives(cut)} == {kind for kind, _ in collectives(whole)}
    assert "all-to-all" not in {kind for kind, _ in collectives(cut)}
    memory = lambda step: step.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert memory(cut) < 0.8 * memory(whole)


def test_what_does_not_divide_is_refused():
    mesh = make_mesh(4)
    check_batch_size(32, mesh, micro_batch=4)
    check_batch_size(32, mesh, micro_batch=64)  # more than a device has: no micro-batches
    with pytest.raises(UserError, match="config.micro_batch 6 does not divide the 16 examples of each device.*to 4"):
        check_batch_size(64, mesh, micro_batch=6)
    with pytest.raises(UserError, match="batch_size 30 does not divide over 4 devices: set it to 32"):
        check_batch_size(30, mesh)
    with pytest.raises(UserError, match="fsdp_size 3 does not divide 4 devices"):
        make_mesh(4, fsdp_size=3)
    with pytest.raises(UserError, match="9 devices were asked for, this machine shows 8"):
        make_mesh(9)
