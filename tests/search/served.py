"""The local page of photos with planted embeddings, and a model whose text 'photo 7' means the photo of seed 7."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from planted import WIDTH, embedding, picture, run, write_photos

from smke_jax.search.server import Server
from smke_jax.search.site import Site


class Reader:
    """`at_once`: the most threads that were in it together."""

    def __init__(self):
        self.at_once, self._inside = 0, 0

    def encode_texts(self, texts):
        self._inside += 1
        self.at_once = max(self.at_once, self._inside)
        found = np.stack([embedding(picture(int(text.split()[-1]))) for text in texts])
        self._inside -= 1
        return found


def index_photos(photos: Path, out: Path, names: dict[str, int]) -> None:
    """An index of photos {path: seed}, by which a text has an answer where a photo is nearly what it means."""
    # What photos usually score: 0 ± 0.1.
    phrases = 0.1 * np.sqrt(WIDTH) * np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)]).astype(np.float32)
    run(write_photos(photos, names), out, phrases=phrases)


@contextlib.contextmanager
def serving(index: Path, reader=None) -> Iterator[Server]:
    with Server(Site(index, reader), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
