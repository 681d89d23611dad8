"""The whole step against its PyTorch twin, from the same start: loss, every gradient, and the losses after updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import put_batch
from smke_jax.studies.benchmarks import pytorch, train_step
from smke_jax.studies.benchmarks.pytorch import Trainer, Twin, description, to_batch
from smke_jax.studies.benchmarks.sizes import flops_per_example, made_up_batch, step_config
from smke_jax.studies.plan.assumed import shapes_only
from smke_jax.studies.plan.flops import flops_per_example as counted_flops
from smke_jax.training.frozen import load_frozen
from smke_jax.training.optimizer import decays, paths
from smke_jax.training.step import init_state, make_train_step

STEPS, RATE = 4, 3e-3


@pytest.fixture(scope="module")
def run():
    """(config, batch, initial (params, teacher, slots), [gradients and loss of STEPS steps]) of smke_jax."""
    config = step_config("micro", batch_size=8)
    config.terms.target_itc.bank_size = 20  # the third step wraps around
    student, teacher = config.networks.student, config.networks.teacher.model
    student.image.depth = student.text.depth = teacher.depth = 1
    batch, experiment = made_up_batch(config), shapes_only(config)
    recipe, mesh = experiment.recipe, experiment.mesh
    # Keeps the gradients where they can be read, and updates as AdamW does.
    adam = optax.adamw(RATE, *config.optimizer.betas, config.optimizer.eps, weight_decay=0.0)
    tx = optax.GradientTransformation(
        lambda params: (params, adam.init(params)),
        lambda grads, state, params: (lambda new: (new[0], (grads, new[1])))(adam.update(grads, state[1], params)),
    )
    state = init_state(recipe, tx, mesh, experiment.batch, seed=0)
    rng = np.random.default_rng(0)  # no bias at 0, no norm at 1
    noisy = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params)
    state = state.replace(params=noisy)
    frozen = load_frozen(recipe, experiment.shapes, {}, mesh, seed=0, names=("teacher",))
    initial = jax.device_get((state.params, frozen["teacher"], state.slots))
    step, losses = make_train_step(recipe, tx, mesh, total_steps=STEPS), []
    with jax.default_matmul_precision("highest"):
        for i in range(STEPS):
            state, metrics = step(state, frozen, put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
            if i == 0:
                gradients = jax.device_get(state.opt_state[0])
    return config, batch, initial, gradients, losses


def test_loss_and_gradients_equal_pytorch(run):
    config, batch, initial, gradients, losses = run
    twin = Twin(config)
    twin.load(*initial)
    loss, _ = twin(to_batch(batch, "cpu"))
    loss.backward()
    assert loss.item() == pytest.approx(losses[0], rel=1e-5)
    expected = {f"student.{name}": p.grad.numpy() for name, p in twin.student.named_parameters(prefix="")}
    ours = {f"student.{name}": x for name, x in to_torch(SMKE_HF, gradients["student"], description(config)).items()}
    scales = gradients["terms"]["itc"]["logit_scale"]
    ours["logit_scale"] = np.array([scales[level] for level in pytorch.LEVELS])
    expected["logit_scale"] = twin.logit_scale.grad.numpy()
    assert ours.keys() == expected.keys()
    whole = np.sqrt(sum(np.sum(x**2) for x in expected.values()))
    for name, x in expected.items():
        # The gradient of a key bias is exactly 0: such a tensor is measured against 1 % of all.
        error = np.linalg.norm(ours[name] - x) / max(np.linalg.norm(x), 0.01 * whole)
        assert error < 1e-4, f"{name}: {error:.1e}"
    moving = [name for name, x in expected.items() if np.linalg.norm(x) > 1e-4 * whole]
    assert len(moving) > 0.8 * len(expected)


def test_losses_stay_equal_through_updates(run):
    config, batch, initial, _, losses = run
    twin = Twin(config)
    twin.load(*initial)
    config.optimizer.weight_decay = 0.0
    trainer, tensors = Trainer(twin, [RATE] * STEPS), to_batch(batch, "cpu")
    theirs = [trainer.step(tensors).item() for _ in range(STEPS)]
    assert theirs == pytest.approx(losses, rel=1e-4)
    assert abs(losses[-1] - losses[0]) > 0.1  # or nothing was updated
    assert torch.unique(twin.bank_ids).tolist() == list(range(8))  # 24 and more entries written into 20 places


def test_both_decay_the_same_parameters(run):
    config, _, (params, _, _), _, _ = run
    ours = jax.tree.map(lambda path, x: np.full_like(x, decays(path, x)), paths(params["student"]), params["student"])
    ours = to_torch(SMKE_HF, ours, description(config))
    theirs = {name: pytorch.decays(name, x) for name, x in Twin(config).student.named_parameters()}
    assert {name: bool(np.all(x)) for name, x in ours.items()} == theirs
    assert not any(np.any(x) != np.all(x) for x in ours.values()) and 0 < sum(theirs.values()) < len(theirs)


def test_flops_are_those_that_the_plan_counts():
    config = step_config("micro")
    parts, counted = flops_per_example(config), counted_flops(config)
    ours = sum(parts[name] for name in ("image tower", "text tower", "shared block", "head")) / 3
    assert ours == sum(counted[f"student/{side} forward"].total() for side in ("image", "text"))
    assert parts["teacher"] == counted["teacher forward"].total()
    assert sum(parts.values()) == pytest.approx(sum(x.total() for x in counted.values()), rel=0.02)


def test_base_is_the_thesis_student():
    student = shapes_only(step_config("base")).shapes.networks["student"]
    temperatures = 2
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(student)) + temperatures == 117_167_618


def test_refusals():
    with pytest.raises(UserError, match="unknown size 'huge': known are micro"):
        train_step.main(["--sizes=huge"])
