"""`smke serve`: the work behind smke_jax/flags/serve.py, which says what it does."""

import sys
import threading
import webbrowser

from smke_jax.__main__ import run_program
from smke_jax.flags.serve import parser
from smke_jax.programs.search import model_of
from smke_jax.search.query import searchable
from smke_jax.search.server import Server
from smke_jax.search.site import Site
from smke_jax.search.words import Words


def main(argv: list[str]) -> int:
    """Parses the command line and serves until Ctrl-C."""
    arguments = parser().parse_args(argv)
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


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
