"""Variants of a config and the forms they combine with."""

import pytest

from smke_jax.config import FORMS, base, split_variant, variant_of
from smke_jax.errors import UserError
from smke_jax.programs.train import load_config


@pytest.mark.parametrize("variant,parts", [
    ("", ("", "")),
    ("before", ("before", "")),
    ("smoke", ("", "smoke")),
    ("flickr8k", ("", "flickr8k")),
    ("before,smoke", ("before", "smoke")),
    ("after,flickr8k", ("after", "flickr8k")),
])  # fmt: skip
def test_a_variant_and_a_form(variant, parts):
    assert split_variant(variant, ("before", "after")) == parts


@pytest.mark.parametrize("variant", ["smoke,before", "before,after", "before,tiny", "tiny,smoke", "tiny", "a,b,smoke"])
def test_what_is_neither_is_named_with_what_there_is(variant):
    with pytest.raises(UserError) as error:
        split_variant(variant, ("before", "after"))
    message = str(error.value)
    assert repr(variant) in message and "before, after" in message and "before,smoke" in message
    assert all(form in message for form in FORMS)


def test_a_config_without_variants_has_the_forms_alone():
    assert split_variant("smoke") == ("", "smoke")
    for variant in ("before", "before,smoke"):
        with pytest.raises(UserError, match=r"unknown variant 'before.*there are smoke, flickr8k$"):
            variant_of(base(), variant)


def test_forms_change_the_config_and_none_leaves_it():
    assert variant_of(base(), "").to_dict() == base().to_dict()
    assert variant_of(base(), "smoke").batch_size == 16 and variant_of(base(), "flickr8k").data.max_length == 20


def test_both_reach_a_config_file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from smke_jax.config import base, split_variant, variant_of\n"
        "def get_config(variant=''):\n"
        "    kind, form = split_variant(variant, ('dark',))\n"
        "    c = base()\n"
        "    c.data.jitter = 0.7 if kind == 'dark' else 0.1\n"
        "    return variant_of(c, form)\n"
    )
    found = {variant: load_config(f"{path}:{variant}") for variant in ("dark", "dark,smoke", "smoke")}
    assert [c.data.jitter for c in found.values()] == [0.7, 0.7, 0.1]
    assert [c.batch_size for c in found.values()] == [256, 16, 16]
