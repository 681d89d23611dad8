"""The tasks over images and captions: what is refused, what is read when, and how long it is kept."""

import shutil

import pytest
from made_up import jpeg

from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.sources import PreparedSource
from smke_jax.errors import UserError
from smke_jax.tasks import images, pairs

CAPTIONS = [[f"picture {i} caption {k}" for k in range(1 + i % 3)] for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", CAPTIONS)
    return tmp_path / "data"


def write(folder, captions):
    items = [Item(f"{i}.jpg", texts, jpeg(i), "row") for i, texts in enumerate(captions)]
    build({"train": items, "dev": items[:4]}, folder, dataset="x", skips=Skips())


def task(folder, tmp_path, **fields):
    return pairs(keep=tmp_path / "run", data=(str(folder),), max_length=12, **fields).finish({"image": 8})


@pytest.mark.parametrize("views", [0, 3])
def test_a_number_of_views_that_is_not_made_is_refused(views):
    with pytest.raises(UserError, match=f"views is {views}: give 1, or 2"):
        images(source="scenes", views=views)


def test_captions_of_a_split_are_read_when_they_are_asked_for(folder, tmp_path, monkeypatch):
    opened = task(folder, tmp_path)
    read = []
    monkeypatch.setattr(PreparedSource, "all_captions", lambda self: pytest.fail("all captions are read"))
    captions_of = PreparedSource.captions
    monkeypatch.setattr(PreparedSource, "captions", lambda self, i: read.append(i) or captions_of(self, i))
    split = opened.split("dev")
    captions = split.facts["captions"]
    assert len(captions) == split.columns["text"].rows == len(split.facts["caption_image"]) == 7 and not read
    assert captions[3] == "picture 2 caption 0" and read == [2]
    assert list(captions) == [text for texts in CAPTIONS[:4] for text in texts]
    decoded = [opened.tokenizer.decode(row) for row in split.columns["text"].read([6, 1])]
    assert decoded == ["picture 3 caption 0", "picture 1 caption 0"]
    for row in (-1, 7):
        with pytest.raises(IndexError, match="has 7 captions"):
            captions[row]


def test_a_task_opens_a_split_once_and_the_next_task_opens_it_anew(folder, tmp_path, monkeypatch):
    read, item = [], PreparedSource.__getitem__
    monkeypatch.setattr(PreparedSource, "__getitem__", lambda self, i: read.append(i) or item(self, i))
    first = task(folder, tmp_path, in_memory=True)
    assert len(read) == 5
    for _ in range(2):
        first.split("dev").columns["image"].read([0, 1])
    assert len(read) == 5 + 4
    digest = first.split("dev").digest
    shutil.rmtree(folder)
    write(folder, CAPTIONS[::-1])
    assert first.split("dev").digest == digest
    assert task(folder, tmp_path, in_memory=True).split("dev").digest != digest


def test_a_task_says_with_how_many_threads_its_splits_are_read(folder, tmp_path):
    assert task(folder, tmp_path, threads=5).threads == 5
    assert images(data=(str(folder),), threads=3).finish({"image": 8}).threads == 3
