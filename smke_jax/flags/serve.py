"""`smke serve`: a page to search the photos of an index, for the browser on this machine.

  smke serve --index=photos.index --open

The page finds photos by a text and, with a click on one of them, those that are like it.  It reads and shows photos and
changes nothing.  The page answers browsers on this machine alone, but those of all its users.  Ctrl-C stops it.  After
`smke index` has brought the index up to date, the page shows that.
"""

import argparse
from pathlib import Path

from smke_jax.flags import Parser, program_parser

PORT = 8765


def parser() -> Parser:
    """The parser of `smke serve`."""
    parser = program_parser("serve", __doc__)
    parser.add_argument("--index", type=Path, required=True, metavar="INDEX", help="what `smke index` wrote")
    parser.add_argument("--model", metavar="RUN|EXPORT", help="where the model of the index is; default: where it was")
    parser.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"0: any free one; default: {PORT}")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number up to 65535")
    return int(text)
