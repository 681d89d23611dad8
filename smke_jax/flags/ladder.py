"""`smke ladder`: the thesis' recipes one after another on the same photos, and the table of what each brings.

    smke ladder --minutes=5                                 all of them, five minutes of training each
    smke ladder --recipes=ctl,s_smke,token_types:after --seeds=1,2,3 --write_table

Recipes are the config files with a constant RUNGS. Each is trained in the form given by --form, in OUT/NAME,seed=SEED;
a recipe of several stages in folders of that directory. Any --config.key=value holds for all recipes. The same command
leaves finished runs alone and continues interrupted ones. ladder.md, ladder.json and ladder.png in OUT hold all recipes
that have a run there, after each of them anew.

The form flickr8k needs data/flickr8k, which README.md tells how to make. Its teacher is trained first, once for all
recipes, where runs/teacher_flickr8k/export is missing.
"""

import argparse
import re
from pathlib import Path

from smke_jax.flags import Parser, names, program_parser


def parser() -> Parser:
    """The parser of `smke ladder`."""
    parser = program_parser("ladder", __doc__, changes_config=True)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/ladder"), metavar="DIR", help="default: runs/ladder")
    add("--configs", type=Path, default=Path("configs"), metavar="DIR", help="folder of configs; default: configs")
    add("--form", default="flickr8k", metavar="FORM", help="of each config: flickr8k, scenes or smoke, or '' for the "
        "thesis' own; default: flickr8k")  # fmt: skip
    add("--recipes", type=names, default=[], metavar="A,B:VARIANT,…", help="these alone; default: all")
    add("--seeds", type=_seeds, default=[], metavar="A,B,…", help="a run for each; default: the seed of the config")
    add("--minutes", type=_minutes, default=0.0, metavar="M", help="training time of each run, for which a short run "
        "finds the number of steps; default: the steps of the config")  # fmt: skip
    add("--reference", default="", metavar="NAME", help="compare all with this recipe, not each with its own")
    add("--write_table", action="store_true", help="write ladder.md and ladder.png beside the configs, too")
    add("--dry_run", action="store_true", help="print the runs and their commands alone")
    return parser


def _seeds(text: str) -> list[int]:
    if not all(name.isdecimal() for name in names(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers")
    return list(dict.fromkeys(map(int, names(text))))


def _minutes(text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return float(text)
