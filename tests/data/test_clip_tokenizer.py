"""CLIP's tokenizer on a vocabulary small enough to write down."""

import json

import numpy as np
import pytest
from made_up import clip_vocabulary

from smke_jax.data.clip_tokenizer import END, START, load_clip_tokenizer, load_vocabulary
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError

MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "' s</w>")


@pytest.fixture
def folder(tmp_path):
    return tmp_path, clip_vocabulary(tmp_path, MERGES)


def test_words_are_lowered_merged_and_framed(folder):
    directory, tokens = folder
    tokenizer = load_clip_tokenizer(directory)
    assert tokenizer.vocab_size == len(tokens)
    ids, mask = tokenizer.encode(["A  Cat's dog 12", "cat dog cat dog cat dog", ""], 10)
    words = [[tokens[i] for i in row[:n]] for row, n in zip(ids, mask.sum(1), strict=True)]
    assert words[0] == [START, "a</w>", "cat</w>", "'s</w>", "dog</w>", "1</w>", "2</w>", END]
    assert words[1] == [START, *["cat</w>", "dog</w>"] * 3, END] and words[2] == [START, END]
    assert not ids[mask == 0].any()
    cut, _ = tokenizer.encode(["cat dog cat dog cat dog"], 4)
    assert [tokens[i] for i in cut[0]] == [START, "cat</w>", "dog</w>", END]
    assert np.argmax(cut[0]) == 3, "the end of text is found as the largest id"


def test_what_is_no_clip_vocabulary_is_refused(folder, tmp_path):
    directory, tokens = folder
    with pytest.raises(UserError, match="no CLIP tokenizer at .*nowhere"):
        load_clip_tokenizer(tmp_path / "nowhere")
    vocabulary = {token: i for i, token in enumerate([START, END, *tokens[:-2]])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="have to be its last two tokens"):
        load_clip_tokenizer(directory)


def test_it_is_known_by_its_start_of_text_and_keeps_its_kind_when_saved(folder, tmp_path):
    directory, _ = folder
    tokenizer = load_vocabulary(directory)
    tokenizer.save(tmp_path / "saved")
    assert not (tmp_path / "saved/vocab.txt").exists()
    again = load_vocabulary(tmp_path / "saved")
    assert again.digest == tokenizer.digest
    for ours, theirs in zip(again.encode(["A cat's dog"], 9), tokenizer.encode(["A cat's dog"], 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    words = train_wordpiece(["a cat", "a dog"], 40)
    words.save(tmp_path / "words")
    assert load_vocabulary(tmp_path / "words").digest == words.digest
