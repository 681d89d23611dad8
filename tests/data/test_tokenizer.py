"""The tokenizer agrees with transformers, and refuses a vocabulary that is none."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, BertTokenizerFast

from smke_jax.data.tokenizer import SPECIAL_TOKENS, Normaliser, load_tokenizer, train_wordpiece
from smke_jax.errors import UserError

CAPTIONS = [
    "A brown dog runs over the green grass .",
    "Two dogs are playing with a red ball in the snow .",
    "A girl in a pink dress climbs the stairs of a wooden playhouse .",
    "Überraschung: a café's naïve façade!",
    "",
]


@pytest.fixture(scope="module")
def trained():
    return train_wordpiece(CAPTIONS * 3, 150)


@pytest.fixture(scope="module")
def directory(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    trained.save(path)
    return path


def test_special_tokens_come_first(directory):
    assert (directory / "vocab.txt").read_text().splitlines()[:5] == list(SPECIAL_TOKENS)


def test_encode_is_cls_tokens_sep_padding(trained):
    ids, mask = trained.encode(CAPTIONS, 40)
    assert ids.shape == mask.shape == (5, 40) and ids.dtype == mask.dtype == np.int32
    assert trained.pad_id == 0
    for row, row_mask in zip(ids, mask):
        n = row_mask.sum()
        assert (row_mask[:n] == 1).all() and (row_mask[n:] == 0).all() and (row[n:] == 0).all()
        assert row[0] == 2 and row[n - 1] == 3
    assert mask[-1].sum() == 2  # an empty caption is [CLS] [SEP]


def test_truncation_keeps_both_ends(trained):
    whole, _ = trained.encode(CAPTIONS[:1], 40)
    ids, mask = trained.encode(CAPTIONS[:1], 6)
    assert mask.all()
    np.testing.assert_array_equal(ids[0, :5], whole[0, :5])
    assert ids[0, 5] == 3


@pytest.mark.parametrize("max_length", [5, 12, 64])
def test_same_ids_as_transformers(trained, directory, max_length):
    theirs = BertTokenizerFast.from_pretrained(directory, local_files_only=True)(
        CAPTIONS, max_length=max_length, truncation=True, padding="max_length", return_tensors="np"
    )
    for tokenizer in (trained, load_tokenizer(directory)):
        ids, mask = tokenizer.encode(CAPTIONS, max_length)
        np.testing.assert_array_equal(ids, theirs["input_ids"])
        np.testing.assert_array_equal(mask, theirs["attention_mask"])


def test_load_needs_only_one_of_the_files(trained, directory, tmp_path):
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes((directory / name).read_bytes())
        loaded = load_tokenizer(tmp_path / name, vocab_size=trained.vocab_size)
        assert loaded.digest == trained.digest
        np.testing.assert_array_equal(loaded.encode(CAPTIONS, 30)[0], trained.encode(CAPTIONS, 30)[0])


def test_saved_padding_and_truncation_are_ignored(trained, directory, tmp_path):
    saved = json.loads((directory / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    ids, mask = load_tokenizer(tmp_path).encode(CAPTIONS, 30)
    np.testing.assert_array_equal(ids, trained.encode(CAPTIONS, 30)[0])
    np.testing.assert_array_equal(mask, trained.encode(CAPTIONS, 30)[1])


def test_digest_tells_case_and_vocabulary_apart(trained, directory, tmp_path):
    assert train_wordpiece(CAPTIONS * 3, 140).digest != trained.digest
    (tmp_path / "vocab.txt").write_bytes((directory / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).digest != trained.digest


def test_training_is_the_same_in_every_process(trained):
    program = (
        "from smke_jax.data.tokenizer import train_wordpiece; import sys, json;"
        "print(train_wordpiece(json.loads(sys.argv[1]), 150).digest)"
    )
    for threads in "13":
        result = subprocess.run(
            [sys.executable, "-c", program, json.dumps(CAPTIONS * 3)],
            env={**os.environ, "RAYON_NUM_THREADS": threads}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == trained.digest


def test_mistakes_are_named(directory, tmp_path):
    with pytest.raises(UserError, match="vocab.txt or tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"has \d+ tokens, the model expects 30522"):
        load_tokenizer(directory, vocab_size=30522)
    (tmp_path / "vocab.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    with pytest.raises(UserError, match=r"missing \[PAD\], \[UNK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in SPECIAL_TOKENS))
    with pytest.raises(UserError, match="only 5 tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_half_a_template_is_none(directory, tmp_path):
    """The package tokenizers panics at it, by an exception that is none of `Exception`."""
    said = json.loads((directory / "tokenizer.json").read_text())
    del said["post_processor"]["special_tokens"]["[SEP]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    assert load_tokenizer(tmp_path).encode(["a dog"], 6)[0][0, [0, 3]].tolist() == [2, 3]


def test_training_needs_words_and_room():
    with pytest.raises(UserError, match="no words"):
        train_wordpiece(["", "  "], 100)
    with pytest.raises(UserError, match="vocab_size=8 is too small"):
        train_wordpiece(CAPTIONS, 8)


def test_words_that_look_special_do_not_break_training():
    tokenizer = train_wordpiece(["a [SEP] dog ##ing [MASK]"] * 3, 60)
    ids, _ = tokenizer.encode(["dog"], 8)
    assert 1 not in ids


def own_tokenizer(normaliser, with_template: bool) -> tokenizers.Tokenizer:
    """A vocabulary as people train it with the package tokenizers."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normaliser, tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(SPECIAL_TOKENS))
    backend.train_from_iterator(["Má mà ma Ma Café Cafe", "ein Hund ."] * 3, trainer)
    if with_template:
        ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return backend


@pytest.mark.parametrize("with_template", [True, False])
@pytest.mark.parametrize(
    "normaliser",
    [
        None,
        tokenizers.normalizers.NFC(),
        tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]),
        tokenizers.normalizers.BertNormalizer(lowercase=False),
        tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False),
    ],
)
@pytest.mark.parametrize("config", [None, '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'])
def test_a_files_own_normaliser_counts(normaliser, with_template, config, tmp_path):
    backend = own_tokenizer(normaliser, with_template)
    backend.save(str(tmp_path / "tokenizer.json"))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(config)
    texts = ["Má mà ma Ma", "Café Cafe"]
    words = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    expected = [[2, *row, 3] for row in words]
    loaded = load_tokenizer(tmp_path)
    assert [row[: sum(m)].tolist() for row, m in zip(*loaded.encode(texts, 30))] == expected
    loaded.save(tmp_path / "again", 30)
    again = load_tokenizer(tmp_path / "again")
    assert again.digest == loaded.digest
    np.testing.assert_array_equal(again.encode(texts, 30)[0], loaded.encode(texts, 30)[0])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again", local_files_only=True)
    assert [theirs(text)["input_ids"] for text in texts] == expected


def test_the_digest_knows_the_normaliser(tmp_path):
    digests = set()
    for number, normaliser in enumerate((None, tokenizers.normalizers.NFC(), tokenizers.normalizers.NFKC())):
        directory = tmp_path / str(number)
        directory.mkdir()
        own_tokenizer(normaliser, True).save(str(directory / "tokenizer.json"))
        digests.add(load_tokenizer(directory).digest)
    assert len(digests) == 3


def test_what_is_saved_cuts_and_pads_as_the_model_reads(trained, tmp_path):
    texts = [" ".join(CAPTIONS), "a dog"]
    trained.save(tmp_path, 12)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids, mask = trained.encode(texts, 12)
    assert [x.ids for x in backend.encode_batch(texts)] == ids.tolist()
    assert [x.attention_mask for x in backend.encode_batch(texts)] == mask.tolist()
    assert backend.encode(texts[0]).ids == ids[0].tolist() and len(backend.encode("a dog").ids) == 4
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs(texts, truncation=True, padding=True)["input_ids"] == ids.tolist()
    assert load_tokenizer(tmp_path).encode(texts, 40)[1][0].sum() > 12  # the run cuts by its own length


VIETNAMESE = ["con chó đang chạy", "con cho đẹp", "má mà ma mả", "trời đẹp"]


def test_accents_are_kept_on_request_and_missed_with_a_warning(caplog):
    merged = train_wordpiece(VIETNAMESE, 80)
    assert "words become others, such as cho and chó" in caplog.text and "strip_accents=False" in caplog.text
    assert len(set(map(tuple, merged.encode(["ma", "má", "mà"], 5)[0]))) == 1
    caplog.clear()
    kept = train_wordpiece(VIETNAMESE, 80, Normaliser(strip_accents=False))
    assert len(set(map(tuple, kept.encode(["ma", "má", "mà"], 5)[0]))) == 3 and not caplog.text
    assert kept.decode(kept.encode(["Má"], 5)[0][0]) == "má"
    assert len({kept.digest, merged.digest, train_wordpiece(VIETNAMESE, 80, Normaliser(lowercase=False)).digest}) == 3


@pytest.mark.parametrize("words", ["कि कु का के", "น้ำ นำ นา น่า", "が か ぎ き"])
def test_other_scripts_are_noticed(words, caplog):
    train_wordpiece([words, "x"], 60)
    assert "words become others" in caplog.text


def test_a_few_french_words_are_not_warned_of(caplog):
    train_wordpiece([*(f"word{i}" for i in range(1200)), "café cafe"], 500)
    assert not caplog.text


def test_case_and_chinese_characters():
    captions = ["Der Hund", "der hund", "黑色的狗 黑狗"]
    cased = train_wordpiece(captions, 80, Normaliser(lowercase=False))
    assert cased.decode(cased.encode(["Der Hund"], 9)[0][0]) == "Der Hund"
    split, whole = (train_wordpiece(captions, 80, Normaliser(split_cjk=x)) for x in (True, False))
    assert "黑狗" in whole._backend.get_vocab() and "黑狗" not in split._backend.get_vocab()


def test_looking_at_each_word_once_changes_nothing(monkeypatch, caplog):
    """Spaces of every kind, controls inside words, marks that stand alone or after a space, Chinese, final sigma."""
    captions = [
        "Caf\u00e9 cafe\u0301 cafe", "a\x1cb a\u00a0c  d\te\u2009f\x85g", " \u0301x y\u0301\u0323", "ΟΔΟΣ οδος İ",
        "人在跑步", "", "   ", "end-of.word, it's",
    ]  # fmt: skip
    found = train_wordpiece(captions, 200), caplog.text
    caplog.clear()
    monkeypatch.setattr("smke_jax.data.tokenizer._apart", list)
    assert (train_wordpiece(captions, 200).digest, caplog.text) == (found[0].digest, found[1])
    assert "become others, such as" in found[1]
