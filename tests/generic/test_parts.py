"""What a part does not have cannot be set, contradictions are named, and a contributor's bugs keep their traceback."""

import logging
import traceback

import jax.numpy as jnp
import pytest
from two_matrices import two_matrices_config

from smke_jax import parts
from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, override
from smke_jax.errors import UserError
from smke_jax.facts import FromTask
from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Network
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term, no_state
from smke_jax.parts import base, part
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.opening import open_run

# ---- fields


def test_a_part_has_every_field_of_its_builder_at_its_default():
    itc = part("itc", levels=("out",))
    assert itc.to_dict() == {
        "type": "itc", "levels": ("out",), "pair": ("image", "text"), "same_image": "negative", "weight": 1.0,
        "final_weight": None,
    }  # fmt: skip
    assert parts.itc(levels=("out",)).to_dict() == itc.to_dict()
    assert part("frozen", start="random", model=part("beit", depth=2)).model.depth == 2
    assert part("hard_negatives").hardness is None and part("target_itc", weight=2).weight == 2.0


@pytest.mark.parametrize(("type", "fields", "message"), [
    ("itc", {"level": "out"}, "itc has no field 'level': did you mean levels"),
    ("frozen", {"start": "random", "token_drop": 0.5}, "frozen has no field 'token_drop'"),
    ("mlp", {"depth": 2}, "mlp has no field 'depth'"),
    ("beit", {"dtype": "bfloat16"}, "beit has no field 'dtype'"),  # its network says it for all of its modules
    ("proximal_itc", {"num_images": 5}, "proximal_itc has no field 'num_images'"),  # the task says it
    ("two_towers", {}, "two_towers needs image, text, shared: give it"),
    ("itcc", {}, "there is no part 'itcc': did you mean itc"),
])  # fmt: skip
def test_a_field_that_a_part_does_not_have_cannot_be_given(type, fields, message):
    with pytest.raises(UserError, match=message):
        part(type, **fields)
    if type == "itcc":
        with pytest.raises(AttributeError, match="there is no part 'itcc'"):
            parts.itcc  # noqa: B018


def test_nor_set_later_by_attribute_flag_or_file():
    c = two_matrices_config("itc")
    with pytest.raises(AttributeError, match="levles"):
        c.terms.itc.levles = ("out",)
    with pytest.raises(UserError, match="unknown config key config.terms.itc.levles: did you mean .*levels"):
        override(c, ["--config.terms.itc.levles=out"])
    with pytest.raises((TypeError, UserError)):
        c.terms.itc.same_image = True
    # A ConfigDict that was made by hand is refused where it is read.
    c.terms.itc = {"type": "itc", "levles": ("out",)}
    with pytest.raises(UserError, match="config.terms.itc.levles: itc has no such field: did you mean levels"):
        build_experiment(resolve(c), None)
    c.terms.itc = {"type": "itcc"}
    with pytest.raises(UserError, match="config.terms.itc: there is no 'itcc' among alike, bank_itc"):
        build_experiment(resolve(c), None)


def test_what_the_task_does_not_say_is_asked_for_by_name(monkeypatch):
    def head(*, species: FromTask) -> Network:
        raise AssertionError("not reached")

    monkeypatch.setitem(NETWORKS, "head", head)
    c = two_matrices_config("alike")
    c.networks.head = part("head")
    assert set(c.networks.head) == {"type"}
    with pytest.raises(UserError, match="config.networks.head: head needs species, which no other part says"):
        build_experiment(resolve(c), None)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("optimizer.name", "adam", "config.optimizer.name is 'adam': known are adamw, muon"),
    ("sharding", "zero", "config.sharding is 'zero': known are fsdp, replicated"),
    ("evaluators.retrieval.level", "last", "config.evaluators.retrieval.level is 'last': known are fc1, head, out"),
    ("networks.net.dtype", "half", "config.networks.net.dtype is 'half': give float32 or bfloat16"),
    ("batch_size", 0, "config.batch_size is 0: it has to be at least 1"),
    ("log.every", 0, "config.log.every is 0: it has to be at least 1"),
    ("optimizer.warmup_fraction", 1.0, "warmup_fraction is 1.0: it has to be at least 0 and below 1"),
    ("profile_steps", (3, 2), r"config.profile_steps is \(3, 2\): give \(first, last\)"),
    ("optimizer.lr_rules", (("a(", 0.1),), r"'a\(' is no regular expression"),
])  # fmt: skip
def test_values_that_no_run_could_work_with_are_refused_before_anything_is_opened(tmp_path, key, value, message):
    c = two_matrices_config("alike")
    with c.ignore_type():
        c.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        open_run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_task_terms_and_a_length(tmp_path):
    c = base()
    with pytest.raises(UserError, match="config.task is empty: say what a row is"):
        resolve(c)
    c = two_matrices_config("alike")
    c.epochs = 2.0
    with pytest.raises(UserError, match="give either config.total_steps or config.epochs .they are 6 and 2.0"):
        open_run(c, tmp_path / "run")
    c.total_steps = 0
    assert open_run(c, tmp_path / "run").total_steps == 8  # an epoch is 4 batches
    c.evaluators.retrieval.split = "test"
    with pytest.raises(UserError, match="no split 'test'"):
        open_run(c, tmp_path / "other")


# ---- long runs and steep rates


def test_many_epochs_and_a_steep_rate_are_warned_of_before_the_run(tmp_path, caplog):
    """README's batch of 32,768: AdamW at 128 times its rate, for 448 epochs."""
    c = two_matrices_config("alike")
    c.optimizer.update(learning_rate=1e-4, reference_batch=1)
    c.update(batch_size=32, total_steps=448)
    with caplog.at_level(logging.INFO, "smke_jax"):
        open_run(c, tmp_path / "a")
    said = caplog.text
    assert "448 steps of 32 are 448 epochs; the learning rate rises to 0.0032" in said
    assert "the learning rate is 32 times that of the reference batch: config.optimizer.sqrt_above=4 lets it" in said
    assert "448 epochs: config.epochs or config.total_steps says how long a run is" in said

    caplog.clear()
    c.optimizer.sqrt_above = 4
    c.update(total_steps=90)
    with caplog.at_level(logging.INFO, "smke_jax"):
        plan = open_run(c, tmp_path / "b")
    assert "rises to 0.00113" in caplog.text and "WARNING" not in caplog.text
    assert max(float(plan.schedule(i)) for i in range(90)) == pytest.approx(1e-4 * 4 * 8**0.5)
    assert "weight 0" not in caplog.text


def test_terms_of_weight_0_are_named_once_before_the_run(tmp_path, caplog):
    c = two_matrices_config("alike")
    c.terms.itc, c.terms.late = part("itc", weight=0.0), part("alike", weight=0.0, final_weight=1.0)
    with caplog.at_level(logging.INFO, "smke_jax"):
        open_run(c, tmp_path / "run")
    assert [x for x in caplog.messages if "weight 0" in x] == ["terms of weight 0 are neither computed nor logged: itc"]


# ---- errors of a contributor


def traceback_of(error) -> str:
    return "".join(traceback.format_exception(error))


def typo() -> Term:
    """Reads what it did not declare."""

    def value(params, slots, reps, scope):
        return jnp.mean(reps["image/oops"]), {}

    return Term(("image/out",), no_state, value)


def test_a_typo_in_a_term_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(TERMS, "typo", typo)
    c = two_matrices_config("typo")
    experiment = build_experiment(resolve(c), None)
    _, _, state, step = build_step(resolve(c), experiment)
    with pytest.raises(KeyError, match="image/oops") as caught:
        step.lower(state, {}, experiment.batch)
    assert __file__ in traceback_of(caught.value) and 'reps["image/oops"]' in traceback_of(caught.value)


def test_a_bug_in_a_builder_keeps_its_traceback(monkeypatch):
    def broken(*, width: int = 4) -> Network:
        return width.undefined

    monkeypatch.setitem(NETWORKS, "broken", broken)
    c = two_matrices_config("alike")
    c.networks.net = part("broken")
    with pytest.raises(AttributeError, match="undefined") as caught:
        build_experiment(resolve(c), None)
    assert "return width.undefined" in traceback_of(caught.value)


def test_what_a_builder_refuses_is_one_line_with_its_place(monkeypatch):
    def picky(*, width: int = 4) -> Network:
        raise UserError(f"width is {width}: give an odd one")

    monkeypatch.setitem(NETWORKS, "picky", picky)
    c = two_matrices_config("alike")
    c.networks.net = part("picky")
    with pytest.raises(UserError, match="^config.networks.net: width is 4: give an odd one$"):
        build_experiment(resolve(c), None)


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(variant=''):\n    return {}['no such key']\n")
    with pytest.raises(KeyError, match="no such key") as caught:
        load_config(str(path))
    assert f'"{path}", line 2' in traceback_of(caught.value)
    with pytest.raises(KeyError):  # a program does not make one line of it either
        run_program(lambda argv: load_config(str(path)), [])
    path.write_text("def get_config(variant=''):\n    return (\n")
    with pytest.raises(SyntaxError):
        load_config(str(path))
    path.write_text("from smke_jax.errors import UserError\ndef get_config(variant=''):\n    raise UserError('a: b')\n")
    assert run_program(lambda argv: load_config(str(path)), []) == 2
    assert capsys.readouterr().err == "error: a: b\n"
