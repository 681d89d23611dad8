"""Options that no term could work with are refused with one line that says what would do."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from smke_jax.errors import UserError
from smke_jax.objectives import TERMS
from smke_jax.selections import SELECTIONS

SAME_IMAGE = {
    name: builder
    for name, builder in {**TERMS, **SELECTIONS}.items()
    if "same_image" in inspect.signature(builder).parameters
}
KNOWN = {
    **dict.fromkeys(("itc", "siglip"), "negative, masked, positive"),
    "momentum_itc": "negative, positive",  # its targets say what is right
}


def options_of(name):
    return {"num_images": 9} if name == "proximal_itc" else {}


@pytest.mark.parametrize("name", SAME_IMAGE)
def test_same_image_is_one_of_what_the_part_knows(name):
    build, options = SAME_IMAGE[name], options_of(name)
    known = KNOWN.get(name, "negative, masked")
    with pytest.raises(UserError, match=f"^same_image is 'same': known here are {known}$"):
        build(same_image="same", **options)
    for value in {"masked", "positive"} - set(known.split(", ")):
        with pytest.raises(UserError, match=f"^same_image is '{value}': known here are {known}$"):
            build(same_image=value, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"share": 1.5}, "share is 1.5: it has to be at least 0 and at most 1"),
    ({"share": 0.2}, "mlm.share is the weight of a teacher's words: name a teacher, or leave share out"),
    ({"ramp_steps": 5}, "mlm.ramp_steps is of the teacher's share: name a teacher, or leave ramp_steps out"),
])  # fmt: skip
def test_the_share_of_a_teacher_needs_one(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        TERMS["mlm"](**options)


@pytest.mark.parametrize("options", [
    {"before": ("target/feature",)}, {"before": (), "after": ()}, {"after": ("image/out", "image/out")},
])  # fmt: skip
def test_structure_names_pairs(options):
    with pytest.raises(UserError, match="^before is .* and after is .*: name as many representations in both"):
        TERMS["structure"](**options)


def test_relational_kl_compares_features_of_one_width():
    term = TERMS["relational_kl"](prediction=("image/out", "text/fc1"))
    shapes = {name: jax.ShapeDtypeStruct((4, width), jnp.float32)
              for name, width in (("image/out", 8), ("text/fc1", 9), ("target/cls", 6))}  # fmt: skip
    with pytest.raises(UserError, match="relational_kl: image/out has 8 channels and text/fc1 9: give two"):
        term.init(jax.random.key(0), shapes)
