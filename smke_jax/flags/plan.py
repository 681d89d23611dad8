"""`smke plan`: what training a config takes on given devices, before anything is bought, downloaded or run.

It needs the config alone.  Where the devices are not at hand, the train step is compiled for as many simulated ones.
Of a config of several stages it plans the last one.
"""

import argparse
from pathlib import Path

from smke_jax.flags import Parser, positive, program_parser
from smke_jax.parallel.devices import DEVICES


def parser() -> Parser:
    """The parser of `smke plan`."""
    parser = program_parser("plan", __doc__, "--config.a.b=value changes a field of the config", changes_config=True)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]")
    add("--devices", type=positive, required=True, metavar="N")
    add("--device", choices=DEVICES, required=True)
    add("--examples", type=positive, metavar="N", help="examples seen in the whole run (default: config.total_steps)")
    add("--images", type=positive, default=0, metavar="N", help="of the data, where a term keeps something of each")
    add("--price", type=float, metavar="$", help="per device and hour (default: of the table)")
    add("--utilisation", type=_share, default=0.4, metavar="X", help="share of the peak FLOP/s (default: %(default)s)")
    add("--link_use", type=_share, default=0.8, metavar="X", help="share of the links' bytes/s (default: %(default)s)")
    add("--largest", action=argparse.BooleanOptionalAction, default=True,
        help="look for the largest batch that fits, which takes several compilations (default: yes)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value
