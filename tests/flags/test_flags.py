"""Help and mistakes at the command line answer before any heavy library is imported."""

import subprocess
import sys

import pytest

from smke_jax.errors import UserError
from smke_jax.flags import PROGRAMS, parser_of

HEAVY = {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "transformers", "tokenizers", "PIL",
         "matplotlib", "ml_collections", "absl", "numpy"}  # fmt: skip


def test_help_imports_no_heavy_library():
    """In one process for all programs, each of which ends by SystemExit."""
    code = f"""
import contextlib, io, sys
from smke_jax.__main__ import main
for name in {list(PROGRAMS)}:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main([name, "--help"])
        except SystemExit as stop:
            assert not stop.code
    assert "usage: smke " + name in printed.getvalue(), name
    assert main([name, "--no_such_flag=1"]) == 2
main([])
print(sorted({HEAVY} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]", "this was imported"


def test_every_program_has_flags_and_an_example():
    for name, program in PROGRAMS.items():
        assert program.example.startswith(f"smke {name}")
        assert parser_of(name).format_help().startswith(f"example: {program.example}\n")


@pytest.mark.parametrize("argv,message", [
    (["serve", "--index=x", "--prot=1"], "unknown flag --prot: did you mean port? (`smke serve --help` explains"),
    (["search", "dog"], "the following arguments are required: --index (`smke search --help` explains"),
    (["search", "dog", "--index=x", "--top=0"], "argument --top: '0' is no positive whole number"),
    (["prepare", "flickr9k"], "invalid choice: 'flickr9k'"),
    (["prepare", "coco", "--source=x", "--out=y", "--holdout=3"], "unknown flag --holdout"),
    (["report", "run", "--config.seed=1"], "unknown flag --config.seed"),
    (["doctor", "--config=x", "config.seed=1"], "unexpected argument 'config.seed=1'"),
])  # fmt: skip
def test_a_mistake_is_one_line_with_the_remedy(argv, message):
    with pytest.raises(UserError) as error:
        parser_of(argv[0]).parse_args(argv[1:])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_fields_of_the_config_are_kept_apart():
    found = parser_of("train").parse_args(["--config=x", "--config.a.b=1", "--workdir=y", "--noconfig.c"])
    assert (found.config, found.workdir, found.overrides) == ("x", "y", ["--config.a.b=1", "--noconfig.c"])
