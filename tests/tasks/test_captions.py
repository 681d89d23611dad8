"""Captions without images: every caption is a row, no image is opened, and a pool without captions is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.data.sources import ArraySource
from smke_jax.errors import UserError
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.captions import captions
from smke_jax.tasks.pairs import Opened

SCENES = make_scenes(12, 4)
TEXTS = [caption for own in SCENES.train.captions for caption in own]


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)
    monkeypatch.setattr(ArraySource, "__getitem__", lambda *_: pytest.fail("an image was opened"))


def task(folder):
    return captions(keep=folder, source="scenes", vocab_size=300, max_length=12, threads=0)


def test_every_caption_is_a_row(tmp_path):
    made = task(tmp_path).finish({})
    assert made.length() == len(TEXTS) and set(made.example()) == {"text", "text_mask", "id"}
    batches = made.batches(BatchPlan(4, seed=1))
    seen = [next(batches) for _ in range(len(TEXTS) // 4)]
    ids = np.concatenate([batch["id"] for batch in seen])
    assert len(set(ids)) == len(ids), "a caption came twice in an epoch"
    for batch in seen:
        expected, mask = made.tokenizer.encode([TEXTS[i] for i in batch["id"]], 12)
        np.testing.assert_array_equal(batch["text"], expected)
        np.testing.assert_array_equal(batch["text_mask"], mask)
    halves = [next(made.batches(BatchPlan(4, seed=1, process=(p, 2))))["id"] for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), seen[0]["id"])


def test_a_split_is_read_as_it_stands(tmp_path):
    split = task(tmp_path).finish({}).split("gallery")
    count = sum(map(len, SCENES.gallery.captions))
    assert split.columns["text"].rows == count == len(split.facts["texts"])
    assert split.facts["texts"][0] == SCENES.gallery.captions[0][0]


def test_an_empty_pool_is_refused(tmp_path, monkeypatch):
    ready, bare = task(tmp_path), SimpleNamespace(dataset="scenes", num_captions=np.zeros(12, int))
    monkeypatch.setattr(Opened, "open", lambda self, split: bare)
    with pytest.raises(UserError, match="scenes has no caption in its split 'train': give a folder with captions"):
        ready.finish({}).length()


def test_networks_of_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="this task has no images: leave out the networks that take them"):
        task(tmp_path).finish({"image": 32})


def test_any_text_file_is_a_pool(tmp_path, caplog):
    """Empty lines are left out; one that is no text is skipped and counted."""
    file = tmp_path / "captions.txt"
    file.write_bytes(b"a red dog\n\n  the blue snow \na \x81\x8d\x8f\x90 line\na boat")
    with caplog.at_level("WARNING", logger="smke_jax"):
        made = captions(keep=tmp_path / "run", data=(str(file),), vocab_size=60, max_length=8, threads=0).finish({})
        texts = made.split("train").facts["texts"]
    assert list(texts) == ["a red dog", "the blue snow", "a boat"] and made.length() == 3
    assert "1 lines of" in caplog.text and "skipped: line is not UTF-8" in caplog.text
    batch = next(made.batches(BatchPlan(2, seed=0)))
    np.testing.assert_array_equal(batch["text"], made.tokenizer.encode([texts[i] for i in batch["id"]], 8)[0])
    with pytest.raises(UserError, match="captions.txt is a text file, which has no split 'dev' besides 'train'"):
        made.split("dev")
    file.with_name("empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="empty.txt has no line of text: give a file with one caption a line"):
        captions(keep=tmp_path / "other", data=(str(file.with_name("empty.txt")),), vocab_size=60)
    with pytest.raises(UserError, match="captions.txt is a text file: give text files alone"):
        captions(keep=tmp_path / "other", data=(str(file), "data/coco"))
