"""Embeddings in three lines: `smke_jax.load(path)` opens what holds a model and embeds images and texts with it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from smke_jax.convert.convert import VOCABULARIES, convert
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, params_path, read_description
from smke_jax.convert.source import read_source
from smke_jax.data.clip_tokenizer import load_clip_tokenizer
from smke_jax.data.decode import BadImage, decode_image, to_rgb
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer
from smke_jax.data.transforms import BICUBIC, squash
from smke_jax.errors import UserError
from smke_jax.evaluators.embed import chunks, embed_batches, make_encoder
from smke_jax.models.build import build_model
from smke_jax.models.teachers import TEACHERS
from smke_jax.parallel.mesh import make_mesh, replicated
from smke_jax.passes.base import MEAN, STD, to_network
from smke_jax.passes.frozen import teacher_pass
from smke_jax.passes.student import student_pass
from smke_jax.training.experiment import restore_run, trained_network

ImageLike = str | Path | Image.Image | np.ndarray


def load(path: str | Path, *, step: int | str | None = None, trust_code: bool = False, **fields: Any) -> "Embedder":
    """Opens a run, an export or a converted directory, or a file that `smke convert` could read.

    Args:
      path: run directory of `smke train`; DIR of `smke convert`, or of `smke export` in any format but onnx; or a file
        of pretrained weights.
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
        params, model = trained_network(run)
        return Embedder(model, jax.device_get(params), run.experiment.tokenizer)
    if step is not None:
        raise UserError(f"{path} is no run directory, so it has no step {step}")
    if is_ours:
        description = read_description(path)["model"]
        return Embedder(description, load_params(path), _tokenizer(description, params_path(path).parent / TOKENIZER))
    source = read_source(path, trust_code=trust_code)
    conversion = convert(source, **fields)
    if not conversion.report.sound:
        raise UserError(f"{path} does not fit {conversion.layout.name}: see `smke convert --dry_run`")
    return Embedder(conversion.description, conversion.params, _tokenizer(conversion.description, source.path.parent))


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

    run:       model -> ((params, batch) -> {'image': (B, D), 'text': (B, D)}, of what the batch has)
    view:      (image, size) -> uint8 (size, size, 3): what the network sees of an image
    normalise: whether embeddings are L2-normalised
    load_tokenizer: of the vocabulary in a directory
    vocabulary: the files that it needs there
    """

    run: Callable[[Any, dict], Callable]
    view: Callable[[np.ndarray, int], np.ndarray] = squash
    normalise: bool = False
    load_tokenizer: Callable[[Path], Tokenizer] = load_tokenizer
    vocabulary: str = "vocab.txt or tokenizer.json"


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the centre: what image encoders are evaluated with."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), BICUBIC))


def _student(model, description):
    level = description.get("level", "out")
    run = student_pass(model).run

    def encode(params, batch, key, train):
        return {name.split("/")[0]: x for name, x in run(params, batch, key, train).items() if name.endswith(level)}

    return encode


def _teacher(model, description):
    run = teacher_pass(model, description.get("mean", MEAN), description.get("std", STD)).run
    return lambda params, batch, key, train: {"image": run(params, batch, key, train)["target/cls"]}


def _bert(model, description):
    def encode(params, batch, key, train):
        tokens, _ = model.apply({"params": params}, batch["text"], batch["text_mask"])
        mask = batch["text_mask"][:, :, None].astype(jnp.float32)
        return {"text": (tokens * mask).sum(1) / mask.sum(1)}

    return encode


def _clip(model, description):
    mean, std = description["mean"], description["std"]

    def encode(params, batch, key, train):
        variables = {"params": params}
        features = {}
        if "image" in batch:
            features["image"] = model.apply(variables, to_network(batch["image"], mean, std), method="encode_image")
        if "text" in batch:
            features["text"] = model.apply(variables, batch["text"], method="encode_text")
        return features

    return encode


KINDS = {
    "student": _Kind(_student, normalise=True),
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
        self._params = jax.device_put(params, replicated(self._mesh))
        self._encode = make_encoder(self._kind.run(build_model(description), description), self._mesh)
        self._image_size = description.get("image", description).get("image_size")
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
        if self._image_size is None:
            raise UserError(f"a model of type {self.description['type']} embeds no images")
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            raise UserError("encode_images takes a list of images: write encode_images([image])")
        views = (self._kind.view(_pixels(image, i), self._image_size) for i, image in enumerate(images))
        batches = ({"image": np.stack(rows)} for rows in chunks(views, batch_size))
        return self._embed(batches, "image", len(images), batch_size)

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
        rows = ({"text": ids[i : i + batch_size, :length], "text_mask": mask[i : i + batch_size, :length]}
                for i in range(0, len(texts), batch_size))  # fmt: skip
        return self._embed(rows, "text", len(texts), batch_size)

    def similarity(self, images: Sequence[ImageLike] | np.ndarray, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Cosine of every image with every text -> (N, M); embeddings (N, D) are taken in their place."""
        images = images if _is_matrix(images) else self.encode_images(images)
        texts = texts if _is_matrix(texts) else self.encode_texts(texts)
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        return images @ texts.T

    def _embed(self, batches: Iterator[dict], name: str, count: int, batch_size: int) -> np.ndarray:
        if not count:
            raise UserError("there is nothing to embed: the list is empty")
        batch_size = _round_up(batch_size, self._mesh.size)
        x = embed_batches(self._encode, self._params, batches, name, count, batch_size, self._mesh)
        return x / np.linalg.norm(x, axis=1, keepdims=True) if self._kind.normalise else x


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
