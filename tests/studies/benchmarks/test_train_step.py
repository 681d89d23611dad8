"""The whole step against its PyTorch twin, from the same start: loss, every gradient, and the losses after updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.studies.benchmarks import train_step
from smke_jax.studies.benchmarks.pytorch import Trainer, Twin, description, to_batch
from smke_jax.studies.benchmarks.sizes import flops_per_example, made_up_batch, shapes_of, step_config
from smke_jax.convert.layouts.student import SMKE_HF
from smke_jax.convert.rules import to_torch
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import only
from smke_jax.training.experiment import Experiment
from smke_jax.training.frozen import load_frozen
from smke_jax.training.recipe import build_recipe, init_params
from smke_jax.training.step import init_state, make_train_step

STEPS, RATE = 4, 3e-3


@pytest.fixture(scope="module")
def run():
    """(config, batch, initial (params, teacher, slots), [gradients and loss of STEPS steps]) of smke_jax."""
    config = step_config("micro", batch_size=8)
    config.terms.target_itc.bank_size = 20  # the third step wraps around
    batch, mesh = made_up_batch(config), make_mesh(1)
    recipe = build_recipe(config, vocab_size=config.data.vocab_size)
    # Keeps the gradients where they can be read, and updates as AdamW does.
    adam = optax.adamw(RATE, *config.optimizer.betas, config.optimizer.eps, weight_decay=0.0)
    tx = optax.GradientTransformation(
        lambda params: (params, adam.init(params)),
        lambda grads, state, params: (lambda new: (new[0], (grads, new[1])))(adam.update(grads, state[1], params)),
    )
    state = init_state(recipe, tx, mesh, shapes_of(batch), seed=0)
    rng = np.random.default_rng(0)  # no bias at 0, no norm at 1
    noisy = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params)
    state = state.replace(params=noisy)
    frozen, _ = load_frozen(Experiment(config, mesh, None, recipe), shapes_of(batch))
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
    expected["logit_scale"], ours["logit_scale"] = (
        twin.logit_scale.grad.numpy(),
        gradients["terms"]["itc"]["logit_scale"],
    )
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


def test_flops_are_those_of_xla():
    config = step_config("base")
    batch = shapes_of(made_up_batch(config))
    recipe = build_recipe(config, vocab_size=config.data.vocab_size)
    student = only(next(p for p in recipe.passes if p.grad), recipe.needs)
    zeros = lambda: {name: jnp.zeros(x.shape, x.dtype) for name, x in batch.items()}  # noqa: E731
    params = jax.eval_shape(lambda: student.init(jax.random.key(0), zeros()))
    forward = jax.jit(lambda params, batch: student.run(params, batch, jax.random.key(0), False)).lower(params, batch)
    counted = forward.cost_analysis()["flops"] / config.batch_size
    parts = flops_per_example(config)
    ours = sum(parts[name] for name in ("image tower", "text tower", "shared block", "head")) / 3
    assert ours < counted < 1.02 * ours  # XLA counts norms, softmax and GELU too


def test_base_is_the_thesis_student():
    config = step_config("base")
    recipe = build_recipe(config, vocab_size=config.data.vocab_size)
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0), shapes_of(made_up_batch(config)))[0])
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 117_167_618


def test_refusals():
    with pytest.raises(UserError, match="unknown size 'huge': known are micro"):
        train_step.main(["--sizes=huge"])
