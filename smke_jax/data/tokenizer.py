"""BERT WordPiece: captions to fixed-length ids, from a saved vocabulary or one trained on captions."""

import contextlib
import functools
import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

MANY = 500  # words of which one may lose its accent without a word
PROBE = "A red dog, 3 caf\u00e9s; \u72d7 \U0001f600"  # what any tokenizer can read
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Normaliser(NamedTuple):
    """What is done to text before it is cut into words; BERT-uncased's by default.

    lowercase:     all letters small
    strip_accents: leave out the marks on letters.  In Vietnamese, Hindi, Thai and Japanese they tell words apart
    split_cjk:     every Chinese character is a word of its own
    """

    lowercase: bool = True
    strip_accents: bool = True
    split_cjk: bool = True


UNCASED = Normaliser()


class Tokenizer:
    """Turns captions into token ids. A first token marks where a caption starts, a last one where it ends.

    Attributes:
      vocab_size: number of tokens, including the special ones.
      pad_id: the id after the end of a caption: that of BERT's [PAD], 0 for CLIP.
      mask_id: the id of BERT's [MASK]; None of a vocabulary without one, such as CLIP's.
      digest: hex sha256 of the ordered vocabulary and of what is done to text before it is looked up.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad_id: int, settings: Mapping[str, str] | None = None):
        """`settings`: class and special tokens in transformers' tokenizer_config.json; None are those of BERT."""
        self._backend, self._settings = backend, settings
        self.vocab_size = backend.get_vocab_size()
        self.pad_id = pad_id
        self.mask_id: int | None = backend.token_to_id("[MASK]")

    @functools.cached_property
    def digest(self) -> str:
        vocab = self._backend.get_vocab()
        lines = [*sorted(vocab, key=vocab.get), f"lowercase={_lowercases(self._backend)}", *_unusual(self._backend)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

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

    @property
    def special_ids(self) -> list[int]:
        """The ids of the special tokens, those of SPECIAL_TOKENS that the vocabulary has."""
        return np.flatnonzero(self._kinds[0]).tolist()

    def word_numbers(self, ids: np.ndarray) -> np.ndarray:
        """Which word of its text each token of a WordPiece belongs to: int32 (B, L), counted from 0.

        -1 at special tokens: at [CLS], [SEP], [MASK], padding, and at [UNK], which says nothing of its word.  A piece
        that begins with '##' belongs to the word of the piece before it.  Of `ids` (B, L), as `encode` makes them.
        """
        special, continues = self._kinds
        real = ~special[ids]
        begins = real & ~(continues[ids] & np.pad(real, ((0, 0), (1, 0)))[:, :-1])
        return np.where(real, np.cumsum(begins, axis=1) - 1, -1).astype(np.int32)

    @functools.cached_property
    def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each id: whether it is special, and whether it continues a word.  (V,) bool each."""
        vocab = self._backend.get_vocab()
        ordered = sorted(vocab, key=vocab.get)
        special = np.array([token in SPECIAL_TOKENS for token in ordered])
        return special, np.array([token.startswith("##") for token in ordered])

    def encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, however long, without the tokens that mark its start and its end."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def marks(self) -> tuple[int, int]:
        """The ids of the tokens that mark where a text starts and ends, such as [CLS] and [SEP]."""
        start, end = self._backend.encode("").ids
        return start, end

    def encode_pairs(
        self, firsts: Sequence[str], seconds: Sequence[str], max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One row for each pair: `[CLS] first [SEP] second [SEP]`, then padding.

        Of a pair that is too long, the last token of the longer text is left out until it fits, of two equally long
        ones that of the second (BERT's rule, Devlin et al. 2019).

        Args:
          firsts, seconds: B texts each.
          max_length: L, at least 3.

        Returns:
          ids, mask: int32 (B, L), as `encode` makes them.
          types: int32 (B, L), 1 = the second text and the [SEP] after it.
        """
        start, end = self.marks()
        ids = np.full((len(firsts), max_length), self.pad_id, np.int32)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        room = max_length - 3
        for row, (a, b) in enumerate(zip(self.encode_parts(firsts), self.encode_parts(seconds), strict=True)):
            a = a[: max(room - len(b), (room + 1) // 2)]
            b = b[: room - len(a)]
            ids[row, : len(a) + len(b) + 3] = [start, *a, end, *b, end]
            mask[row, : len(a) + len(b) + 3] = 1
            types[row, len(a) + 2 : len(a) + len(b) + 3] = 1
        return ids, mask, types

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens; lower-cased and spaced as WordPiece leaves it."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, directory: str | Path, max_length: int | None = None) -> None:
        """Writes the folder that `load_vocabulary`, transformers and tokenizers read.

        max_length: of the model it is saved for.  Then tokenizer.json cuts longer texts, as `encode` does, and pads a
          batch to its longest.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        vocab = self._backend.get_vocab()
        ordered = sorted(vocab, key=vocab.get)
        backend = self._backend
        if max_length is not None:
            backend = tokenizers.Tokenizer.from_str(backend.to_str())  # settings are shared by all threads
            backend.enable_truncation(max_length)
            backend.enable_padding(pad_id=self.pad_id, pad_token=ordered[self.pad_id])
        # Not `save`, which does not raise an OSError where the disk is full.
        (directory / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        settings = self._settings
        if settings is None:
            (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered), encoding="utf-8")
            special = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
            settings = _class_in_transformers(backend) | special
        config = {**settings, "model_input_names": ["input_ids", "attention_mask"]}
        if max_length is not None:
            config["model_max_length"] = max_length
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(directory: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Loads a BERT tokenizer from a folder with tokenizer.json and/or vocab.txt; never from the network.

    What tokenizer.json states of case, accents and words counts.  Of a vocab.txt alone, tokenizer_config.json says so,
    and without one it is taken for an uncased BERT's.

    Args:
      directory: the folder.
      vocab_size: what the model expects; None accepts any.

    Raises:
      UserError: no vocabulary there, special tokens missing, or its size differs from `vocab_size`.
    """
    directory = Path(directory)
    whole, words = directory / "tokenizer.json", directory / "vocab.txt"
    if not whole.is_file() and not words.is_file():
        raise UserError(
            f"no tokenizer at {directory}: it needs vocab.txt or tokenizer.json; "
            "train one with `smke prepare tokenizer`"
        )
    with _readable(directory):
        backend = tokenizers.Tokenizer.from_file(str(whole)) if whole.is_file() else _of_words(directory)
    vocab = backend.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing or len(vocab) <= len(SPECIAL_TOKENS):
        what = f"missing {', '.join(missing)}" if missing else f"only {len(vocab)} tokens"
        raise UserError(f"{directory} holds no BERT vocabulary ({what}): name a folder with a whole one")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"the ids at {directory} are not 0 to {len(vocab) - 1}, each once: train the vocabulary again")
    if vocab_size is not None and len(vocab) != vocab_size:
        raise UserError(
            f"the tokenizer at {directory} has {len(vocab)} tokens, the model expects {vocab_size}: "
            "use the tokenizer the model was trained with"
        )
    backend = plain(backend)
    # A vocabulary that somebody trained with the package tokenizers may have no such template, or half of one.
    backend.post_processor = _template(vocab)
    with _readable(directory):
        backend.encode(PROBE)
    return Tokenizer(backend, pad_id=vocab["[PAD]"])


@contextlib.contextmanager
def _readable(directory: Path) -> Iterator[None]:
    """Whatever the package tokenizers complains of becomes a UserError.

    Where a file contradicts itself the package panics, by an exception that is none of `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer at {directory} cannot be read: {error}") from error


def saved_tokenizer(file: bytes, pad_id: int) -> Tokenizer:
    """Of a tokenizer.json that `Tokenizer.save` wrote, unchecked; ValueError where it cannot be read."""
    try:
        return Tokenizer(plain(tokenizers.Tokenizer.from_buffer(file)), pad_id=pad_id)
    except Exception as error:  # tokenizers raises no other
        raise ValueError(str(error)) from error


def _of_words(directory: Path) -> tokenizers.Tokenizer:
    """Of a folder with vocab.txt, as transformers reads it."""
    from transformers import BertTokenizerFast  # slow to import, and training a tokenizer does without it

    own = set((directory / "vocab.txt").read_text(encoding="utf-8").splitlines())
    # transformers adds special tokens to a vocabulary that lacks them, and falls back to them alone.
    if missing := [token for token in SPECIAL_TOKENS if token not in own]:
        raise UserError(
            f"{directory} holds no BERT vocabulary (missing {', '.join(missing)}): name a folder with a whole one"
        )
    loaded = BertTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    return tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())


def train_wordpiece(captions: Iterable[str], vocab_size: int, normaliser: Normaliser = UNCASED) -> Tokenizer:
    """Trains a WordPiece vocabulary of at most `vocab_size` tokens, the same for the same captions.

    Words are split as BERT's; the special tokens take ids 0 to 4, [PAD] first.  Words that only the `normaliser` makes
    one are counted in a warning.
    """
    captions = list(captions)
    trained = _bert(tokenizers.models.WordPiece(unk_token="[UNK]"), normaliser)
    # The trainer numbers the "##x" pieces in the order of a randomly seeded hash map, and it breaks ties by number.
    # Special tokens have the order in which they are given, so the pieces are given as special tokens.
    once = _apart(captions)
    pieces = _continuations(trained, once)
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
    if normaliser.strip_accents and (warning := merged_words(once)):
        log.warning("%s", warning)

    backend = _bert(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"), normaliser)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = _template(vocab)
    return Tokenizer(backend, pad_id=vocab["[PAD]"])


def merged_words(captions: Iterable[str]) -> str:
    """What to say where words differ in accents alone, which a vocabulary without accents makes one; '' where none do.

    In a language that writes few marks, a handful of words such as café and cafe are the same word: below one in 500
    nothing is said.
    """
    cut = tokenizers.pre_tokenizers.BertPreTokenizer()
    small, bare = (tokenizers.normalizers.BertNormalizer(strip_accents=strip) for strip in (False, True))
    words = {word for text in captions for word, _ in cut.pre_tokenize_str(small.normalize_str(text))}
    found: dict[str, list[str]] = {}
    for word in sorted(words):
        found.setdefault(bare.normalize_str(unicodedata.normalize("NFC", word)), []).append(word)
    merged = [group for group in found.values() if len(group) > 1]
    count = sum(map(len, merged))
    if count * MANY <= len(words):
        return ""
    return (
        f"without accents {count} of {len(words)} words become others, such as {' and '.join(merged[0][:3])}: "
        "keep them with strip_accents=False"
    )


def _template(vocab: dict[str, int]) -> tokenizers.processors.PostProcessor:
    return tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )


def _bert(model: tokenizers.models.Model, normaliser: Normaliser) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    # BERT's own rule, None, strips accents where it lower-cases.
    strip = None if normaliser.strip_accents == normaliser.lowercase else normaliser.strip_accents
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=normaliser.lowercase, strip_accents=strip, handle_chinese_chars=normaliser.split_cjk
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    return backend


def _apart(captions: Iterable[str]) -> set[str]:
    """What stands between the spaces of all captions, each once: a million captions have few words.

    A normaliser of BERT's changes no space, and looks at nothing across one.
    """
    return {part for text in captions for part in text.split(" ")}


def _continuations(backend: tokenizers.Tokenizer, captions: Iterable[str]) -> list[str]:
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


def _parts(backend: tokenizers.Tokenizer) -> dict:
    """What the file says of normalising and of words."""
    return {key: json.loads(backend.to_str()).get(key) for key in ("normalizer", "pre_tokenizer")}


def _is_bert(parts: dict) -> bool:
    return (parts["normalizer"] or {}).get("type") == "BertNormalizer" and parts["pre_tokenizer"] == {
        "type": "BertPreTokenizer"
    }


def _unusual(backend: tokenizers.Tokenizer) -> list[str]:
    """What tells a tokenizer apart from BERT's two, cased and uncased, and from CLIP's."""
    parts = _parts(backend)
    kind = json.loads(backend.to_str())["model"].get("type")
    usual = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    if kind != "WordPiece" or (_is_bert(parts) and {**parts["normalizer"], **usual} == parts["normalizer"]):
        return []
    return [json.dumps(parts, sort_keys=True)]


def _class_in_transformers(backend: tokenizers.Tokenizer) -> dict:
    """The class that reads the files as they are.  transformers gives every BertTokenizer a normaliser of BERT's."""
    parts = _parts(backend)
    if not _is_bert(parts):
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    normaliser = parts["normalizer"]
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normaliser["lowercase"],
        "strip_accents": normaliser["strip_accents"],
        "tokenize_chinese_chars": normaliser["handle_chinese_chars"],
    }
