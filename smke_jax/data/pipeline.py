"""From a source to batches: deterministic shuffle, views, tokens; a grain iterator whose position can be saved."""

import dataclasses
from collections.abc import Callable

import grain
import numpy as np
from PIL import Image

from smke_jax.data.damage import DamagedImage
from smke_jax.data.decode import BadImage, open_image
from smke_jax.data.sources import Example, Source
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError

PREFETCH_BATCHES = 4


def pixels(example: Example) -> np.ndarray:
    """The example's image as uint8 (H, W, 3); a damaged file is refused by name."""
    return example.image if isinstance(example.image, np.ndarray) else np.array(picture(example))


def picture(example: Example) -> Image.Image:
    """The same as views take it, without the way through an array."""
    if isinstance(example.image, np.ndarray):
        return Image.fromarray(example.image)
    try:
        return open_image(example.image)
    except BadImage as error:
        raise DamagedImage(example.name, error.reason) from None


@dataclasses.dataclass(frozen=True)
class Rows:
    """What one epoch goes through: (image, caption) rows; caption -1 draws one anew each epoch.

    unit 'pairs': every caption is a row, as in the thesis.  unit 'images': every image is a row, so that no batch
    holds an image twice.
    """

    image: np.ndarray  # (R,) int32
    caption: np.ndarray  # (R,) int32

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> tuple[int, int]:
        return int(self.image[i]), int(self.caption[i])

    def __repr__(self) -> str:
        return f"Rows({len(self)})"


def make_rows(num_captions: np.ndarray, unit: str) -> Rows:
    """Rows of a source whose images have `num_captions` (N,) captions each."""
    images = np.arange(len(num_captions), dtype=np.int32)
    if unit == "images":
        return Rows(images, np.full(len(images), -1, np.int32))
    if unit == "pairs":
        first = np.cumsum(num_captions) - num_captions
        image = np.repeat(images, num_captions)
        return Rows(image, np.arange(len(image), dtype=np.int32) - first[image].astype(np.int32))
    raise UserError(f"config.data.unit {unit!r} is neither 'pairs' nor 'images'")


def train_batches(
    source,
    views: Callable,
    *,
    batch_size: int,
    seed: int,
    unit: str,
    tokenizer: Tokenizer | None = None,
    max_length: int = 64,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> grain.DatasetIterator:
    """An endless iterator of {'id' (b,), 'text', 'text_mask' (b, L), and the uint8 arrays of `views`}.

    `batch_size` is the global one, b this process's share; process is (index, count).  Process p holds the rows
    [p·b, (p + 1)·b) of every global batch, which is the same, in the same order, for any number of processes; so is
    the iterator's state, which counts batches.  Each epoch is shuffled anew and its incomplete last batch dropped.
    Without a tokenizer the batches have no text.
    """
    index, count = process
    rows = make_rows(source.num_captions, unit)
    batches = len(rows) // batch_size
    if not batches:
        raise UserError(f"{source!r} has {len(rows)} {unit}, fewer than one batch of {batch_size}: lower batch_size")

    def load(row, rng: np.random.Generator):
        image, caption = row
        example = source[image]
        if caption < 0:
            caption = int(rng.integers(len(example.captions)))
        return {"id": np.int32(image), "caption": example.captions[caption], **views(picture(example), rng)}

    def collate(examples):
        batch = {k: np.stack([e[k] for e in examples]) for k in examples[0] if k != "caption"}
        if tokenizer is not None:
            captions = [e["caption"] for e in examples]
            batch["text"], batch["text_mask"] = tokenizer.encode(captions, max_length)
        return batch

    dataset = (
        grain.MapDataset.source(rows)
        .seed(seed)
        .shuffle()
        .slice(slice(0, batches * batch_size))
        .repeat()
        .random_map(load)
        .batch(batch_size // count, drop_remainder=True, batch_fn=collate)
        .slice(slice(index, None, count))  # last: neither order nor random numbers depend on `process` then
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH_BATCHES * max(threads, 1))
    return iter(dataset.to_iter_dataset(options))


class InMemorySource(Source):
    """A source with every image decoded and kept: for small sets that are read many times.

    Raises DamagedImage for the first image that cannot be decoded.
    """

    def __init__(self, source: Source):
        self.images = [pixels(source[i]) for i in range(len(source))]
        self._captions, self.names = source.all_captions(), source.names
        self.num_captions, self.image_ids, self.repeats = source.num_captions, source.image_ids, source.repeats
        self.dataset, self.digest, self._origin = source.dataset, source.digest, repr(source)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self._captions[index], self.names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def all_captions(self) -> list[tuple[str, ...]]:
        return list(self._captions)

    def __repr__(self) -> str:
        return self._origin
