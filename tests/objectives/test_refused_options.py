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
NEVER_POSITIVE = ("negative", "masked")
KNOWN = {
    "itc": ("negative", "masked", "positive"),
    "siglip": ("negative", "masked", "positive"),
    "momentum_itc": ("negative", "positive"),
}


def options_of(name):
    return {"num_images": 9} if name == "proximal_itc" else {}


@pytest.mark.parametrize("name", SAME_IMAGE)
def test_same_image_is_one_of_what_the_part_knows(name):
    build, options = SAME_IMAGE[name], options_of(name)
    known = KNOWN.get(name, NEVER_POSITIVE)
    for wrong in {"same", "negative", "masked", "positive"} - set(known):
        with pytest.raises(UserError, match=f"^same_image is '{wrong}': known here are {', '.join(known)}$"):
            build(same_image=wrong, **options)
    for right in known:
        build(same_image=right, **options)


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
