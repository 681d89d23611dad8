"""An embedder whose embeddings are written on the photos, and folders of such photos."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from smke_jax.data.decode import BadImage
from smke_jax.data.given import pixels_of
from smke_jax.embedder import Found, Skipped
from smke_jax.search.store import About, writing
from smke_jax.search.update import Counts, update

WIDTH = 8


def picture(seed: int, taken: str = "") -> bytes:
    """A PNG of WIDTH grey pixels, which are the photo's embedding but for its length."""
    values = np.random.default_rng(seed).integers(0, 256, (1, WIDTH), np.uint8)
    buffer, image = io.BytesIO(), Image.fromarray(values)
    exif = Image.Exif()
    if taken:
        exif[0x0132] = taken
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def embedding(data: bytes) -> np.ndarray:
    x = np.asarray(Image.open(io.BytesIO(data)), np.float32)[0] - 128
    return x / np.linalg.norm(x)


class Planted:
    """Knows no texts; `read` has what was embedded, `stop_after` photos of which end the process of embedding."""

    def __init__(self, stop_after: float = float("inf"), stop=None):
        self.read, self._stop_after, self._stop = 0, stop_after, stop

    def image_batches(self, images, *, batch_size):
        rows, skipped, position = [], [], 0
        for position, image in enumerate(images, 1):
            if self.read >= self._stop_after:
                self._stop()
            try:
                rows.append(pixels_of(image)[0, :, 0].astype(np.float32) - 128)
                self.read += 1
            except BadImage as error:
                skipped.append(Skipped(position - 1, str(error)))
            if position % batch_size == 0:
                yield Found(np.array(rows).reshape(-1, WIDTH), skipped)
                rows, skipped = [], []
        if position % batch_size:
            yield Found(np.array(rows).reshape(-1, WIDTH), skipped)


def run(photos: Path, out: Path, embedder: Planted | None = None, digest: str = "a", phrases=None) -> Counts:
    """`smke index` with planted embeddings, two at once."""
    with writing(out, About("model", None, digest, WIDTH, str(photos))) as writer:
        return update(writer, embedder or Planted(), phrases, batch_size=2)


def write_photos(root: Path, names: dict[str, int]) -> Path:
    """Photos {path: seed}, all of the same date."""
    for name, seed in names.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return root
