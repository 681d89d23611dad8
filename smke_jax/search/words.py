"""The half of a model that reads texts, kept inside an index: traced ahead of time, without the half that sees photos.

A new process then embeds a text in little more than the time that JAX needs to start.  No module is imported or built,
no parameters of image towers are read, and JAX's cache of compiled programs has the program already.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from smke_jax import atomic
from smke_jax.data.clip_tokenizer import load_vocabulary
from smke_jax.data.given import text_of
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

WORDS = "words"  # the folder in the index
FUNCTION, PARAMS, ABOUT = "function.bin", "params.safetensors", "about.json"


class TextHalf(NamedTuple):
    """What `Embedder.text_half` gives.

    run: (params, ids int32 (1, max_length), mask int32 (1, max_length)) -> embedding (1, D)
    params: of the whole model; what `run` does not read is left out here
    """

    run: Callable[[Any, jax.Array, jax.Array], jax.Array]
    params: Any
    tokenizer: Tokenizer
    max_length: int


class Words:
    """Embeds texts as the model did that the index was made with."""

    def __init__(self, run: Callable, tokenizer: Tokenizer, max_length: int):
        self._run, self._tokenizer, self._max_length = run, tokenizer, max_length

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> fp32 (N, D); UserError for one that cannot be encoded."""
        try:
            ids, mask = self._tokenizer.encode([text_of(text) for text in texts], self._max_length)
        except ValueError as error:
            raise UserError(f"the text cannot be read: {error}") from error
        rows = [np.asarray(self._run(ids[i : i + 1], mask[i : i + 1])) for i in range(len(texts))]
        return np.concatenate(rows).astype(np.float32)


def keep(index: Path, half: TextHalf, digest: str) -> None:
    """Writes `half` into the index where the index does not hold what `load` can read.

    digest: of the model
    """
    if load(index, digest) is not None:
        return
    shutil.rmtree(index / WORDS, ignore_errors=True)
    leaves, tree = jax.tree.flatten(half.params)
    text = jax.ShapeDtypeStruct((1, half.max_length), jnp.int32)

    def export(kept: Sequence[int]):
        def run(some, ids, mask):
            # The others are not read: which these are says the first export.
            every = [jnp.zeros(x.shape, x.dtype) for x in leaves]
            for place, leaf in zip(kept, some, strict=True):
                every[place] = leaf
            return half.run(jax.tree.unflatten(tree, every), ids, mask)

        some = [jax.ShapeDtypeStruct(leaves[place].shape, leaves[place].dtype) for place in kept]
        return jax.export.export(jax.jit(run))(some, text, text)

    read = export(range(len(leaves))).module_kept_var_idx
    kept = [place for place in read if place < len(leaves)]
    function = export(kept).serialize()
    params = safetensors.numpy.save({f"{i:05}": np.asarray(leaves[x], order="C") for i, x in enumerate(kept)})
    about = {"max_length": half.max_length, "crc": zlib.crc32(params, zlib.crc32(function)), **_made_for(digest)}
    with atomic.replacing(index / WORDS) as folder:
        folder.mkdir()
        (folder / FUNCTION).write_bytes(function)
        (folder / PARAMS).write_bytes(params)
        half.tokenizer.save(folder)
        (folder / ABOUT).write_text(json.dumps(about))
    load(index, digest).encode_texts(["a photo"])  # compiles, which JAX's cache of programs keeps


def load(index: Path, digest: str) -> Words | None:
    """What `keep` wrote for the model of that digest; None where it is missing, damaged or of another JAX or device."""
    folder = index / WORDS
    try:
        about = parse_json((folder / ABOUT).read_bytes())
        function, params = ((folder / name).read_bytes() for name in (FUNCTION, PARAMS))
        crc, max_length = about.pop("crc"), about.pop("max_length")
        tokenizer = load_vocabulary(folder)
    except (OSError, ValueError, AttributeError, KeyError, UserError):
        return None
    if about != _made_for(digest) or crc != zlib.crc32(params, zlib.crc32(function)):
        return None
    by_name = safetensors.numpy.load(params)
    values = jax.device_put([by_name[name] for name in sorted(by_name)])
    call = jax.jit(jax.export.deserialize(bytearray(function)).call)
    return Words(lambda ids, mask: call(values, ids, mask), tokenizer, max_length)


def _made_for(digest: str) -> dict[str, str]:
    return {"digest": digest, "jax": jax.__version__, "platform": jax.default_backend()}
