"""The half of a model that reads texts, kept inside an index: traced ahead of time, without the half that sees photos.

A new process then embeds a text in little more than the time that JAX needs to start.  No module is imported or built,
no parameters of image towers are read, and the cache of compiled programs has the program already.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from smke_jax.data.given_texts import text_of
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError
from smke_jax.parallel import kept_programs
from smke_jax.search import words_files
from smke_jax.search.words_files import WORDS


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
    function, params = export(kept).serialize(), [np.asarray(leaves[place]) for place in kept]
    words_files.write(index, bytes(function), params, half.tokenizer, half.max_length, _made_for(digest))
    load(index, digest)  # compiles, and the cache keeps that
    load(index, digest).encode_texts(["a photo"])  # by the one from the cache, as a search has it


def load(index: Path, digest: str) -> Words | None:
    """What `keep` wrote for the model of that digest; None where it is missing, damaged or of another JAX or device."""
    return opened(words_files.read(index), digest)


def opened(kept: words_files.Kept | None, digest: str) -> Words | None:
    """`load` of what has been read already."""
    if kept is None or kept.made_for != _made_for(digest):
        return None
    params = jax.device_put(kept.params)
    run = _compiled(kept.function, params, kept.max_length)
    return Words(lambda ids, mask: run(params, ids, mask), kept.tokenizer, kept.max_length)


def _made_for(digest: str) -> dict[str, str]:
    return {"digest": digest, "jax": jax.__version__, "platform": jax.default_backend()}


def _compiled(function: bytes, params: list[jax.Array], max_length: int) -> Callable:
    """The exported function for one text, compiled, from the cache of compiled programs where it lies there.

    JAX keeps compiled programs, too, but it finds them by the lowered program, and lowering takes longer than all else.
    """
    text = jax.ShapeDtypeStruct((1, max_length), jnp.int32)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in params]
    name = kept_programs.fingerprint(function)
    kept = kept_programs.read(WORDS, name)
    if kept is not None:
        try:
            return kept_programs.load(kept.program, (shapes, text, text), 0)
        except Exception as error:  # another JAX's may end in any
            kept_programs.refused(WORDS, name, str(error))
    run, program = kept_programs.compiled(
        jax.jit(jax.export.deserialize(bytearray(function)).call).lower(shapes, text, text)
    )
    if program:
        kept_programs.write(WORDS, name, {}, program)
    return run
