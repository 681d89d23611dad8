"""Config files: variants, stages, and what a command line changes of them."""

from pathlib import Path

import pytest
import tiny
from ml_collections import ConfigDict

from smke_jax.config_files import load_config, load_stages, override, override_stages
from smke_jax.errors import UserError
from smke_jax.forms import FORMS, form_of, split_variant
from smke_jax.parts import base, cosine, filled, itc, part
from smke_jax.training.stages import stage_folder, with_stages

VARIANTS = ("before", "after")


@pytest.mark.parametrize("variant,kind,form", [
    ("", "", ""),
    ("before", "before", ""),
    ("smoke", "", "smoke"),
    ("flickr8k", "", "flickr8k"),
    ("before,smoke", "before", "smoke"),
    ("after,flickr8k", "after", "flickr8k"),
])  # fmt: skip
def test_a_variant_and_a_form(variant, kind, form):
    assert split_variant(variant, VARIANTS) == (kind, FORMS[form])


@pytest.mark.parametrize("variant", ["smoke,before", "before,after", "before,tiny", "tiny,smoke", "tiny", "a,b,smoke"])
def test_what_is_neither_is_named_with_what_there_is(variant):
    with pytest.raises(UserError) as error:
        split_variant(variant, VARIANTS)
    message = str(error.value)
    assert repr(variant) in message and "before, after" in message and "before,smoke" in message
    assert all(form in message for form in FORMS)


def test_a_config_without_variants_has_the_forms_alone():
    assert split_variant("smoke") == ("", form_of("smoke"))
    for variant in ("before", "before,smoke"):
        with pytest.raises(UserError, match=r"unknown variant 'before.*there are flickr8k, scenes, smoke$"):
            form_of(variant)


def test_both_reach_a_config_file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from smke_jax.forms import split_variant\n"
        "def get_config(variant=''):\n"
        "    kind, form = split_variant(variant, ('dark',))\n"
        "    c = form.run()\n"
        "    c.task = form.pairs(jitter=0.7 if kind == 'dark' else 0.1)\n"
        "    return c\n"
    )
    found = {variant: load_config(f"{path}:{variant}") for variant in ("dark", "dark,smoke", "smoke")}
    assert [c.task.jitter for c in found.values()] == [0.7, 0.7, 0.1]
    assert [c.batch_size for c in found.values()] == [512, 16, 16]


# ---- changes


def small():
    c = base()
    c.task = form_of("smoke").pairs()
    c.terms.itc, c.terms.cosine = itc(), cosine()
    return c


def test_values_get_the_types_of_their_fields():
    flags = [
        "--config.batch_size=64", "--config.terms.itc.weight=2", "--config.terms.itc.final_weight=0.5",
        "--config.task.data=data/a,data/b", "--config.terms.itc.levels=out", "--config.task.caps=3,4",
        "--config.task.in_memory", "--noconfig.terms.cosine.negatives",
    ]  # fmt: skip
    c = override(small(), flags)
    assert (c.batch_size, c.terms.itc.weight, c.terms.itc.final_weight) == (64, 2.0, 0.5)
    assert c.task.data == ("data/a", "data/b") and c.terms.itc.levels == ("out",) and c.task.caps == (3, 4)
    assert c.task.in_memory is True and c.terms.cosine.negatives is False


@pytest.mark.parametrize("flag,message", [
    ("--config.bach_size=3", "unknown config key config.bach_size: did you mean config.batch_size?"),
    ("--config.terms.itc.wieght=3", "did you mean config.terms.itc.weight?"),
    ("--config.batch_size=many", "many"),
])  # fmt: skip
def test_keys_and_values_that_do_not_fit(flag, message):
    with pytest.raises(UserError) as error:
        override(small(), [flag])
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- stages


STAGES = """
from smke_jax.parts import base
def get_config(variant=""):
    return get_stages()["last"]
def get_stages(variant=""):
    first, last = base(), base()
    last.networks.student = {"start": "stage:codes", "others": ("stage:shared/teacher", "random")}
    return {"shared/teacher": base(), "codes": first, "last": last}
"""


@pytest.fixture
def stages(tmp_path):
    path = tmp_path / "stages.py"
    path.write_text(STAGES)
    return load_stages(str(path))


def test_a_config_of_one_stage_has_no_name(tmp_path):
    path = tmp_path / "one.py"
    path.write_text("from smke_jax.parts import base\ndef get_config():\n    return base()\n")
    assert list(load_stages(str(path))) == [""]
    path.write_text(path.read_text() + "def get_stages():\n    return {'alone': get_config()}\n")
    assert list(load_stages(str(path))) == [""]


def test_a_key_goes_to_the_stage_that_it_names_and_else_to_the_last(stages):
    flags = ["--config.codes.seed=1", "--config.shared/teacher.seed=2", "--config.seed=3", "--config.last.log.every=4"]
    changed = override_stages(stages, flags)
    assert {name: c.seed for name, c in changed.items()} == {"shared/teacher": 2, "codes": 1, "last": 3}
    assert changed["last"].log.every == 4 and changed["codes"].log.every == 50


@pytest.mark.parametrize("flag,hint", [
    ("--config.code.seed=1", "config.codes.seed"),
    ("--config.codes.sede=1", "config.codes.seed"),
    ("--config.sede=1", "config.seed"),
])  # fmt: skip
def test_unknown_keys_of_stages_are_refused_with_the_nearest(stages, flag, hint):
    with pytest.raises(UserError, match=rf"unknown config key .*: did you mean {hint}\?"):
        override_stages(stages, [flag])


def test_a_later_stage_begins_with_the_export_of_an_earlier_one(stages):
    workdir = Path("runs/x")
    assert [stage_folder(name, workdir) for name in ("", "codes")] == [workdir, workdir / "codes"]
    c = with_stages(stages["last"], stages, workdir)
    assert c.networks.student.start == "runs/x/codes/export"
    assert c.networks.student.others == ("shared/teacher/export", "random"), "a path is shared by all that name it"
    assert stages["last"].networks.student.start == "stage:codes"
    stages["last"].networks.student.others = ()
    with pytest.raises(UserError, match="start is 'stage:codes', and .* there is code alone: did you mean code"):
        with_stages(stages["last"], {"code": None}, workdir)


def test_a_recorded_config_gets_the_fields_that_have_been_added_since():
    now = tiny.tiny_config()
    then = ConfigDict(now.to_dict())
    for owner, field in (
        (then, "loss_impl"), (then.optimizer, "clip_norm"), (then.task, "crop_scale"), (then.networks.student, "remat"),
        (then.networks.student.image, "token_drop"), (then.terms.itc, "weight"),
    ):  # fmt: skip
        del owner[field]
    assert filled(then).to_dict() == now.to_dict()


def test_a_run_from_before_captions_were_cut_continues_without_it():
    then = ConfigDict(tiny.tiny_config().to_dict())
    assert then.split_by_length
    del then["split_by_length"]
    assert not filled(then).split_by_length


@pytest.mark.parametrize("then,now", [(False, "negative"), (True, "masked")])
def test_a_recorded_config_gets_the_names_that_fields_have_now(then, now):
    recorded = ConfigDict(tiny.tiny_config().to_dict())
    recorded.selections.hard_negatives = ConfigDict(part("hard_negatives").to_dict())
    for own in (recorded.terms.itc, recorded.selections.hard_negatives):
        del own["same_image"]
        own.mask_same_image = then
    changed = filled(recorded)
    for own in (changed.terms.itc, changed.selections.hard_negatives):
        assert own.same_image == now and "mask_same_image" not in own
