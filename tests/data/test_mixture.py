"""Several prepared folders as one source: numbering, caps, weights, digest, and training on them."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from made_up import Damaged, jpeg, prepare, write

from smke_jax.data.mixture import Mixture, open_mixture
from smke_jax.data.name_order import name_order
from smke_jax.data.pipeline import InMemorySource, epoch_rows, pixels, train_batches
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError

SIZES = {"coco": 12, "cc3m": 30, "cc12m": 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    for k, (name, size) in enumerate(SIZES.items()):
        items = [
            Item(f"{name}-{i}.jpg", [f"{name} {i} {c}" for c in range(1 + i % 3)], jpeg(100 * k + i), "row", 1000 - i)
            for i in range(size)
        ]
        splits = {"train": items} | ({"dev": items[:2]} if name == "coco" else {})
        build(splits, root / name, dataset=name, skips=Skips())
    return [root / name for name in SIZES]


def views(image, rng):
    return {"image": np.asarray(image)[:4, :4]}


def take(source, count, **changes):
    options = {"batch_size": 4, "seed": 0, "unit": "images", "threads": 1, **changes}
    iterator = train_batches(source, views, **options)
    return [next(iterator) for _ in range(count)]


def test_images_are_numbered_through_in_the_order_of_the_folders(folders):
    mixture, parts = open_mixture(folders, "train"), [open_prepared(folder, "train") for folder in folders]
    examples = [example for part in parts for example in part]
    assert len(mixture) == 47 and list(mixture) == examples
    assert mixture.names == [example.name for example in examples]
    assert mixture.all_captions() == [example.captions for example in examples]
    assert [mixture.captions(i) for i in range(47)] == mixture.all_captions()
    np.testing.assert_array_equal(mixture.num_captions, [len(example.captions) for example in examples])
    np.testing.assert_array_equal(mixture.image_ids, np.concatenate([part.image_ids for part in parts]))
    assert mixture.image_ids.dtype == np.int64 and mixture.num_captions.dtype == mixture.repeats.dtype == np.int32
    assert mixture.dataset == "coco+cc3m+cc12m" and mixture.split == "train" and set(mixture.repeats) == {1}
    assert mixture[np.int64(12)] == parts[1][0]
    for index in (47, -1):
        for read in (mixture.__getitem__, mixture.captions):
            with pytest.raises(IndexError):
                read(index)


def test_caps_take_nested_sets_that_stay_in_order(folders):
    names = {cap: open_mixture(folders, "train", caps=[0, cap, None]).names for cap in (3, 10, 29)}
    whole = open_mixture(folders, "train").names
    for cap, taken in names.items():
        assert len(taken) == 12 + cap + 5 and taken == [name for name in whole if name in set(taken)]
    assert set(names[3]) < set(names[10]) < set(names[29]) < set(whole)
    assert names[3][12:15] != whole[12:15]
    mixture = open_mixture(folders, "train", caps=[0, 10, 0])
    assert [example.name for example in mixture] == mixture.names
    assert [texts[0].rpartition(" ")[0] for texts in mixture.all_captions()] == [
        name.replace("-", " ").removesuffix(".jpg") for name in mixture.names
    ]


def test_the_images_taken_do_not_depend_on_the_other_folders_or_their_order(folders):
    one = set(open_mixture(folders[1:2], "train", caps=[7]).names)
    assert one < set(open_mixture(folders[::-1], "train", caps=[0, 7, 0]).names) and len(one) == 7


def test_the_order_by_name_is_fixed():
    names = [f"{i}.jpg" for i in range(8)]
    by_hash = sorted(range(8), key=lambda i: hashlib.sha256(names[i].encode()).hexdigest())
    assert name_order(names).tolist() == by_hash != list(range(8))
    order = name_order(["a", "b", "a"]).tolist()
    assert order.index(0) < order.index(2)
    assert name_order([]).tolist() == []


def test_weights_repeat_the_rows_exactly(folders):
    mixture = open_mixture(folders, "train", weights=[2, 1, 5])
    assert mixture.repeats.tolist() == [2] * 12 + [1] * 30 + [5] * 5
    for unit, each in (("images", np.ones(47, int)), ("pairs", mixture.num_captions)):
        rows = epoch_rows(mixture, unit)
        np.testing.assert_array_equal(np.bincount(rows.image), each * mixture.repeats)
        pairs, times = np.unique(np.stack([rows.image, rows.caption]), axis=1, return_counts=True)
        np.testing.assert_array_equal(times, mixture.repeats[pairs[0]])
        found = take(mixture, 1, unit=unit, batch_size=len(rows))[0]["id"]
        np.testing.assert_array_equal(np.bincount(found), each * mixture.repeats)
    assert len(mixture) == 47  # an image has one number, however often its rows come


def test_the_digest_covers_content_order_weights_and_caps(folders):
    settings = [
        {}, {"weights": [1, 1, 2]}, {"weights": [2, 2, 2]}, {"caps": [0, 10, 0]}, {"caps": [10, 0, 0]},
        {"caps": [0, 11, 0]}, {"caps": [0, 10, 0], "weights": [1, 2, 1]},
    ]  # fmt: skip
    opened = [open_mixture(folders, "train", **setting) for setting in settings]
    opened += [open_mixture(folders[::-1], "train"), open_mixture(folders[:2], "train")]
    assert len({mixture.digest for mixture in opened}) == len({repr(mixture) for mixture in opened}) == len(opened)
    assert all(len(mixture.digest) == 64 for mixture in opened)
    same = open_mixture(folders, "train", weights=[1, 1, 1], caps=[12, 1000, None])
    assert same.digest == opened[0].digest  # caps that leave nothing out


def test_what_moved_is_the_same_mixture(folders, tmp_path):
    moved = [tmp_path / f"elsewhere{i}" for i in range(3)]
    for new, old in zip(moved, folders):
        new.symlink_to(old)
    a, b = open_mixture(folders, "train"), open_mixture(map(str, moved), "train")
    assert a.digest == b.digest and repr(a) == repr(b) and str(tmp_path) not in repr(b)


def test_one_whole_folder_is_that_folder(folders):
    alone = open_prepared(folders[0], "dev")
    for caps in (None, [0], [50]):
        assert repr(open_mixture(folders[:1], "dev", caps=caps)) == repr(alone)
    capped = open_mixture(folders[:1], "train", caps=[5])
    assert len(capped) == 5 and capped.dataset == "coco" and capped.digest != open_prepared(folders[0], "train").digest


def test_batches_are_those_of_the_images_and_resume(folders):
    mixture = open_mixture(folders, "train", weights=[1, 1, 2], caps=[0, 10, 0])
    found = take(mixture, 20, unit="pairs")
    for batch in found:
        for i, image in zip(batch["id"], batch["image"]):
            np.testing.assert_array_equal(image, pixels(mixture[i])[:4, :4])
    iterator = train_batches(mixture, views, batch_size=4, seed=0, unit="pairs", threads=2)
    iterator.set_state(json.loads(json.dumps({"next_index": 13})))
    for batch in found[13:]:
        np.testing.assert_array_equal(next(iterator)["id"], batch["id"])


def test_a_damaged_photo_of_one_folder_is_replaced(folders):
    mixture = open_mixture(folders, "train")
    damaged = Mixture([Damaged(source, {len(source) - 1}) for source in mixture.sources], "train", [1] * 3, [0] * 3)
    sound, found = take(mixture, 11), take(damaged, 11)
    takes_over = {11: 12, 41: 42, 46: 0}
    for a, b in zip(sound, found):
        assert [takes_over.get(i, i) for i in a["id"].tolist()] == b["id"].tolist()


def test_a_mixture_can_be_pickled_kept_in_memory_and_mixed_again(folders):
    mixture = open_mixture(folders, "train", weights=[1, 2, 1], caps=[0, 10, 0])
    data = pickle.dumps(mixture)
    again = pickle.loads(data)
    assert len(data) < 2000 and again.digest == mixture.digest and again[15] == mixture[15]
    kept = InMemorySource(mixture)
    assert repr(kept) == repr(mixture) and kept.repeats.tolist() == mixture.repeats.tolist()
    nested = Mixture([mixture, open_prepared(folders[0], "dev")], "train", [3, 1], [0, 0])
    assert nested.repeats.tolist() == [3] * 12 + [6] * 10 + [3] * 5 + [1] * 2


@pytest.mark.parametrize(
    "folder_numbers, options, message",
    [
        ([], {}, "no folder of prepared data"),
        ([0, 1, 0], {}, r"coco and .*coco are the same data: give it once"),
        ([0, 1], {"weights": [1]}, "1 weights for 2 folders"),
        ([0, 1], {"caps": [1, 2, 3]}, "3 caps for 2 folders"),
        ([0, 1], {"weights": [1, 0]}, "the weight of .*cc3m is 0: give a whole number of at least 1"),
        ([0, 1], {"weights": [1.5, 1]}, "the weight of .*coco is 1.5"),
        ([0, 1], {"caps": [0, -3]}, "the cap of .*cc3m is -3: give a whole number of at least 0"),
    ],
)
def test_mistakes_are_one_line(folders, folder_numbers, options, message):
    with pytest.raises(UserError, match=message):
        open_mixture([folders[i] for i in folder_numbers], "train", **options)


def test_the_folder_that_lacks_a_split_or_is_not_there_is_named(folders, tmp_path):
    with pytest.raises(UserError, match="cc3m has no split 'dev': it has train"):
        open_mixture(folders[:2], "dev")
    with pytest.raises(UserError, match="no prepared dataset at .*gone"):
        open_mixture([folders[0], tmp_path / "gone"], "train")


def test_a_copy_of_a_folder_is_the_same_data(folders, tmp_path):
    (tmp_path / "copy").symlink_to(folders[0])
    with pytest.raises(UserError, match="coco and .*copy are the same data"):
        open_mixture([folders[0], tmp_path / "copy"], "train")
    items = [Item("1.jpg", ["A ."], jpeg(1), "row")]
    for name in "ab":
        build({"train": items}, tmp_path / name, dataset=name, skips=Skips())
    with pytest.raises(UserError, match="a and .*b are the same data"):
        open_mixture([tmp_path / "a", tmp_path / "b"], "train")


def test_a_dataset_is_named_on_the_command_line(tmp_path):
    source = write(tmp_path / "s", {"a.jpg": jpeg(), "a.txt": "A ."})
    assert prepare("folder", source, tmp_path / "x")["dataset"] == "folder"
    assert prepare("folder", source, tmp_path / "y", "--name=holidays")["dataset"] == "holidays"
    assert open_prepared(tmp_path / "y", "train").dataset == "holidays"
