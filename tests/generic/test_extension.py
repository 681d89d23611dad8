"""Four things that nobody foresaw, each whole in this file: nothing in training/ had to change for them."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from smke_jax.evaluators import EVALUATORS
from smke_jax.evaluators.base import Evaluator, Figures
from smke_jax.facts import FromTask
from smke_jax.losses.collective import gather, global_rows
from smke_jax.losses.contrastive import normalise
from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Average, Network
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import base, part
from smke_jax.passes.averaged import averaged
from smke_jax.passes.base import Pass
from smke_jax.selections.base import Selection
from smke_jax.tasks import TASKS
from smke_jax.tasks.base import Column, Draft, Split, Task
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.frozen import frozen_shapes
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.optimizer import paths
from smke_jax.training.recipe import key_of, make_recipe
from smke_jax.training.step import init_state, make_train_step

always = lambda progress: 1.0  # noqa: E731 (a weight)


def normal(key, *shape):
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


# ---- (a) a masked and a clean view through one network, and the clean one through its moving average


DECAY, RATE = 0.9, 0.2


def denoising():
    """The masked view of a row predicts what the averaged network makes of the whole row; the clean one the row."""
    network = Network(lambda key, specs: {"w": normal(key, 6, 6)}, forward=None)
    clean = Pass("clean", ("net",), ("x",), ("clean/z",), lambda p, a, key, train: {"clean/z": a["x"] @ p["net"]["w"]})

    def masked(params, arrays, key, train):
        kept = jax.random.bernoulli(key, 0.5, arrays["x"].shape)
        return {"masked/z": (arrays["x"] * kept) @ params["net"]["w"], "masked/kept": kept}

    passes = (
        averaged(clean, "net", "teacher"),
        clean,
        Pass("masked", ("net",), ("x",), ("masked/z", "masked/kept"), masked),
    )

    def value(params, slots, reps, scope):
        denoised = jnp.mean(jnp.square(reps["masked/z"] - jax.lax.stop_gradient(reps["teacher/clean/z"])))
        rebuilt = jnp.mean(jnp.square(reps["clean/z"] - reps["x"]))
        return denoised + rebuilt, {"kept": jnp.mean(reps["masked/kept"] * 1.0)}

    term = Term(("masked/z", "masked/kept", "teacher/clean/z", "clean/z", "x"), no_state, value)
    follower = Network(None, None, trained=False, average=Average("net", DECAY))
    return make_recipe({"net": network, "teacher": follower}, passes, {"t": term}, {"t": always}, batch=("x", "id"))


def test_two_passes_borrow_one_network_and_a_third_its_average():
    recipe, mesh, tx = denoising(), make_mesh(2), optax.sgd(RATE)
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(8, 6)).astype(np.float32), "id": np.arange(8, dtype=np.int32)} for _ in range(4)]
    state = init_state(recipe, tx, mesh, batches[0], seed=0)
    assert set(state.params) == {"net", "terms"} and set(state.averages) == {"teacher"}
    step = make_train_step(recipe, tx, mesh, total_steps=4)
    weights, average, kept = np.asarray(state.params["net"]["w"]), None, []
    passes = {p.name: p for p in recipe.forward}
    for batch in batches:
        seen = jax.random.fold_in(state.rng, state.step)
        before = weights
        average = before if average is None else DECAY * average + (1 - DECAY) * before
        state, metrics = jax.device_get(step(state, {}, put_batch(batch, mesh)))

        def loss(w, x=batch["x"], seen=seen, average=average):
            made = passes["masked"].run({"net": {"w": w}}, {"x": x}, key_of(seen, "masked"), True)["masked/z"]
            return jnp.mean((made - x @ average) ** 2) + jnp.mean((x @ w - x) ** 2)

        expected, gradient = jax.value_and_grad(loss)(before)
        weights = np.asarray(state.params["net"]["w"])
        close(metrics["loss"], expected)
        close(weights, before - RATE * gradient)
        close(state.averages["teacher"]["w"], average, 1e-6)
        kept.append(float(metrics["t/kept"]))
    assert len(set(kept)) > 1 and 0.2 < np.mean(kept) < 0.8, "masks are drawn anew in every step"
    assert np.any(state.averages["teacher"]["w"] != weights)


# ---- (b) hard negatives of the global batch, through a fusion network of two layers


def matching():
    """Pairs through two matrices; each image with its own text and with the wrong one that is nearest to it."""

    def towers(key, specs):
        return {side: normal(k, specs[side].shape[-1], 6) for side, k in zip(("image", "text"), jax.random.split(key))}

    def fusion(key, specs):
        first, second = jax.random.split(key)
        return {"fc1": normal(first, 12, 10), "fc2": normal(second, 10, 1)}

    def encode(params, arrays, key, train):
        return {f"{side}/tokens": arrays[side] @ params["towers"][side] for side in ("image", "text")}

    def nearest(state, arrays, scope):
        image, text = (normalise(arrays[f"{side}/tokens"].mean(1)) for side in ("image", "text"))
        cosines = image @ gather(text, scope).T
        own = gather(arrays["id"], scope) == arrays["id"][:, None]
        return {"hard_text": jnp.argmax(jnp.where(own, -2.0, cosines), axis=1).astype(jnp.int32)}

    def fuse(text, name):
        def run(params, arrays, key, train):
            both = jnp.concatenate([arrays["image/tokens"].mean(1), arrays[text].mean(1)], axis=-1)
            own = params["fusion"]
            return {name: (jax.nn.gelu(both @ own["fc1"]) @ own["fc2"])[:, 0]}

        return Pass(name, ("fusion",), ("image/tokens", text), (name,), run)

    def value(params, slots, reps, scope):
        right, wrong = jax.nn.softplus(-reps["right"]), jax.nn.softplus(reps["wrong"])
        here = jnp.mean((reps["hard_text"] == global_rows(len(right), scope)) * 1.0)
        return jnp.mean(right + wrong), {"own_chosen": here}

    rows = ("image", "text")
    return make_recipe(
        {"towers": Network(towers, None), "fusion": Network(fusion, None)},
        # In an order that cannot be run as it stands: needs decide.
        (
            fuse("text/tokens@hard_text", "wrong"),
            fuse("text/tokens", "right"),
            Pass("encode", ("towers",), rows, ("image/tokens", "text/tokens"), encode),
        ),
        {"match": Term(("right", "wrong", "hard_text"), no_state, value)},
        {"match": always},
        batch=(*rows, "id"),
        selections=(Selection("nearest", ("image/tokens", "text/tokens", "id"), ("hard_text",), nearest),),
    )


def matched(devices, micro_batch):
    """(parameters at the start, parameters, metrics) after a step."""
    recipe, mesh, tx = matching(), make_mesh(devices), optax.sgd(0.5)
    state = init_state(recipe, tx, mesh, PAIRS, seed=0)
    start = jax.device_get(state.params)
    step = make_train_step(recipe, tx, mesh, total_steps=4, micro_batch=micro_batch)
    state, metrics = step(state, {}, put_batch(PAIRS, mesh))
    return start, *jax.device_get((state.params, metrics))


rng = np.random.default_rng(1)
PAIRS = {
    "image": rng.normal(size=(16, 3, 5)).astype(np.float32),
    "text": rng.normal(size=(16, 2, 4)).astype(np.float32),
    "id": (np.arange(16) // 2).astype(np.int32),  # two captions of each image
}


def test_hard_negatives_go_through_a_second_forward():
    assert [item.name for item in matching().forward] == ["encode", "nearest", "wrong", "right"]
    start, params, metrics = matched(1, 0)

    def loss(params):
        tokens = {side: PAIRS[side] @ params["towers"][side] for side in ("image", "text")}
        image, text = (tokens[side].mean(1) for side in ("image", "text"))
        cosines = normalise(image) @ normalise(text).T
        hard = jnp.argmax(jnp.where(PAIRS["id"] == PAIRS["id"][:, None], -2.0, cosines), axis=1)
        logits = [
            (jax.nn.gelu(jnp.concatenate([image, other], -1) @ params["fusion"]["fc1"]) @ params["fusion"]["fc2"])
            for other in (text, text[hard])
        ]
        return jnp.mean(jax.nn.softplus(-logits[0]) + jax.nn.softplus(logits[1]))

    expected, gradient = jax.jit(jax.value_and_grad(loss))(start)
    close(metrics["loss"], expected)
    assert metrics["match/own_chosen"] == 0
    close(params, jax.tree.map(lambda p, g: p - 0.5 * g, start, gradient))
    assert all(np.any(g != 0) for g in jax.tree.leaves(gradient))
    for devices, micro_batch in ((1, 4), (8, 1)):
        other_start, other, other_metrics = matched(devices, micro_batch)
        close(start, other_start, 0)
        close(metrics, other_metrics)
        close(params, other)


# ---- (c) labelled images: a head is trained, the tower is frozen


CLASSES, PIXELS, WIDTH = 3, 4, 64


def labelled(*, rows: int = 24) -> Draft:
    """Noise, and the label says which colour is bright."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, rows).astype(np.int32)
    image = np.clip(rng.normal(60, 10, (rows, PIXELS, PIXELS, 3)) + 100 * np.eye(3)[label][:, None, None], 0, 255)
    arrays = {"image": image.astype(np.uint8), "label": label, "id": np.arange(rows, dtype=np.int32)}

    def batches(plan):
        dataset = grain.MapDataset.range(rows).seed(plan.seed).shuffle().repeat()
        dataset = dataset.map(lambda i: {name: x[i] for name, x in arrays.items() if name in plan.arrays})
        return iter(dataset.batch(plan.batch_size // plan.process[1]).to_iter_dataset())

    def split(name):
        return Split(f"noise {name}", "noise", {"image": Column(rows, lambda i: arrays["image"][i])}, {"labels": label})

    example = lambda: {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in arrays.items()}  # noqa: E731
    facts = {"classes": CLASSES}
    task = Task(facts, example, lambda: rows, lambda: {"data": "noise"}, batches, split, "train")
    return Draft(facts, lambda sizes: task)


def tower_and_head(*, classes: FromTask, width: int = WIDTH, trained: tuple[str, ...] = ()) -> Network:
    """Three matrices, and one for the classes."""

    def init(key, specs):
        keys = jax.random.split(key, 4)
        size = int(np.prod(specs["image"].shape[1:]))
        tower = {f"fc{i}": normal(k, width if i else size, width) for i, k in enumerate(keys[:3])}
        return {"tower": tower, "head": {"kernel": normal(keys[3], width, classes)}}

    def run(name):
        def logits(params, arrays, key, train):
            x = arrays["image"].reshape(len(arrays["image"]), -1) / 255.0
            for kernel in params[name]["tower"].values():
                x = jax.nn.relu(x @ kernel)
            return {"class/logits": x @ params[name]["head"]["kernel"]}

        return Pass(name, (name,), ("image",), ("class/logits",), logits)

    return Network(init, lambda name, specs: (run(name),), trained=tuple(trained) or True)


def classify() -> Term:
    """Cross entropy of 'class/logits' and 'label'."""

    def value(params, slots, reps, scope):
        losses = optax.softmax_cross_entropy_with_integer_labels(reps["class/logits"], reps["label"])
        return jnp.mean(losses), {}

    return Term(("class/logits", "label"), no_state, value)


def accuracy(*, split: str = "train", every: int = 0) -> Evaluator:
    """Share of images whose class is found."""

    def run(encode, task, on):
        found = np.argmax(encode(("class/logits",), on)["class/logits"], axis=1)
        share = float(np.mean(found == on.facts["labels"]))
        return Figures({"accuracy": share}, {"accuracy": share, "images": len(found)}, summary=f"accuracy {share:.2f}")

    return Evaluator(("class/logits",), run, split, every, best="accuracy")


@pytest.fixture
def labels(monkeypatch):
    """(trained) -> a config of made-up parts."""
    monkeypatch.setitem(TASKS, "labelled", labelled)
    monkeypatch.setitem(NETWORKS, "tower_and_head", tower_and_head)
    monkeypatch.setitem(TERMS, "classify", classify)
    monkeypatch.setitem(EVALUATORS, "accuracy", accuracy)

    def config(trained):
        c = base()
        c.update(batch_size=8, total_steps=20, num_devices=2, eval_batch_size=10)
        c.log.every, c.log.report = 1, False
        c.optimizer.update(learning_rate=0.05, reference_batch=0)
        c.task = part("labelled")
        c.networks.net = part("tower_and_head", trained=trained)
        c.terms.classify = part("classify")
        c.evaluators.accuracy = part("accuracy")
        return c

    return config


def matrix_flops(jaxpr) -> int:
    """Of all matrix products of a jaxpr, those inside its calls among them."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            sizes = equation.invars[0].aval.shape
            count += 2 * equation.outvars[0].aval.size * int(np.prod([sizes[i] for i in contracted]))
        for inner in jaxprs_in_params(equation.params):
            count += matrix_flops(inner)
    return count


def test_a_frozen_tower_costs_no_backward_pass_no_moments_and_no_norm(labels, tmp_path):
    flops, states = {}, {}
    for trained in ((), ("head",)):
        config = resolve(labels(trained))
        experiment = build_experiment(config, None)
        _, _, state, step = build_step(config, experiment)
        arguments = state, frozen_shapes(experiment.recipe, experiment.shapes), experiment.batch
        flops[trained] = matrix_flops(step.trace(*arguments).jaxpr.jaxpr)
        states[trained] = jax.tree.leaves(paths((state.params, state.opt_state)))
    assert flops["head",] < 0.5 * flops[()]
    assert [[path for path in paths if "tower" in path] == [] for paths in states.values()] == [False, True]

    whole = train_and_evaluate(labels(()), tmp_path / "whole")
    head = train_and_evaluate(labels(("head",)), tmp_path / "head")
    assert set(head.params["net"]) == {"head"} and set(whole.params["net"]) == {"head", "tower"}
    assert head.figures["accuracy"].scalars["accuracy"] > 0.6  # of three classes
    first = {}
    for name in ("whole", "head"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        first[name] = next(row for row in rows if "grad_norm" in row)
    assert first["head"]["loss"] == pytest.approx(first["whole"]["loss"], rel=1e-6), "they begin alike"
    assert first["head"]["grad_norm"] < 0.9 * first["whole"]["grad_norm"]
    figures = json.loads((tmp_path / "head/evals/20/accuracy.json").read_text())
    assert figures == {"accuracy": head.figures["accuracy"].scalars["accuracy"], "images": 24}


# ---- (d) an evaluator whose loss ranks checkpoints


def one_number() -> Network:
    """y = w for every image: a pass that does nothing else."""
    run = lambda params, arrays, key, train: {"y": params["net"]["w"] + 0.0 * arrays["image"].mean((1, 2, 3))}  # noqa: E731
    init = lambda key, specs: {"w": jnp.zeros(1)}  # noqa: E731
    return Network(init, lambda name, specs: (Pass(name, (name,), ("image",), ("y",), run),))


def rise() -> Term:
    """The larger, the better."""
    return Term(("y",), no_state, lambda params, slots, reps, scope: (-jnp.mean(reps["y"]), {}))


def distance_loss(*, to: float, split: str = "train", every: int = 1) -> Evaluator:
    """Squared distance of y from a number, which training passes by."""

    def run(encode, task, on):
        loss = float(np.mean((encode(("y",), on)["y"] - to) ** 2))
        return Figures({"loss": loss}, {"loss": loss})

    return Evaluator(("y",), run, split, every, best="loss")


def test_of_a_loss_the_lowest_is_the_best(labels, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "one_number", one_number)
    monkeypatch.setitem(TERMS, "rise", rise)
    monkeypatch.setitem(EVALUATORS, "distance_loss", distance_loss)
    config = labels(())
    del config.networks.net, config.terms.classify, config.evaluators.accuracy
    config.update(total_steps=6, num_devices=1)
    config.networks.net, config.terms.rise = part("one_number"), part("rise")
    config.evaluators.distance = part("distance_loss", to=0.12)
    config.optimizer.warmup_fraction = 0.0
    train_and_evaluate(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/distance/loss"] for row in rows if "eval/distance/loss" in row}
    best = min(losses, key=losses.get)
    assert sorted(losses) == [1, 2, 3, 4, 5, 6] and 1 < best < 5, losses
    with Checkpointer(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.best_step() == best and checkpoints.steps() == [best, 5, 6]
