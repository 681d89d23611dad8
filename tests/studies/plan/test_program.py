"""The compiled train step as `smke plan` sees it, against what training would hold."""

import math
from pathlib import Path

import jax
import pytest
import tiny

from smke_jax.config_files import load_config
from smke_jax.errors import UserError
from smke_jax.forms import FORMS
from smke_jax.parallel.devices import DEVICES
from smke_jax.parts import proximal_itc, stored_features
from smke_jax.studies.plan.assumed import planned, shapes_only
from smke_jax.studies.plan.flops import flops_per_example
from smke_jax.studies.plan.program import compile_step, take_devices

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def config(**fields):
    c = tiny.tiny_config()
    c.task.update(source="prepared", data=("nowhere",))
    c.update(fields)
    return planned(c)[0]


@pytest.fixture(scope="module")
def program():
    return compile_step(config())


@pytest.fixture(scope="module")
def parts():
    return flops_per_example(config())


def test_memory_is_what_the_arrays_take(program):
    trained, frozen = program.parameters["trained"], program.parameters["frozen"]
    assert program.memory["parameters"] == 4 * trained
    assert program.memory["frozen parameters"] == 4 * frozen
    assert 8 * trained <= program.memory["optimiser state"] <= 8 * trained + 64, "two moments and counters"
    images, tokens = 4 * 32 * 32 * 3, 2 * 4 * 8 * 4  # of four examples of the batch of eight
    assert program.memory["batch"] == images + tokens + 4 * 4
    assert program.memory["temporaries"] > program.memory["parameters"], "gradients at least"
    assert program.memory["slots"] == 40 // 2 * (32 + 1) * 4 + 4 and program.memory["moving averages"] == 0


def test_what_the_step_never_reads_is_held_all_the_same():
    """The target is the output of the teacher's MLPs: the norm behind the last of them is not needed."""
    program = compile_step(planned(load_config(f"{CONFIGS / 'kd_image.py'}:smoke"))[0])
    assert program.memory["frozen parameters"] == 4 * program.parameters["frozen"]


def test_what_is_not_repeated_is_what_the_model_costs(program, parts):
    model = sum(part.total() for part in parts.values())
    done = sum(program.flops.values()) * 2 / 8
    assert model <= done < 1.02 * model


def test_gradients_are_exchanged_once(program):
    gradients = 2 * 4 * program.parameters["trained"] * (2 - 1) / 2  # but of positions that no caption reaches
    assert 0.8 * gradients < program.traffic.sent["all-reduce"] < 1.2 * gradients
    assert not program.traffic.unknown_loops


def test_micro_batches_repeat_the_forward_pass_and_stored_features_need_no_teacher(program):
    c = config(micro_batch=2, loss_impl="ring")
    c.terms.itc.levels = ("out",)  # a ring less to compile
    c.task.teacher_view = "fixed"
    c.assets.targets = stored_features()
    again, parts = compile_step(c), flops_per_example(c)
    forward = sum(parts[f"student/{side} forward"].total() for side in ("image", "text"))
    model = sum(part.total() for part in parts.values())
    assert sum(again.flops.values()) * 2 / 8 == pytest.approx(model + forward, rel=0.05)
    assert again.traffic.calls["collective-permute"] and "collective-permute" not in program.traffic.calls
    assert again.parameters["frozen"] == again.memory["frozen parameters"] == 0
    assert again.memory["batch"] == program.memory["batch"] + 4 * 32 * 4, "and four targets"


def test_nothing_is_made_but_shapes():
    batch = shapes_only(config(batch_size=2**22)).batch
    assert batch["image"].shape == (2**22, 32, 32, 3), "12 GiB"


def test_a_missing_teacher_is_said_and_a_present_one_described():
    c = tiny.tiny_config()
    c.networks.teacher.start = "weights/of-nobody"
    resolved, assumed = planned(c)
    assert resolved.networks.teacher.start == "random"
    assert any("no weights at 'weights/of-nobody'" in line for line in assumed)
    c.networks.teacher.start = FORMS["scenes"].start
    resolved, assumed = planned(c)
    assert resolved.networks.teacher.start == FORMS["scenes"].start and not any("weights" in x for x in assumed)
    c.networks.teacher = FORMS["flickr8k"].teacher()
    with pytest.raises(UserError, match="config.networks.teacher: no weights at runs/teacher_flickr8k/export, which"):
        planned(c)


def test_the_thesis_run_needs_none_of_its_files():
    resolved, assumed = planned(load_config(str(CONFIGS / "s_smke.py")))
    assert any("no weights at 'weights/beitv2-base-pt1k'" in line for line in assumed)
    experiment = shapes_only(resolved)
    trained = jax.tree.leaves(experiment.shapes.networks["student"])
    temperatures = 2
    assert sum(math.prod(x.shape) for x in trained) + temperatures == 117_167_618
    assert experiment.batch["image"].shape == (512, 224, 224, 3)


def test_a_vocabulary_that_is_there_counts(tmp_path):
    from smke_jax.data.tokenizer import train_wordpiece

    c = tiny.tiny_config()
    assert "config.task.vocab_size = 60" in planned(c)[1][-1]
    train_wordpiece(["a dog", "a cat"], 40).save(tmp_path)
    c.task.tokenizer = str(tmp_path)
    resolved, assumed = planned(c)
    assert resolved.task.vocab_size < 40 and not any("vocabulary" in line for line in assumed)


def test_a_bank_of_all_images_needs_their_number():
    c = config()
    c.terms.proximal_itc = proximal_itc()
    with pytest.raises(UserError, match="config.terms.proximal_itc: .*give --images=N of `smke plan`"):
        shapes_only(c)
    shapes_only(c, images=2_811_408)


def test_more_devices_than_can_be_simulated_are_refused():
    with pytest.raises(UserError, match="4096 devices are more than the 2048 that one process can simulate"):
        take_devices(DEVICES["h200"], 4096)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch_size 9 does not divide over 2 devices"):
        compile_step(config(batch_size=9))
