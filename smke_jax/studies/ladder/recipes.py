"""The recipes of a folder of configs, from the lowest rung of the ladder up."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smke_jax.config_files import load_rungs
from smke_jax.errors import UserError, nearest
from smke_jax.rungs import Rung


class Recipe(NamedTuple):
    """A rung, and the config file that it stands in."""

    file: Path
    rung: Rung

    @property
    def name(self) -> str:
        """'ctl', or 'token_types:after' with its variant."""
        return ":".join(filter(None, (self.file.stem, self.rung.variant)))

    def location(self, form: str) -> str:
        """What --config of `smke train` takes for it in one of smke_jax.forms.FORMS."""
        return f"{self.file}:{','.join(filter(None, (self.rung.variant, form)))}"

    def run_name(self, seed: int) -> str:
        """The name of the directory of one run."""
        return f"{self.name.replace(':', '-')},seed={seed}"


def find_recipes(folder: Path) -> list[Recipe]:
    """The rungs of all config files in `folder`, from the lowest up; UserError where there are none."""
    files = sorted(folder.glob("*.py"))
    recipes = in_order([Recipe(file, rung) for file in files for rung in load_rungs(str(file))])
    if not recipes:
        raise UserError(f"no config in {folder} has a constant RUNGS: give --configs=DIR")
    return recipes


def in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
    """From the lowest rung up; raises UserError where two recipes have one name or compare with none there is."""
    recipes = sorted(recipes, key=lambda recipe: recipe.rung.order)
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            raise UserError(f"{recipe.file} has two rungs of the variant {recipe.rung.variant!r}")
        if recipe.rung.against not in ("", *names):
            raise UserError(f"{recipe.file}: {recipe.name} stands against {recipe.rung.against}, which is no rung")
    return recipes


def choose(recipes: Sequence[Recipe], names: Sequence[str]) -> list[Recipe]:
    """Those of `recipes` named 'file' (with all of its variants) or 'file:variant', in their order; () names all."""
    known = {recipe.name for recipe in recipes} | {recipe.file.stem for recipe in recipes}
    for name in names:
        if name not in known:
            raise UserError(f"no recipe {name}{nearest(name, sorted(known))}; --dry_run lists them")
    return [recipe for recipe in recipes if not names or {recipe.name, recipe.file.stem} & set(names)]
