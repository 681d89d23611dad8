"""`smke sweep`: a config over a grid of values, one run directory for each combination.

    smke sweep --config=configs/scaling.py --out=runs/scaling
    smke sweep --config=FILE --out=DIR --axis config.batch_size=256,512 --axis config.num_devices=1,2 --seeds=1,2,3

A config may name its own grid in `get_sweep()`; --axis replaces or adds to it, and any --config.key=value holds for
all runs. The same command leaves finished runs alone and continues interrupted ones.
"""

import re
from pathlib import Path

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke sweep`."""
    parser = program_parser("sweep", __doc__, changes_config=True)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="as of `smke train`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the run directories")
    parser.add_argument("--axis", type=_axis, action="append", default=[], metavar="config.KEY=A,B,…")
    parser.add_argument("--seeds", type=_values, metavar="A,B,…", help="short for --axis config.seed=A,B,…")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and their commands alone")
    parser.add_argument(
        "--simulate_devices", type=int, default=0, metavar="N", help="train on N simulated devices on the CPU"
    )
    return parser


def _axis(text: str) -> tuple[str, tuple[str, ...]]:
    key, _, values = text.partition("=")
    return key, _values(values)


def _values(text: str) -> tuple[str, ...]:
    """Separated at the commas outside brackets, each once."""
    return tuple(dict.fromkeys(re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^,])+", text)))
