"""The compiled train step as `smke plan` sees it, against what training would hold."""

from pathlib import Path

import jax
import pytest
import tiny

from smke_jax.errors import UserError
from smke_jax.planning.devices import DEVICES
from smke_jax.planning.flops import flops_per_example, step_inputs
from smke_jax.planning.program import compile_step, planned, take_devices
from smke_jax.programs.demo import RECORDED
from smke_jax.programs.train import load_config
from smke_jax.training.experiment import Experiment, check_model
from smke_jax.training.recipe import build_recipe, init_params

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def config(**fields):
    c = tiny.tiny_config()
    c.data.update(source="prepared", dir="nowhere")
    c.update(fields)
    return planned(c)[0]


@pytest.fixture(scope="module")
def program():
    return compile_step(config())


@pytest.fixture(scope="module")
def model():
    """FLOPs per example of its parts."""
    return {part: flops.total() for part, flops in flops_per_example(config()).items()}


def test_memory_is_what_the_arrays_take(program):
    trained, frozen = program.parameters["trained"], program.parameters["frozen"]
    assert program.memory["parameters"] == 4 * trained
    assert program.memory["frozen parameters"] == 4 * frozen
    assert 8 * trained <= program.memory["optimiser state"] <= 8 * trained + 64, "two moments and counters"
    images, tokens = 4 * 32 * 32 * 3, 2 * 4 * 8 * 4  # of four examples of the batch of eight
    assert program.memory["batch"] == images + tokens + 4 * 4
    assert program.memory["temporaries"] > program.memory["parameters"], "gradients at least"


def test_what_is_not_repeated_is_what_the_model_costs(program, model):
    done = sum(program.flops.values()) * 2 / 8
    assert sum(model.values()) <= done < 1.02 * sum(model.values())


def test_gradients_are_exchanged_once(program):
    gradients = 2 * 4 * program.parameters["trained"] * (2 - 1) / 2  # but of positions that no caption reaches
    assert 0.8 * gradients < program.traffic.sent["all-reduce"] < 1.2 * gradients
    assert not program.traffic.unknown_loops


def test_micro_batches_repeat_the_forward_pass_and_the_ring_passes_on(program, model):
    again = compile_step(config(micro_batch=2, loss_impl="ring"))
    forward = model["student forward"] * 4
    assert sum(again.flops.values()) - sum(program.flops.values()) == pytest.approx(forward, rel=0.05)
    assert again.traffic.calls["collective-permute"] and "collective-permute" not in program.traffic.calls


def test_a_missing_teacher_is_said_and_a_present_one_described():
    c = tiny.tiny_config()
    c.teacher.checkpoint = "weights/of-nobody"
    resolved, assumed = planned(c)
    assert resolved.teacher.width == 32 and any("no weights at 'weights/of-nobody'" in line for line in assumed)
    c.teacher.checkpoint = str(RECORDED.with_name("teacher_scenes.safetensors"))
    resolved, assumed = planned(c)
    assert resolved.teacher.type == "data2vec2" and not any("weights" in line for line in assumed)


def test_the_thesis_run_needs_none_of_its_weights():
    resolved, _ = planned(load_config(str(CONFIGS / "finetune_retrieval.py")))
    assert resolved.student.init == "random"
    resolved, assumed = planned(load_config(str(CONFIGS / "s_smke.py")))
    assert any("no weights at 'weights/beitv2-base-pt1k'" in line for line in assumed)
    recipe, shapes = step_inputs(build_recipe(resolved, vocab_size=resolved.data.vocab_size), resolved)
    params = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0), shapes)[0])
    assert sum(x.size for x in jax.tree.leaves(params)) == 117_167_618
    assert shapes["image"].shape == (512, 224, 224, 3)
    assert not check_model(Experiment(resolved, None, None, recipe), shapes), "no tower asks for its file"


def test_an_exported_vocabulary_counts(tmp_path):
    from smke_jax.data.tokenizer import train_wordpiece

    c = tiny.tiny_config()
    assert "config.data.vocab_size = 60" in planned(c)[1][-1]
    train_wordpiece(["a dog", "a cat"], 40).save(tmp_path)
    c.data.tokenizer = str(tmp_path)
    resolved, assumed = planned(c)
    assert resolved.data.vocab_size < 40 and not any("vocabulary" in line for line in assumed)


def test_more_devices_than_can_be_simulated_are_refused():
    with pytest.raises(UserError, match="4096 devices are more than the 2048 that one process can simulate"):
        take_devices(DEVICES["h200"], 4096)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch_size 9 does not divide over 2 devices"):
        compile_step(config(batch_size=9))


def test_nothing_is_made_but_shapes_and_a_kept_teacher_is_not_there():
    c = config(batch_size=2**22)  # its images alone are 12 GiB
    c.terms.target_itc.bank_size = 2**22
    c.data.teacher_view, c.teacher.cache = "fixed", True
    program = compile_step(c)
    assert program.memory["batch"] > 6 * 2**30 and program.memory["slots"] == 2**22 // 2 * (32 + 1) * 4 + 4
    assert program.parameters["frozen"] == program.memory["frozen parameters"] == 0
