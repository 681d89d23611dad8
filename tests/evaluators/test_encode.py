"""Representations of a whole split: all rows, in order, whatever the batch and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_matrices import ROWS, SIZES, two_matrices_config

from smke_jax.errors import UserError
from smke_jax.evaluators import EVALUATORS
from smke_jax.evaluators import encode as encode_module
from smke_jax.evaluators.base import Evaluator, Figures
from smke_jax.evaluators.encode import Encoder
from smke_jax.models.attention import best
from smke_jax.parallel.mesh import divisible
from smke_jax.parts import part
from smke_jax.tasks.base import Column, Split, first_rows
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.restore import restore_run


def made(devices=2, batch_size=4):
    """(experiment, parameters, encoder) of two matrices and a frozen one."""
    c = two_matrices_config()
    c.num_devices = devices
    experiment = build_experiment(resolve(c), None)
    rng = np.random.default_rng(0)
    kernels = {side: {"kernel": jnp.asarray(rng.normal(size=(n, 4)), jnp.float32)} for side, n in SIZES.items()}
    params = {"net": kernels, "target": {"kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}}
    borrow = lambda p: {name: params[name] for name in p.networks}  # noqa: E731
    return experiment, params, Encoder(experiment.chosen, borrow, experiment.mesh, batch_size=batch_size)


@pytest.mark.parametrize("devices,batch_size", [(1, 4), (2, 4), (8, 5)])
def test_all_rows_in_order_and_no_more(devices, batch_size):
    """Six images and twelve texts: batches of four, the last one filled up; five rows on eight devices become eight."""
    experiment, params, encode = made(devices, batch_size)
    split = experiment.task.split("dev")
    for side in ("image", "text"):
        rows = split.columns[side].rows
        found = encode((f"{side}/out", f"{side}/head"), split)
        assert found[f"{side}/out"].shape == (rows, 4) and rows == {"image": 6, "text": 12}[side]
        expected = split.columns[side].read(range(rows)) @ np.asarray(params["net"][side]["kernel"])
        np.testing.assert_allclose(found[f"{side}/out"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[f"{side}/out"], found[f"{side}/head"])
    assert encode(("image/out",), first_rows(split, 3))["image/out"].shape == (3, 4)
    assert divisible(5, experiment.mesh) % devices == 0


def test_several_networks_at_once_and_nothing_but_what_is_asked_for():
    experiment, params, encode = made()
    split, read = experiment.task.split("train"), []
    columns = {
        name: x._replace(read=lambda rows, x=x, name=name: read.append((name, len(rows))) or x.read(rows))
        for name, x in split.columns.items()
    }
    found = encode(("image/out", "target/cls"), split._replace(columns=columns))
    images = split.columns["image"].read(range(ROWS["train"]))
    np.testing.assert_allclose(found["target/cls"], images @ np.asarray(params["target"]["kernel"]), rtol=1e-5)
    assert {name for name, _ in read} == {"image"} and sum(count for _, count in read) == ROWS["train"]
    with pytest.raises(ValueError, match="are not of equally many rows: ask for each of them by itself"):
        encode(("image/out", "text/out"), split)


def test_other_parameters_use_what_is_compiled():
    experiment, params, encode = made()
    split = experiment.task.split("dev")
    encode(("image/out",), split)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    other = encode.with_parameters(lambda p: {name: doubled[name] for name in p.networks})
    expected = 2 * encode(("image/out",), split)["image/out"]
    np.testing.assert_allclose(other(("image/out",), split)["image/out"], expected)
    assert other._compiled is encode._compiled


def test_a_row_that_fills_up_a_batch_is_one_that_is_there():
    """No zeros, of which a norm could make a NaN."""
    experiment, _, encode = made(batch_size=8)
    seen = []
    read = lambda rows: seen.extend(rows) or np.ones((len(rows), 6), np.float32)  # noqa: E731
    encode(("image/out",), Split("x", "x", {"image": Column(3, read)}))
    assert set(seen) == {0, 1, 2}


def test_a_run_ranks_checkpoints_by_the_first_evaluator_that_ranks():
    figures = Figures({"r": 3.0, "val_loss": 2.0}, {})
    ranks = [Evaluator((), None, "dev", best=best).rank(figures) for best in ("r", "val_loss", "")]
    assert ranks == [3.0, -2.0, None]


def slow_norm(*, split: str = "dev") -> Evaluator:
    """Mean length of what the moving average makes of texts."""

    def run(encode, task, on):
        norm = float(np.linalg.norm(encode(("slow/text/out",), on)["slow/text/out"], axis=1).mean())
        return Figures({"norm": norm}, {"norm": norm})

    return Evaluator(("slow/text/out",), run, split)


def test_a_restored_run_evaluates_as_it_did_while_it_was_trained(tmp_path, monkeypatch):
    """With frozen and trained leaves of one network, a moving average of another, and the run's choice of attention."""
    asked = []
    monkeypatch.setattr(encode_module, "best", lambda name, device: asked.append(name) or best(name, device))
    monkeypatch.setitem(EVALUATORS, "slow_norm", slow_norm)
    c = two_matrices_config()
    c.attention = "products"
    c.networks.net.trained = ("text",)
    c.networks.slow = part("average", of="net", decay=0.5)
    c.total_steps, c.checkpoint.every = 2, 1
    c.evaluators.slow_norm = part("slow_norm")
    c.evaluators.train = part("retrieval", split="train", level="head")
    outcome = train_and_evaluate(c, tmp_path)
    assert set(asked) == {"products"}
    asked.clear()
    run = restore_run(tmp_path)
    for name, evaluator in run.experiment.recipe.evaluators.items():
        assert run.evaluate(evaluator).scalars == outcome.figures[name].scalars
    assert set(asked) == {"products"}
    with pytest.raises(UserError, match="are read from its newest checkpoint alone: leave --step out"):
        restore_run(tmp_path, step=1).evaluate(run.experiment.recipe.evaluators["slow_norm"])
    train = run.experiment.task.split("train")
    swapped = run.evaluate(run.experiment.recipe.evaluators["retrieval"], train)
    assert swapped.record["n_images"] == ROWS["train"]
