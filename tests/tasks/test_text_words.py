"""Which word each token belongs to: in batches that ask for it, in splits, and only with a vocabulary of BERT's."""

import numpy as np
import pytest
import tiny  # noqa: F401 (the source 'tiny')

from smke_jax.data.tokenizer import Tokenizer
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.pairs import of_text, pairs


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return pairs(keep=folder, source="tiny", vocab_size=40, max_length=9)


def plan(*arrays):
    return BatchPlan(8, 0, arrays=frozenset(arrays))


def test_batches_and_splits_say_which_word_a_token_belongs_to(draft):
    task = draft.finish({"image": 8})
    assert draft.facts["mask_token"] == task.tokenizer.mask_id and task.tokenizer.decode([5])
    assert draft.facts["special_tokens"] == [0, 1, 2, 3, 4], "they come first in a vocabulary of our own"
    batch = next(task.batches(plan("text", "text_mask", "text_words", "id")))
    np.testing.assert_array_equal(batch["text_words"], task.tokenizer.word_numbers(batch["text"]))
    assert set(batch) == {"text", "text_mask", "text_words", "id"} <= set(task.example())
    # Four words to a caption, a few of them in pieces; the start, the end and the padding are no words.
    assert batch["text_words"].max() <= 3 and np.all(batch["text_words"][:, 0] == -1)
    assert np.array_equal((batch["text_words"] >= 0).sum(axis=1), batch["text_mask"].sum(axis=1) - 2)
    columns = task.split("dev").columns
    rows = list(range(columns["text"].rows))
    ids, words = (np.stack(columns[name].read(rows)) for name in ("text", "text_words"))
    np.testing.assert_array_equal(words, task.tokenizer.word_numbers(ids))


def test_who_does_not_read_them_gets_none(draft):
    assert "text_words" not in next(draft.finish({"image": 8}).batches(plan("text", "text_mask", "id")))


def test_a_vocabulary_without_a_mask_has_none(monkeypatch, draft, tmp_path):
    init = Tokenizer.__init__

    def without(self, *args, **options):
        init(self, *args, **options)
        self.mask_id = None

    monkeypatch.setattr(Tokenizer, "__init__", without)
    other = pairs(keep=tmp_path, source="tiny", vocab_size=40, max_length=9)
    task = other.finish({"image": 8})
    assert "mask_token" not in other.facts and of_text(task.tokenizer) == ("text", "text_mask")
    assert "text_words" not in task.example() and "text_words" not in task.split("dev").columns
