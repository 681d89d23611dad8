"""BERT WordPiece: captions to fixed-length ids, from a saved vocabulary or one trained on captions."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from smke_jax.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Turns captions into token ids. A first token marks where a caption starts, a last one where it ends.

    Attributes:
      vocab_size: number of tokens, including the special ones.
      pad_id: the id after the end of a caption: that of BERT's [PAD], 0 for CLIP.
      digest: hex sha256 of the ordered vocabulary and of whether text is lower-cased.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, lowercase: bool, pad_id: int, settings: Mapping[str, str] | None = None
    ):
        """`settings`: of transformers' tokenizer_config.json; None are those of BERT."""
        self._backend, self._lowercase, self._settings = backend, lowercase, settings
        vocab = backend.get_vocab()
        ordered = sorted(vocab, key=vocab.get)
        self.vocab_size = len(ordered)
        self.pad_id = pad_id
        self.digest = hashlib.sha256("\n".join([*ordered, f"lowercase={lowercase}"]).encode()).hexdigest()

    def encode(self, captions: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """One row for each caption: `[CLS] tokens [SEP]`, or CLIP's start and end around the tokens, then padding.

        Of a caption that is too long, the last tokens are left out; the row still ends with [SEP].

        Args:
          captions: B texts.
          max_length: L, at least 3.

        Returns:
          ids: int32 (B, L).
          mask: int32 (B, L), 1 = token, 0 = padding.
        """
        ids = np.full((len(captions), max_length), self.pad_id, np.int32)
        mask = np.zeros((len(captions), max_length), np.int32)
        # The cut is made here: the backend's own truncation is a setting shared by all threads.
        for row, encoding in enumerate(self._backend.encode_batch_fast(list(captions))):
            tokens = encoding.ids
            if len(tokens) > max_length:
                tokens = tokens[: max_length - 1] + tokens[-1:]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens; lower-cased and spaced as WordPiece leaves it."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, directory: str | Path) -> None:
        """Writes the folder that `load_vocabulary`, transformers and tokenizers read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # Not `save`, which does not raise an OSError where the disk is full.
        (directory / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        config = self._settings
        if config is None:
            vocab = self._backend.get_vocab()
            lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get))
            (directory / "vocab.txt").write_text(lines, encoding="utf-8")
            config = {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": self._lowercase,
                **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
            }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(directory: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Loads a BERT tokenizer from a folder with tokenizer.json and/or vocab.txt; never from the network.

    Args:
      directory: the folder.
      vocab_size: what the model expects; None accepts any.

    Raises:
      UserError: no vocabulary there, special tokens missing, or its size differs from `vocab_size`.
    """
    from transformers import BertTokenizerFast  # slow to import, and training a tokenizer does without it

    directory = Path(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"no tokenizer at {directory}: it needs vocab.txt or tokenizer.json; "
            "train one with `smke prepare tokenizer`"
        )
    try:
        loaded = BertTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise UserError(f"the tokenizer at {directory} cannot be read: {error}") from error
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    vocab = backend.get_vocab()
    # transformers adds special tokens to a vocabulary that lacks them, and falls back to them alone.
    own = backend.get_vocab(with_added_tokens=False)
    missing = [token for token in SPECIAL_TOKENS if token not in own]
    if missing or len(vocab) <= len(SPECIAL_TOKENS):
        what = f"missing {', '.join(missing)}" if missing else f"only {len(vocab)} tokens"
        raise UserError(f"{directory} holds no BERT vocabulary ({what}): name a folder with a whole one")
    if vocab_size is not None and len(vocab) != vocab_size:
        raise UserError(
            f"the tokenizer at {directory} has {len(vocab)} tokens, the model expects {vocab_size}: "
            "use the tokenizer the model was trained with"
        )
    return Tokenizer(plain(backend), lowercase=_lowercases(backend), pad_id=vocab["[PAD]"])


def train_wordpiece(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains an uncased WordPiece vocabulary of at most `vocab_size` tokens, the same for the same captions.

    Normalisation and word splitting are BERT-uncased's; the special tokens take ids 0 to 4, [PAD] first.
    """
    captions = list(captions)
    trained = _uncased(tokenizers.models.WordPiece(unk_token="[UNK]"))
    # The trainer numbers the "##x" pieces in the order of a randomly seeded hash map, and it breaks ties by number.
    # Special tokens have the order in which they are given, so the pieces are given as special tokens.
    pieces = _continuations(trained, captions)
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(SPECIAL_TOKENS)),
        special_tokens=[*SPECIAL_TOKENS, *pieces],
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    vocab = trained.get_vocab()
    if len(vocab) <= len(SPECIAL_TOKENS):
        raise UserError("no words to train a tokenizer on: the captions are empty")
    if len(vocab) > vocab_size:
        raise UserError(f"vocab_size={vocab_size} is too small: the letters alone take {len(vocab)} tokens")

    backend = _uncased(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return Tokenizer(backend, lowercase=True, pad_id=vocab["[PAD]"])


def _uncased(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    return backend


def _continuations(backend: tokenizers.Tokenizer, captions: list[str]) -> list[str]:
    """ "##x" for every character x that continues a word, in order."""
    characters = set()
    for caption in captions:
        text = backend.normalizer.normalize_str(caption)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            characters.update(word[1:])
    return [f"##{character}" for character in sorted(characters)]


def plain(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer without truncation and padding of its own; `Tokenizer.encode` cuts and pads."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def _lowercases(backend: tokenizers.Tokenizer) -> bool:
    return backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"
