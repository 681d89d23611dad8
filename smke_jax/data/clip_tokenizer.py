"""CLIP's byte-level BPE (two-stage spec A.1): ids between the start and the end of text, zeros after it."""

from pathlib import Path

import tokenizers

from smke_jax.data.tokenizer import Tokenizer, plain
from smke_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"


def load_clip_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads CLIP's tokenizer from a folder with tokenizer.json, or vocab.json and merges.txt; never from the network.

    A text that is too long is cut, but keeps its last token, the end of text.

    Raises:
      UserError: the folder has no tokenizer, or its start and end of text are not the two largest ids.
    """
    from transformers import CLIPTokenizerFast  # slow to import

    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file() and not (directory / "vocab.json").is_file():
        raise UserError(f"no CLIP tokenizer at {directory}: it needs tokenizer.json, or vocab.json and merges.txt")
    try:
        loaded = CLIPTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise UserError(f"the tokenizer at {directory} cannot be read: {error}") from error
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    ids = [backend.token_to_id(token) for token in (START, END)]
    size = backend.get_vocab_size()
    if ids != [size - 2, size - 1] or size < 3:
        raise UserError(f"{directory} holds no CLIP vocabulary: {START} and {END} have to be its last two tokens")
    return Tokenizer(plain(backend), pad_id=0)
