"""The task of labelled images: its batches, its evaluated splits, and what it refuses."""

import numpy as np
import pytest
from made_up import jpeg, write

from smke_jax.errors import UserError
from smke_jax.tasks.base import BatchPlan
from smke_jax.tasks.labelled_images import labelled_images


@pytest.fixture
def flowers(tmp_path):
    return write(tmp_path / "flowers", {f"train/{c}/{i}.jpg": jpeg(i + 50 * k) for k, c in enumerate("abc")
                                        for i in range(8)})  # fmt: skip


def task_of(folder, size=16, **fields):
    return labelled_images(data=str(folder), held_back=0.25, **fields).finish({"image": size})


def test_a_batch_has_the_label_of_each_image(flowers):
    task = task_of(flowers, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    assert task.facts == {"num_images": 18, "classes": 3, "class_names": ["a", "b", "c"]} and task.length() == 18
    source = task.split("train")
    batch = next(task.batches(BatchPlan(9, 0)))
    shapes = {name: (x.shape[1:], x.dtype) for name, x in batch.items()}
    assert shapes == {name: (x.shape, x.dtype) for name, x in task.example().items()}
    np.testing.assert_array_equal(batch["label"], source.facts["labels"][batch["id"]])
    assert len(set(batch["label"].tolist())) == 3


def test_labels_alone_open_no_image(flowers, monkeypatch):
    monkeypatch.setattr("smke_jax.data.pipeline.open_image", None)
    batch = next(task_of(flowers).batches(BatchPlan(4, 0, arrays=frozenset(("label", "id")))))
    assert set(batch) == {"label", "id"}


def test_a_damaged_photo_is_replaced_with_its_label(flowers):
    write(flowers, {f"train/a/{i}.jpg": b"broken" for i in range(7)})
    task = task_of(flowers)
    batches = task.batches(BatchPlan(6, 1))
    labels = task.split("train").facts["labels"]
    for _ in range(3):
        batch = next(batches)
        np.testing.assert_array_equal(batch["label"], labels[batch["id"]])
    assert batches.damaged >= 4


def test_the_place_in_the_data_can_be_saved(flowers):
    batches = task_of(flowers, rand_magnitude=9.0, erasing=0.5).batches(BatchPlan(6, 1))
    next(batches)
    state, second = batches.get_state(), next(batches)
    batches.set_state(state)
    again = next(batches)
    for name in second:
        np.testing.assert_array_equal(again[name], second[name])


def test_augmentation_changes_what_is_trained_on_and_not_what_is_evaluated(flowers):
    plain, strong = task_of(flowers, in_memory=True), task_of(flowers, in_memory=True, rand_magnitude=9.0, erasing=1.0)
    batches = [next(task.batches(BatchPlan(8, 3))) for task in (plain, strong)]
    np.testing.assert_array_equal(batches[0]["id"], batches[1]["id"])
    assert np.any(batches[0]["image"] != batches[1]["image"])
    evaluated = [task.split("dev").columns["image"].read([0, 5]) for task in (plain, strong)]
    np.testing.assert_array_equal(*evaluated)
    assert evaluated[0].shape == (2, 16, 16, 3)
    # The centre of a 40 x 30 photo at 30 px is its middle.
    split = task_of(flowers, size=30).split("dev")
    np.testing.assert_array_equal(split.columns["image"].read([1])[0], split.facts["pixels"](1)[:, 5:35])


def test_data_of_other_classes_is_refused(flowers, tmp_path):
    other = write(tmp_path / "other", {f"train/{c}/{i}.jpg": jpeg(i) for c in "xyz" for i in range(8)})
    draft = labelled_images(data=str(other), known={"classes": 3, "class_names": ["a", "b", "c"]}, held_back=0.25)
    with pytest.raises(UserError, match=r"other has other classes \(x, y, z …\) than the run \(a, b, c …\)"):
        draft.finish({"image": 16}).split("dev")


def test_a_plan_opens_nothing_where_the_layout_says_how_many_classes_there_are():
    task = labelled_images(layout="cifar100", data="nowhere", known={"num_images": 0}).finish({"image": 16})
    assert task.facts["classes"] == len(task.facts["class_names"]) == 100 and "label" in task.example()
    with pytest.raises(UserError, match="no folder at nowhere"):
        labelled_images(data="nowhere", known={"num_images": 0})


def test_what_cannot_be_made_is_refused(flowers):
    with pytest.raises(UserError, match="no network takes the images"):
        labelled_images(data=str(flowers)).finish({})
    with pytest.raises(UserError, match="teacher_image: this task has one view"):
        labelled_images(data=str(flowers)).finish({"teacher_image": 8})
    with pytest.raises(UserError, match="rand_magnitude is 12"):
        labelled_images(data=str(flowers), rand_magnitude=12)
