"""`smke serve`: a page to search the photos of an index, for the browser on this machine.

  smke serve --index=photos.index --open

The page finds photos by a text and, with a click on one of them, those that are like it.  It reads and shows photos and
changes nothing.  The page answers browsers on this machine alone, but those of all its users.  Ctrl-C stops it.  After
`smke index` has brought the index up to date, the page shows that.
"""

import argparse
import sys
import threading
import webbrowser
from pathlib import Path

from smke_jax.__main__ import program_parser, run_program
from smke_jax.programs.search import model_of
from smke_jax.search.query import searchable
from smke_jax.search.server import Server
from smke_jax.search.site import Site
from smke_jax.search.words import Words

PORT = 8765


def main(argv: list[str]) -> int:
    """Parses the command line and serves until Ctrl-C."""
    arguments = _parser().parse_args(argv)
    index = searchable(arguments.index)
    model = model_of(index, arguments.model, texts_alone=True)
    reader = model if isinstance(model, Words) or model.reads_texts else None
    with Server(Site(arguments.index, reader), arguments.port) as server:
        print(f"{index.live.sum()} photos at {server.address} (Ctrl-C stops)", flush=True)
        if arguments.open:
            # Some browsers of a terminal return when they are left.
            threading.Thread(target=_open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
    return 0


def _open(address: str) -> None:
    if not webbrowser.open(address):
        print(f"no browser was found: open {address} yourself", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
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


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
