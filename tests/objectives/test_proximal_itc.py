"""The bank of the whole data set and its regularisation against float64 PyTorch, alone and spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compiled import collectives

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.networks.base import Network
from smke_jax.objectives.proximal_itc import ROWS, UNSEEN, proximal_itc
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parallel.rules import shardings
from smke_jax.passes.base import Pass
from smke_jax.training.recipe import Recipe, make_recipe
from smke_jax.training.step import abstract_state, init_state, make_train_step, run_terms

BATCH, WIDTH, IMAGES, PROXIMAL = 8, 4, 20, 30.0
OTHER = {"image": "text", "text": "image"}


def made_up(seed):
    """Images repeat within a batch and between batches; some are never seen."""
    rng = np.random.default_rng(seed)
    reps = {f"{side}/out": rng.normal(size=(BATCH, WIDTH)).astype(np.float32) for side in OTHER}
    return reps | {"id": rng.integers(0, IMAGES - 4, BATCH).astype(np.int32)}


def shapes(reps):
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()}


def remembered(batches):
    """{image: {side: unit feature}} as of the last time that each was seen."""
    bank = {}
    for reps in batches:
        for i, image in enumerate(reps["id"]):
            bank[int(image)] = {s: reps[f"{s}/out"][i] / np.linalg.norm(reps[f"{s}/out"][i]) for s in OTHER}
    return bank


def reference(reps, bank, log_scale, masked):
    """-> (loss, tensors with gradients, scale)."""
    t = {s: torch.tensor(reps[f"{s}/out"].astype(np.float64), requires_grad=True) for s in OTHER}
    scale = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    unit = {s: torch.nn.functional.normalize(x, dim=1) for s, x in t.items()}
    ids, losses = reps["id"], []
    elsewhere = [image for image in bank if image not in ids]
    for side, other in OTHER.items():
        stored = [torch.tensor(bank[image][other].astype(np.float64)) for image in elsewhere]
        for i in range(BATCH):
            rows = [i] + [j for j in range(BATCH) if j != i and not (masked and ids[j] == ids[i])]
            logits = scale.exp() * torch.stack([*unit[other][rows], *stored]) @ unit[side][i]
            loss = -torch.log_softmax(logits, 0)[0]
            if int(ids[i]) in bank:
                loss = loss + PROXIMAL * (unit[side][i] - torch.tensor(bank[int(ids[i])][side])).square().sum()
            losses.append(loss)
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), t, scale


@pytest.mark.parametrize("masked,devices", [(False, 8), (True, 8), (False, 1)])
def test_value_and_gradient(masked, devices):
    """Some images of the batch were seen before and some were not, some twice in it."""
    term = proximal_itc(IMAGES, "out", PROXIMAL, "masked" if masked else "negative")
    reps, past = made_up(9), [made_up(seed) for seed in (0, 1)]
    reps["id"][:3] = [IMAGES - 1, 4, 4]
    params, banks = term.init(jax.random.key(0), shapes(reps))
    for old in past:
        banks = term.update(banks, old)
    bank = remembered(past)
    seen = [int(i) in bank for i in reps["id"]]
    assert any(seen) and not all(seen) and len(set(reps["id"])) < BATCH, "the test tests something"
    log_scale = float(params["logit_scale"]["out"]) - 0.5
    expected, tensors, d_scale = reference(reps, bank, log_scale, masked)

    mesh = make_mesh(devices)
    recipe = Recipe({}, (), {"t": term}, {})
    banks = jax.device_put(banks, shardings({"slots": {"t": banks}}, mesh, spread={"t": term.spread})["slots"]["t"])
    assert banks["image"]["features"].addressable_shards[0].data.shape == (ROWS // devices, WIDTH)

    @jax.jit
    def run(scale, features, ids, banks):
        def loss(scale, features):
            own = {"t": {"logit_scale": {"out": scale}}}, {"t": banks}
            losses, metrics = run_terms(recipe, mesh, *own, {**features, "id": ids}, key=jax.random.key(0))
            return losses["t"], metrics

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(scale, features)

    batch = put_batch(reps, mesh)
    with jax.default_matmul_precision("highest"):
        (value, metrics), (d_log_scale, d_reps) = run(jnp.float32(log_scale), batch, batch.pop("id"), banks)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    contrast = sum(metrics[f"t/loss_{side}"] for side in OTHER) / 2
    moved = sum(metrics[f"t/moved_{side}"] for side in OTHER) / 2
    np.testing.assert_allclose(contrast + PROXIMAL * moved, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["t/bank_filled"], len(bank) / IMAGES, rtol=1e-5)
    np.testing.assert_allclose(d_log_scale, d_scale.grad, rtol=1e-4)
    for side in OTHER:
        np.testing.assert_allclose(d_reps[f"{side}/out"], tensors[side].grad, rtol=1e-4, atol=1e-5, err_msg=side)


def test_a_row_is_the_image_as_it_was_seen_last():
    """Of an image that occurs twice in a batch, the later one."""
    term, past = proximal_itc(IMAGES), [made_up(seed) for seed in range(3)]
    past[-1]["id"][:4] = [5, 3, 5, 5]
    _, banks = term.init(jax.random.key(0), shapes(past[0]))
    update = jax.jit(term.update)
    for reps in past:
        banks = update(banks, reps)
    bank = remembered(past)
    for image in range(ROWS):
        assert banks["ids"][image] == (image if image in bank else UNSEEN)
        for side in OTHER:
            wanted = bank[image][side] if image in bank else np.zeros(WIDTH)
            np.testing.assert_allclose(banks[side]["features"][image], wanted, atol=1e-6)


def test_a_feature_that_stays_is_not_punished_and_one_that_turns_round_is():
    term, reps = proximal_itc(IMAGES), made_up(0) | {"id": np.arange(BATCH, dtype=np.int32)}
    params, banks = term.init(jax.random.key(0), shapes(reps))
    banks = term.update(banks, reps)
    _, same = term.value(params, banks, reps, ALONE)
    _, opposite = term.value(params, banks, {**reps, "image/out": -reps["image/out"]}, ALONE)
    np.testing.assert_allclose(same["moved_image"], 0, atol=1e-10)
    np.testing.assert_allclose(opposite["moved_image"], 4, rtol=1e-5)
    np.testing.assert_allclose(opposite["moved_text"], 0, atol=1e-10)


def test_the_bank_has_a_row_for_every_image():
    like = shapes(made_up(0))
    for images, rows in ((1, ROWS), (ROWS, ROWS), (ROWS + 1, 2 * ROWS)):
        _, banks = jax.eval_shape(lambda images=images: proximal_itc(images).init(jax.random.key(0), like))
        assert banks["ids"].shape == (rows,) and banks["text"]["features"].shape == (rows, WIDTH)
    with pytest.raises(UserError, match="its bank has a row for every image, and nobody says how many"):
        proximal_itc(0)


def recipe():
    """A matrix per modality."""

    def init(key, specs):
        keys = jax.random.split(key)
        return {side: jax.random.normal(k, (5, WIDTH)) for side, k in zip(OTHER, keys, strict=True)}

    run = lambda params, arrays, key, train: {f"{s}/out": arrays[s] @ params["net"][s] for s in OTHER}  # noqa: E731
    encode = Pass("net", ("net",), tuple(OTHER), ("image/out", "text/out"), run)
    terms, weights = {"t": proximal_itc(4 * ROWS)}, {"t": lambda progress: 1.0}
    return make_recipe({"net": Network(init, None)}, (encode,), terms, weights, batch=(*OTHER, "id"))


def steps(devices, count=4):
    """(state after `count` real steps, the compiled step)."""
    own, rng, tx, mesh = recipe(), np.random.default_rng(0), optax.sgd(0.01), make_mesh(devices)
    data = [
        {s: rng.normal(size=(BATCH, 5)).astype(np.float32) for s in OTHER}
        | {"id": rng.choice([0, 1, 2, ROWS, 2 * ROWS + 7, 4 * ROWS - 1], BATCH).astype(np.int32)}
        for _ in range(count)
    ]
    layout = abstract_state(own, tx, mesh, data[0])
    state = init_state(own, tx, mesh, data[0], seed=0)
    step = make_train_step(own, tx, mesh, total_steps=count, layout=layout)
    compiled = step.lower(state, {}, put_batch(data[0], mesh)).compile()
    for batch in data:
        state, metrics = compiled(state, {}, put_batch(batch, mesh))
    assert np.isfinite(metrics["loss"]) and state.slots["t"]["ids"].sharding == layout.slots["t"]["ids"].sharding
    return jax.device_get(state.replace(rng=None)), compiled


def test_real_steps_end_alike_on_1_and_8_devices_and_the_bank_stays_where_it_is():
    one, _ = steps(1)
    eight, compiled = steps(8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5), one, eight)
    assert set(one.slots["t"]["ids"]) == {UNSEEN, 0, 1, 2, ROWS, 2 * ROWS + 7, 4 * ROWS - 1}
    found = collectives(compiled)
    assert found and max(n for _, n in found) < 4 * ROWS * WIDTH // 8
