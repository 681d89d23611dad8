"""A share of the images: smaller ones are parts of larger ones, and what a run is evaluated on stays whole."""

import numpy as np
import pytest
from made_up import jpeg

from smke_jax.data import datasets
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.pairs import images, pairs

SHARES = (0.01, 0.1, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fraction")
    items = [Item(f"{i}.jpg", [f"photo {i}", f"number {i}"], jpeg(i), "row", 1000 - i) for i in range(41)]
    build({"train": items[:37], "dev": items[37:]}, root, dataset="made_up", skips=Skips())
    return root


def opened(folder, share, **fields):
    return images(data=(str(folder),), data_fraction=share, **fields).finish({"image": 8})


def names_of(task):
    split = task.split("train")
    return {tuple(split.facts["captions"][i] for i in np.flatnonzero(split.facts["caption_image"] == row))
            for row in range(split.columns["image"].rows)}  # fmt: skip


@pytest.mark.parametrize("in_memory", [False, True])
def test_shares_are_nested_and_what_is_evaluated_stays_whole(folder, in_memory):
    tasks = [opened(folder, share, in_memory=in_memory) for share in SHARES]
    assert [task.length() for task in tasks] == [1, 4, 10, 19, 37]  # of 37, rounded up
    assert [task.facts["num_images"] for task in tasks] == [1, 4, 10, 19, 37]
    chosen = [names_of(task) for task in tasks]
    for smaller, larger in zip(chosen, chosen[1:]):
        assert smaller < larger
    assert {task.split("dev").columns["image"].rows for task in tasks} == {4}
    assert len({task.split("dev").digest for task in tasks}) == 1
    assert len({task.identity()["data"] for task in tasks}) == len(SHARES), "a run is of one share alone"
    whole = images(data=(str(folder),)).finish({"image": 8})
    assert tasks[-1].identity() == whole.identity(), "all of the data is what it was without this field"


def test_a_run_sees_no_other_images_than_its_share(folder):
    draft = pairs(keep=None, data=(str(folder),), data_fraction=0.25, vocab_size=60, max_length=8, unit="images")
    task = draft.finish({"image": 8})
    batches = task.batches(BatchPlan(5, 0, (0, 1), frozenset({"id", "image"})))
    seen = np.concatenate([next(batches)["id"] for _ in range(8)])
    assert sorted(set(seen)) == list(range(10)) and task.facts["num_images"] == 10
    assert task.counts("train")[0]["images"] == 10


def test_drawn_scenes_too(monkeypatch):
    scenes = make_scenes(96, 16)
    monkeypatch.setattr(datasets, "scenes", lambda *_: scenes)
    task = images(source="scenes", data_fraction=0.5).finish({"image": 32})
    assert task.length() == 48 and task.split("gallery").columns["image"].rows == 16


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_no_share_at_all_is_refused(folder, share):
    with pytest.raises(UserError, match="data_fraction is .*: give a share above 0 and at most 1"):
        opened(folder, share)
