"""Small JPEGs of photos, made when they are asked for."""

import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from smke_jax.data.decode import BadImage
from smke_jax.data.given import pixels_of
from smke_jax.reporting.html import small_jpeg

DECODED_AT_ONCE = 2  # photos: each may take 800 MB of memory (`smke_jax.data.decode.MAX_PIXELS`)


class Thumbnails:
    """A cache of small JPEGs that forgets those that were not asked for longest.  Threads may share it.

    num_bytes: of the JPEGs that are held
    """

    def __init__(self, max_bytes: int = 64 << 20):
        self._max_bytes, self.num_bytes = max_bytes, 0
        self._held: OrderedDict[tuple, bytes] = OrderedDict()
        self._lock, self._decoders = threading.Lock(), threading.Semaphore(DECODED_AT_ONCE)

    def get(self, path: Path, side: int) -> bytes:
        """A JPEG of at most `side` pixels each way, without the metadata of the photo.

        A photo that was changed since is made anew.  Raises BadImage for a photo that is gone or cannot be read.
        """
        try:
            status = os.stat(path)
        except OSError as error:
            raise BadImage(error.strerror) from None
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("no file of a photo")  # a pipe would be read for ever
        key = (os.fspath(path), side, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        with self._decoders:
            data = small_jpeg(pixels_of(path, min_side=side), side)
        with self._lock:
            if key not in self._held and len(data) <= self._max_bytes:
                self._held[key] = data
                self.num_bytes += len(data)
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= len(self._held.popitem(last=False)[1])
        return data
