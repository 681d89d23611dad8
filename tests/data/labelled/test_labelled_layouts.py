"""Labelled images from disk: what is found, what is held back, and one line for what is wrong."""

import logging
import shutil

import numpy as np
import pytest
from made_up import jpeg, write

from smke_jax.data.labelled import open_labelled
from smke_jax.errors import UserError


def photos(**counts):
    """{'daisy/3.jpg': bytes} of so many photos of each class."""
    return {f"{name}/{i}.jpg": jpeg(7 * i + len(name)) for name, count in counts.items() for i in range(count)}


def below(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


@pytest.fixture
def flowers(tmp_path):
    return write(tmp_path / "flowers", below("train", photos(rose=10, daisy=5)))


# ---- a folder for each class


def test_classes_are_folders_by_name(flowers):
    source = open_labelled("folders", str(flowers), "train")
    assert source.classes == ("daisy", "rose") and source.labels.tolist() == [0] * 5 + [1] * 10
    assert source.names[0] == "train/daisy/0.jpg" and source.whole(0).shape[-1] == 3
    assert source.counts() == [{"data": "flowers", "images": 15, "classes": 2}]


def test_a_share_of_each_class_is_held_back_and_the_names_alone_decide(flowers, tmp_path):
    parts = {split: open_labelled("folders", str(flowers), split, share=0.2) for split in ("train", "dev")}
    assert [np.bincount(parts[split].labels).tolist() for split in parts] == [[4, 8], [1, 2]]
    assert not set(parts["train"].names) & set(parts["dev"].names)
    elsewhere = write(tmp_path / "copy", below("train", photos(daisy=5, rose=10)))
    assert open_labelled("folders", str(elsewhere), "dev", share=0.2).names == parts["dev"].names
    assert parts["train"].digest != parts["dev"].digest
    # Another photo moves no others.
    write(flowers, {"train/rose/x.jpg": jpeg(1)})
    again = open_labelled("folders", str(flowers), "train", share=0.2)
    assert len(set(again.names) ^ set(parts["train"].names)) == 1


def test_given_splits_are_taken_as_they_are(flowers):
    write(flowers, below("validation", photos(rose=2)))
    assert len(open_labelled("folders", str(flowers), "train", share=0.2)) == 15
    source = open_labelled("folders", str(flowers), "dev", share=0.2)
    assert source.labels.tolist() == [1, 1] and source.classes == ("daisy", "rose")


def test_without_folders_of_splits_all_is_train(tmp_path):
    assert len(open_labelled("folders", str(write(tmp_path / "x", photos(a=2, b=3))), "train")) == 5


def test_a_class_of_one_photo_is_trained_on_and_named(tmp_path, caplog):
    root = write(tmp_path / "x", photos(a=1, b=5))
    with caplog.at_level(logging.WARNING, "smke_jax"):
        source = open_labelled("folders", str(root), "dev", share=0.2)
    assert source.labels.tolist() == [1]
    assert "1 class with one image, which is trained on, and none to evaluate: a" in caplog.text


@pytest.mark.parametrize(("more", "message"), [
    ({"train/lily/.keep": b""}, r"train/lily holds no photo: remove the folder"),
    ({"test/lily/0.jpg": b"x"}, r"test has the class 'lily', which train does not have"),
    ({"val/rose/0.jpg": b"x", "dev/rose/0.jpg": b"x"}, r"two folders of dev, dev and val"),
])  # fmt: skip
def test_one_line_for_what_is_wrong(flowers, more, message):
    write(flowers, more)
    with pytest.raises(UserError, match=message):
        open_labelled("folders", str(flowers), "train")


def test_what_is_not_there_is_named(flowers, tmp_path):
    with pytest.raises(UserError, match="no split 'dev': it has train; held_back=0.2 makes one"):
        open_labelled("folders", str(flowers), "dev")
    with pytest.raises(UserError, match="no folder at"):
        open_labelled("folders", str(tmp_path / "nothing"), "train")
    with pytest.raises(UserError, match="data is empty"):
        open_labelled("folders", "", "train")
    with pytest.raises(UserError, match="has 0 folders of a class: put the photos of each class in a folder"):
        open_labelled("folders", str(write(tmp_path / "flat", {"a.jpg": jpeg(1)})), "train")
    with pytest.raises(UserError, match="layout is 'folder': known are"):
        open_labelled("folder", str(flowers), "train")


def test_an_unreadable_photo_is_named_or_left_out_and_counted(flowers, caplog):
    write(flowers, {"train/daisy/1.jpg": b"no photo"})
    source = open_labelled("folders", str(flowers), "train")
    with pytest.raises(UserError, match="'train/daisy/1.jpg' of flowers train cannot be read .*not an image file"):
        source.whole(1)
    with caplog.at_level(logging.WARNING, "smke_jax"):
        kept = open_labelled("folders", str(flowers), "train", in_memory=True)
    assert "1 of the 15 images of flowers train cannot be read" in caplog.text
    assert len(kept) == 14 and np.bincount(kept.labels).tolist() == [4, 10]
    assert kept.counts()[0]["skipped"] == 1
    np.testing.assert_array_equal(kept.whole(1), source.whole(2))


def test_the_name_of_a_class_need_not_be_utf8(tmp_path):
    root = write(tmp_path / "x", photos(a=2, **{"b\udcff": 2}))
    assert open_labelled("folders", str(root), "train").classes == ("a", "b?")


def test_loose_photos_are_counted(flowers, caplog):
    write(flowers, {"train/loose.jpg": jpeg(3)})
    with caplog.at_level(logging.WARNING, "smke_jax"):
        assert len(open_labelled("folders", str(flowers), "train")) == 15
    assert "1 photo of" in caplog.text


def test_folders_beside_train_are_told_and_a_class_may_be_called_train(flowers, tmp_path, caplog):
    write(flowers, photos(lily=2))
    with caplog.at_level(logging.WARNING, "smke_jax"):
        assert open_labelled("folders", str(flowers), "train").classes == ("daisy", "rose")
    assert f"1 folder beside {flowers / 'train'}: left out (lily)" in caplog.text
    traffic = write(tmp_path / "traffic", photos(bus=2, train=3))
    assert open_labelled("folders", str(traffic), "train").classes == ("bus", "train")


# ---- ImageNet


SYNSETS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}


@pytest.fixture
def imagenet(tmp_path):
    files = {f"train/{name}/{name}_{i}.JPEG": jpeg(i) for name in reversed(SYNSETS) for i in range(3)}
    return write(tmp_path / "in", files | {f"val/{name}/v.JPEG": jpeg(9) for name in SYNSETS})


def mapping():
    return "".join(f"{name} {words}\n" for name, words in SYNSETS.items())


def test_synsets_stand_in_the_order_of_their_numbers(imagenet):
    assert open_labelled("imagenet", str(imagenet), "train").classes == tuple(SYNSETS)
    write(imagenet, {"LOC_synset_mapping.txt": mapping()})
    source = open_labelled("imagenet", str(imagenet), "dev")
    assert source.classes == ("tench", "goldfish") and source.labels.tolist() == [0, 1]


def test_a_flat_val_takes_its_classes_from_the_table(tmp_path):
    data = "ILSVRC/Data/CLS-LOC"
    files = {f"{data}/train/{name}/a.JPEG": jpeg(1) for name in SYNSETS}
    files |= {f"{data}/val/ILSVRC2012_val_0000000{i}.JPEG": jpeg(i) for i in (1, 2, 3)}
    root = write(tmp_path / "kaggle", files | {"LOC_synset_mapping.txt": mapping()})
    with pytest.raises(UserError, match="LOC_val_solution.csv is missing"):
        open_labelled("imagenet", str(root), "dev")
    lines = ["ImageId,PredictionString", "ILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 5 6 7 8"]
    lines += ["ILSVRC2012_val_00000002,n01440764 1 2 3 4", "ILSVRC2012_val_00000003,n01443537 1 2 3 4 "]
    write(root, {"LOC_val_solution.csv": "\n".join(lines)})
    assert open_labelled("imagenet", str(root), "dev").labels.tolist() == [1, 0, 1]
    write(root, {"LOC_val_solution.csv": "\n".join(lines[:2])})
    with pytest.raises(
        UserError, match="2 photos of .* without a known class in .* the first is ILSVRC2012_val_00000002.JPEG"
    ):
        open_labelled("imagenet", str(root), "dev")


def test_synsets_that_share_a_word_keep_their_names_apart(tmp_path):
    """Two cranes, a bird and a machine, have no other word; of the two maillots one has."""
    words = {"n02012849": "crane", "n03126707": "crane", "n03710637": "maillot", "n03710721": "maillot, tank suit"}
    files = {f"val/{name}/a.JPEG": jpeg(1) for name in words}
    files["LOC_synset_mapping.txt"] = "".join(f"{name} {line}\n" for name, line in words.items())
    source = open_labelled("imagenet", str(write(tmp_path, files)), "dev")
    assert source.classes == ("crane (n02012849)", "crane (n03126707)", "maillot", "maillot, tank suit")


@pytest.mark.parametrize("flat", (False, True))
def test_an_evaluation_needs_and_opens_no_other_split(tmp_path, imagenet, flat):
    write(imagenet, {"LOC_synset_mapping.txt": mapping()})
    if flat:
        lines = "ImageId,PredictionString\n\n" + "".join(f"v{i},{name} 1\n" for i, name in enumerate(SYNSETS))
        write(imagenet, {"LOC_val_solution.csv": lines} | {f"flat/v{i}.JPEG": jpeg(i) for i in (0, 1)})
        shutil.rmtree(imagenet / "val")
        (imagenet / "flat").rename(imagenet / "val")
    expected = open_labelled("imagenet", str(imagenet), "dev")
    for photo in (imagenet / "train").rglob("*.JPEG"):
        photo.unlink()  # an empty class is refused where train is read
    assert open_labelled("imagenet", str(imagenet), "dev").digest == expected.digest
    with pytest.raises(UserError, match="holds no photo"):
        open_labelled("imagenet", str(imagenet), "train")
    shutil.rmtree(imagenet / "train")
    found = open_labelled("imagenet", str(imagenet), "dev")
    assert found.digest == expected.digest and found.classes == ("tench", "goldfish")


@pytest.mark.parametrize("name", ("LOC_val_solution.csv", "LOC_synset_mapping.txt"))
def test_a_table_that_is_no_text_is_named(tmp_path, name):
    files = {f"train/{synset}/a.JPEG": jpeg(1) for synset in SYNSETS} | {"val/v.JPEG": jpeg(2)}
    files |= {"LOC_synset_mapping.txt": mapping(), "LOC_val_solution.csv": "ImageId,PredictionString\nv,n01440764 1\n"}
    root = write(tmp_path, files | {name: b"\xff\xfe" + "x y".encode("utf-16-le")})
    with pytest.raises(UserError, match=rf"{name} cannot be read \(no UTF-8\)"):
        open_labelled("imagenet", str(root), "dev")


def test_folders_that_are_no_synsets_are_refused(flowers):
    with pytest.raises(UserError, match="'daisy', which is no synset: use layout='folders'"):
        open_labelled("imagenet", str(flowers), "train")


# ---- CIFAR


def record(labels, image):
    """One record, byte after byte as its authors describe it: labels, then the red, green and blue planes."""
    planes = [int(image[y, x, c]) for c in range(3) for y in range(32) for x in range(32)]
    return bytes([*labels, *planes])


@pytest.fixture
def cifar(tmp_path):
    """(folders of CIFAR-10 and CIFAR-100 in small, two images)."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    ten = {f"data_batch_{i}.bin": record([i], images[0]) + record([9], images[1]) for i in range(1, 6)}
    ten |= {"test_batch.bin": record([3], images[1]), "batches.meta.txt": "\n".join("abcdefghij") + "\n\n"}
    hundred = {"train.bin": record([1, 99], images[0]), "test.bin": record([19, 0], images[1])}
    hundred["fine_label_names.txt"] = "".join(f"class {i}\n" for i in range(100))
    roots = write(tmp_path / "ten", ten), write(tmp_path / "hundred", below("cifar-100-binary", hundred))
    return *map(str, roots), images


def test_cifar_is_read_as_it_is_written(cifar):
    ten, hundred, images = cifar
    train, test = (open_labelled("cifar10", ten, split) for split in ("train", "test"))
    assert train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9] and test.labels.tolist() == [3]
    assert train.classes == tuple("abcdefghij") and train.names[:2] == ["train/0", "train/1"]
    np.testing.assert_array_equal(train.whole(4), images[0])
    np.testing.assert_array_equal(test.whole(0), images[1])
    train, test = (open_labelled("cifar100", hundred, split) for split in ("train", "test"))
    assert train.labels.tolist() == [99] and test.labels.tolist() == [0] and train.classes[99] == "class 99"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("test_batch.bin", bytes(3073 + 9), "test_batch.bin is cut short: 3,082 bytes are no .* records of 3073"),
    ("data_batch_2.bin", b"", "data_batch_2.bin is cut short"),
    ("test_batch.bin", bytes(3073) + bytes([10]) + bytes(3072), "record 1 has the label 10, and CIFAR-10 has 10"),
    ("batches.meta.txt", b"cat\ndog\n", "batches.meta.txt names 2 classes, not 10"),
])  # fmt: skip
def test_cifar_that_is_cut_short_or_damaged(cifar, tmp_path, name, content, message):
    (tmp_path / "ten" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_labelled("cifar10", cifar[0], "train")


def test_cifar_that_is_not_there(cifar, tmp_path):
    with pytest.raises(UserError, match="has no test.bin: give the folder of CIFAR-100's binary version"):
        open_labelled("cifar100", cifar[0], "train")
    (tmp_path / "ten" / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match="data_batch_3.bin is missing"):
        open_labelled("cifar10", cifar[0], "train")
