"""`smke doctor`: whether this machine and this installation can train, and what to do where they cannot.

With --config also whether the data and the weights of a config are there: the checks of `smke train` before its first
step.  Status 1 says that something is wrong.
"""

from pathlib import Path

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke doctor`."""
    parser = program_parser("doctor", __doc__, changes_config=True)
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="also look at its data and its weights")
    parser.add_argument("--workdir", type=Path, default=Path("."), help="where runs are to lie; default: this folder")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser
