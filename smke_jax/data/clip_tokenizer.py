"""CLIP's byte-level BPE (two-stage spec A.1): ids between the start and the end of text, zeros after it."""

from pathlib import Path

import tokenizers

from smke_jax.data.tokenizer import Tokenizer, load_tokenizer, plain
from smke_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
SETTINGS = {
    "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END,
}  # fmt: skip


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
    return Tokenizer(plain(backend), pad_id=0, settings=SETTINGS)


def load_vocabulary(directory: str | Path) -> Tokenizer:
    """CLIP's tokenizer where one lies in that folder, else BERT's.  Raises UserError as their own functions do."""
    directory = Path(directory)
    file = next((directory / name for name in ("tokenizer.json", "vocab.json") if (directory / name).is_file()), None)
    is_clip = file is not None and START in file.read_text(encoding="utf-8", errors="ignore")
    return load_clip_tokenizer(directory) if is_clip else load_tokenizer(directory)
