"""Rungs and recipes: names, places, order, and what is refused."""

from pathlib import Path

import pytest

from smke_jax.errors import UserError
from smke_jax.rungs import Rung, check_rungs
from smke_jax.studies.ladder.recipes import Recipe, in_order


def recipe(name: str, order: float, **fields) -> Recipe:
    file, _, variant = name.partition(":")
    return Recipe(Path(f"configs/{file}.py"), Rung(order, "1", f"change {name}", variant, **fields))


def test_names_and_locations():
    plain, late = recipe("ctl", 1), recipe("shre:late", 2)
    assert (plain.name, late.name) == ("ctl", "shre:late")
    assert plain.location("smoke") == "configs/ctl.py:smoke" and late.location("smoke") == "configs/shre.py:late,smoke"


def test_the_order_is_that_of_the_rungs():
    recipes = [recipe("c", 3, against="a"), recipe("a", 1), recipe("b:x", 1.5), recipe("b:y", 20)]
    assert [found.name for found in in_order(recipes)] == ["a", "b:x", "c", "b:y"]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(UserError, match="b.py has two rungs of the variant 'x'"):
        in_order([recipe("b:x", 1), recipe("b:x", 2)])
    with pytest.raises(UserError, match="b.py: b stands against a, which is no rung"):
        in_order([recipe("a:x", 1), recipe("b", 2, against="a")])


SIX = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_figures_are_six_or_their_mean():
    good = (Rung(1, "8", "x", coco=SIX, flickr30k=(78.3,)), Rung(2, "9", "y"))
    assert check_rungs(good, Path("c.py")) == good
    for name in ("coco", "flickr30k"):
        with pytest.raises(UserError, match=f"{name} of the rung 'x' in c.py: give six recalls"):
            check_rungs((Rung(1, "8", "x", **{name: SIX[:3]}),), Path("c.py"))


@pytest.mark.parametrize("rungs", [Rung(1, "8", "x"), [Rung(1, "8", "x")], ("x",), None])
def test_anything_else_is_refused(rungs):
    with pytest.raises(UserError, match="RUNGS of c.py has to be a tuple of"):
        check_rungs(rungs, Path("c.py"))
