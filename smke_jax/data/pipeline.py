"""From a source to batches: deterministic shuffle, views, tokens; a grain iterator whose position can be saved."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from smke_jax.data.damage import Damage, DamagedImage, Damages
from smke_jax.data.decode import BadImage, open_image
from smke_jax.data.order import Order
from smke_jax.data.sources import Example, Source
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError

PREFETCH_BATCHES = 4  # for each thread; more would only take memory
READ_AHEAD = 1 << 20  # bytes of photos that a thread reads at a time


def pixels(example: Example) -> np.ndarray:
    """The example's whole image as uint8 (H, W, 3); raises DamagedImage where its file is no longer sound."""
    return example.image if isinstance(example.image, np.ndarray) else np.array(picture(example))


def picture(example: Example | DamagedImage, *, min_side: int | None = None) -> Image.Image:
    """The example's image as `View` takes it: RGB, upright.

    Args:
      example: its image as file bytes, or as uint8 (H, W, 3); or why it could not be read.
      min_side: pixels of the shorter side that are enough, for `open_image`; None decodes at full size.

    Raises:
      DamagedImage: the file is no longer sound.
    """
    if isinstance(example, DamagedImage):
        raise example
    if isinstance(example.image, np.ndarray):
        return Image.fromarray(example.image)
    try:
        return open_image(example.image, min_side=min_side)
    except BadImage as error:
        raise DamagedImage(example.name, error.reason) from None


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one epoch, before they are shuffled: pairs of image and caption."""

    image: np.ndarray  # (R,) int32, number of the image in the source
    caption: np.ndarray  # (R,) int32, number of the caption among the image's; -1: one is drawn anew in each epoch

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> tuple[int, int]:
        return int(self.image[i]), int(self.caption[i])

    def __repr__(self) -> str:
        return f"Rows({len(self)})"


def make_rows(num_captions: np.ndarray, unit: str, repeats: np.ndarray | None = None) -> Rows:
    """The rows of one epoch.

    Args:
      num_captions: int (N,), captions of each image.
      unit: 'pairs' makes a row of every caption, as in the thesis. 'images' makes a row of every image, with a caption
        drawn anew in each epoch; then no batch holds an image twice, unless `repeats` says so.
      repeats: int (N,), how often the rows of each image come; once where not given.

    Raises:
      UserError: `unit` is neither.
    """
    images = np.arange(len(num_captions), dtype=np.int32)
    if unit == "images":
        image, caption = images, np.full(len(images), -1, np.int32)
    elif unit == "pairs":
        first = np.cumsum(num_captions) - num_captions
        image = np.repeat(images, num_captions)
        caption = np.arange(len(image), dtype=np.int32) - first[image].astype(np.int32)
    else:
        raise UserError(f"config.task.unit {unit!r} is neither 'pairs' nor 'images'")
    if repeats is None:
        return Rows(image, caption)
    times = repeats[image]
    return Rows(np.repeat(image, times), np.repeat(caption, times))


def epoch_rows(source: Source, unit: str) -> Rows:
    """The rows of one epoch of `source`; see `make_rows`."""
    return make_rows(source.num_captions, unit, source.repeats)


def train_batches(
    source: Source,
    views: Callable[[Image.Image, np.random.Generator], dict[str, np.ndarray]] | None,
    *,
    batch_size: int,
    seed: int,
    unit: str,
    tokenizer: Tokenizer | None = None,
    max_length: int = 64,
    words: bool = False,
    labels: np.ndarray | None = None,
    numbered: str = "",
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    prefetch_mib: float = 256,
) -> "Batches":
    """An endless iterator of {'id' (b,), 'text', 'text_mask' (b, L), 'label' (b,), and the uint8 arrays of `views`}.

    Each epoch is shuffled anew, and its incomplete last batch is dropped. Neither `process` nor `threads` nor
    `prefetch_mib` changes the rows of a batch, its random numbers or the positions that are saved.

    Args:
      source: the images; 'id' is their number in it.
      views: makes the arrays of one image. Where it has a `min_side`, JPEGs are decoded no larger than that asks for.
        None makes none, and no image is opened.
      batch_size: B, rows of all processes together.
      seed: of the order, of the captions that are drawn, and of the views.
      unit: 'pairs' or 'images', see `make_rows`.
      tokenizer: None leaves the text out.
      max_length: L, tokens of a caption.
      words: whether 'text_words' is made, the word of each token, by `Tokenizer.word_numbers`.
      labels: (N,) of the images; None leaves 'label' out.
      numbered: the name of an array (b,), the number of the caption among those of all images; '' leaves it out.
      process: (p, number of processes). Process p has the rows [p·b, (p + 1)·b) of every batch of B = b · number rows.
      threads: that make batches ahead; with 0 the caller makes its batches itself.
      prefetch_mib: MiB of finished examples that may wait. One batch of b may wait in any case.

    Raises:
      UserError: an epoch has fewer rows than one batch; or, while batches are made, too many photos are damaged. A few
        are skipped, see `Damages`: the next sound image of the source takes the place of a damaged one.
    """
    rows = epoch_rows(source, unit)
    batches = len(rows) // batch_size
    if not batches:
        raise UserError(f"{source!r} has {len(rows)} {unit}, fewer than one batch of {batch_size}: lower batch_size")
    min_side = getattr(views, "min_side", None)
    damages = Damages(repr(source), len(source))

    first = np.cumsum(source.num_captions) - source.num_captions if numbered else None

    def choose(captions: tuple[str, ...], number: int, rng: np.random.Generator) -> int:
        if number < 0:
            number = int(rng.integers(len(captions)))
        return number % len(captions)  # another image may have fewer captions than the row's own

    def numbers(image: int, caption: int) -> dict[str, np.int32]:
        made = {"id": np.int32(image)} | ({} if labels is None else {"label": np.int32(labels[image])})
        return made if first is None else {**made, numbered: np.int32(first[image] + caption)}

    def load(row: int, example: Example | DamagedImage | None, rng: np.random.Generator) -> dict[str, Any]:
        image, caption = rows[row]
        if views is None:
            captions = source.captions(image)
            chosen = choose(captions, caption, rng)
            return {**numbers(image, chosen), "caption": captions[chosen], "skipped": ()}
        skipped = []
        while True:
            try:
                photo = picture(example, min_side=min_side)
                break
            except DamagedImage as error:
                skipped.append(Damage(image, error.name, error.reason))
                damages.check(skipped)
                image = (image + 1) % len(source)
                example = read_or_damage(source, image)
        chosen = choose(example.captions, caption, rng)
        return {**numbers(image, chosen), "caption": example.captions[chosen], "skipped": skipped, **views(photo, rng)}

    def make(positions: range) -> _Part:
        drawn = [order[position] for position in positions]
        examples = itertools.repeat(None) if views is None else read_ahead(source, rows.image[drawn].tolist())
        arrays, captions, skipped = {}, [], []
        for i, (position, row, example) in enumerate(zip(positions, drawn, examples)):
            loaded = load(row, example, order.generator(position))
            captions.append(loaded.pop("caption"))
            skipped += loaded.pop("skipped")
            if not arrays:
                arrays = {k: np.empty((len(positions), *x.shape), x.dtype) for k, x in loaded.items()}
            for name, x in loaded.items():  # at once, so that no part lies in memory twice
                arrays[name][i] = x
        if tokenizer is not None:
            arrays["text"], arrays["text_mask"] = tokenizer.encode(captions, max_length)
            if words:
                arrays["text_words"] = tokenizer.word_numbers(arrays["text"])
        return _Part(arrays, skipped)

    order = Order(len(rows), batch_size, seed)
    blank = {} if views is None else views(Image.new("RGB", (64, 64)), np.random.default_rng(0))
    example_bytes = sum(x.nbytes for x in blank.values()) + (8 * max_length if tokenizer is not None else 0)
    return spread_batches(
        make, damages, batch_size=batch_size, example_bytes=example_bytes, process=process, threads=threads,
        prefetch_mib=prefetch_mib,
    )  # fmt: skip


def read_or_damage(source: Source, image: int) -> Example | DamagedImage:
    """The example, or why it cannot be read."""
    try:
        return source[image]
    except DamagedImage as error:
        return error


def read_ahead(source: Source, images: Iterable[int]) -> Iterator[Example | DamagedImage]:
    """What `read_or_damage` finds of each image, read READ_AHEAD bytes at a time.

    Decoding takes a tenth longer where a photo is read before each: the reader's code and data take its place in the
    processor's caches.
    """
    held, size = [], 0
    for image in images:
        held.append(found := read_or_damage(source, image))
        if isinstance(found, Example):
            size += found.image.nbytes if isinstance(found.image, np.ndarray) else len(found.image)
        if size >= READ_AHEAD:
            yield from held
            held, size = [], 0
    yield from held


def array_batches(
    read: Callable[[list[int]], dict[str, np.ndarray]],
    rows: int,
    *,
    batch_size: int,
    seed: int,
    example_bytes: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    prefetch_mib: float = 256,
) -> "Batches":
    """An endless iterator of `read` of rows of which none is damaged, in the order of `train_batches`.

    Args:
      read: numbers of rows -> their arrays, stacked; 'id' (b,) among them.
      rows: R, of an epoch.
      example_bytes: of one row of these arrays.
      batch_size, seed, process, threads, prefetch_mib: see `train_batches`.

    Raises:
      UserError: an epoch has fewer rows than one batch.
    """
    if rows < batch_size:
        raise UserError(f"an epoch has {rows} rows, fewer than one batch of {batch_size}: lower batch_size")
    order = Order(rows, batch_size, seed)
    return spread_batches(
        lambda positions: _Part(read([order[i] for i in positions]), []), Damages("", rows), batch_size=batch_size,
        example_bytes=example_bytes, process=process, threads=threads, prefetch_mib=prefetch_mib,
    )  # fmt: skip


def spread_batches(
    make: Callable[[range], "_Part"],
    damages: Damages,
    *,
    batch_size: int,
    example_bytes: int,
    process: tuple[int, int],
    threads: int,
    prefetch_mib: float,
) -> "Batches":
    """The process's share of every batch, which `make` makes of some consecutive positions at a time."""
    share = batch_size // process[1]
    size, waiting = divide(share, example_bytes, threads=threads, prefetch_mib=prefetch_mib)
    parts = _PartsOfProcess(make, size, share // size, process)
    options = grain.ReadOptions(num_threads=min(threads, waiting), prefetch_buffer_size=waiting)
    return Batches(iter(parts.to_iter_dataset(options)), share // size, damages)


def divide(share: int, example_bytes: int, *, threads: int, prefetch_mib: float) -> tuple[int, int]:
    """How a process's `share` of a batch is divided into parts that threads make at the same time.

    A small share is one part, and several shares wait. A large one has two parts or more for each thread, so that all
    threads work although only one share may wait.

    Returns:
      (rows of a part, number of parts that may wait).
    """
    threads = max(threads, 1)
    most = int(prefetch_mib * 2**20) // max(example_bytes, 1)
    waiting = max(share, min(most, PREFETCH_BATCHES * threads * share))
    fitting = max(1, waiting // (2 * threads))
    part = next(size for size in range(min(share, fitting), 0, -1) if share % size == 0)
    return part, waiting // part


class _Part(NamedTuple):
    """Some consecutive rows of a batch, and the damaged photos that were skipped for them."""

    arrays: dict[str, np.ndarray]
    skipped: list[Damage]


class _PartsOfProcess(grain.MapDataset):
    """Of the parts of all batches, those that belong to the share of one process.

    make:      positions -> their part
    size:      rows of a part
    per_share: parts of the process's share of a batch
    process:   (its number, their count); neither the order nor the random numbers of a position depend on it
    """

    def __init__(self, make: Callable[[range], _Part], size: int, per_share: int, process: tuple[int, int]):
        super().__init__()
        self._make, self._size, self._per_share, (self._index, self._count) = make, size, per_share, process

    def __len__(self) -> int:
        return sys.maxsize // (self._count * self._per_share * self._size) * self._per_share

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.slice(i)
        batch, part = divmod(i, self._per_share)
        start = ((batch * self._count + self._index) * self._per_share + part) * self._size
        return self._make(range(start, start + self._size))


class Batches(grain.DatasetIterator):
    """The iterator that `train_batches` makes. Its state counts batches, so it holds for any number of processes."""

    def __init__(self, parts: grain.DatasetIterator, per_batch: int, damages: Damages):
        super().__init__(parts)
        self._parts, self._per_batch, self._damages, self._delivered = parts, per_batch, damages, 0

    @property
    def damaged(self) -> int:
        """Distinct damaged photos that this process has skipped since it began."""
        return len(self._damages)

    def __next__(self) -> dict[str, np.ndarray]:
        part = next(self._parts)
        batch, skipped, size = part.arrays, list(part.skipped), len(part.arrays["id"])
        if self._per_batch > 1:
            batch = {k: np.empty((self._per_batch * size, *x.shape[1:]), x.dtype) for k, x in part.arrays.items()}
            for i in range(self._per_batch):
                if i > 0:
                    part = next(self._parts)
                    skipped += part.skipped
                for k, x in part.arrays.items():  # at once, so that no whole batch of parts lies in memory as well
                    batch[k][i * size : (i + 1) * size] = x
        for damage in skipped:  # counted here and not where it is met, so that it does not depend on the threads
            self._damages.add(damage)
        self._delivered += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._delivered}

    def set_state(self, state: dict[str, int]) -> None:
        self._delivered = state["next_index"]
        grain.experimental.set_next_index(self._parts, self._delivered * self._per_batch)


class InMemorySource(Source):
    """A source with every image decoded and kept: for small sets that are read many times.

    An image that cannot be decoded raises DamagedImage where it is read, as that of any source.
    """

    def __init__(self, source: Source):
        self.images = [_pixels_or_damage(source, i) for i in range(len(source))]
        self._captions, self.names = source.all_captions(), source.names
        self.num_captions, self.image_ids, self.repeats = source.num_captions, source.image_ids, source.repeats
        self.dataset, self.digest, self._origin = source.dataset, source.digest, repr(source)
        self.about, self._counts = source.about, source.counts()

    def counts(self) -> list[dict[str, int | str]]:
        return self._counts

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        if isinstance(image, Damage):
            raise DamagedImage(image.name, image.reason)
        return Example(image, self._captions[index], self.names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def all_captions(self) -> list[tuple[str, ...]]:
        return list(self._captions)

    def __repr__(self) -> str:
        return self._origin


def _pixels_or_damage(source: Source, index: int) -> np.ndarray | Damage:
    try:
        return pixels(source[index])
    except DamagedImage as error:
        return Damage(index, error.name, error.reason)
