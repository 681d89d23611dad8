"""Captions, names and ids are read by position, and no image is read for them."""

import json

import numpy as np
import pytest
from made_up import jpeg, prepare, skipped, tiny_items, write

from smke_jax.data.damage import DamagedImage
from smke_jax.data.datasets import SceneSource
from smke_jax.data.listing import Entry, Listing, ListingWriter
from smke_jax.data.pipeline import InMemorySource
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips, clean_caption, in_order_of_ids
from smke_jax.data.sources import ArraySource, open_prepared
from smke_jax.errors import UserError

ENTRIES = [
    Entry(7, "a.jpg", ("One .", 'Quoted "two" \\ .')),
    Entry(-3, "strange\nname.jpg", ("Größe 東京 \U0001f600 \u2028 .",)),
    Entry(2**40, "", ("x",) * 30),
]


@pytest.fixture
def listed(tmp_path):
    writer = ListingWriter(tmp_path, "train")
    for entry in ENTRIES:
        writer.write(entry)
    writer.close()
    return tmp_path


class NoImages:
    """Stands where a source keeps its images; a look at any of them fails the test."""

    def __getitem__(self, index):
        raise AssertionError(f"image {index} was read")


def test_every_entry_is_found_by_its_position_and_in_order(listed):
    listing = Listing(listed, "train")
    assert len(listing) == 3 and list(listing) == ENTRIES
    assert [listing[i] for i in (2, 0, 1)] == [ENTRIES[2], ENTRIES[0], ENTRIES[1]]
    assert listing[np.int64(1)] == ENTRIES[1]
    assert listing.num_captions.tolist() == [2, 1, 30] and listing.num_captions.dtype == np.int32
    assert listing.image_ids.tolist() == [7, -3, 2**40] and listing.image_ids.dtype == np.int64
    for index in (3, -1):
        with pytest.raises(IndexError):
            listing[index]


def test_a_person_can_read_the_file(listed):
    lines = (listed / "train.listing.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0]) == {"image_id": 7, "name": "a.jpg", "captions": list(ENTRIES[0].captions)}
    assert "東京" in lines[1]


def test_what_is_missing_cut_or_mixed_up_is_named(listed):
    path, table = listed / "train.listing.jsonl", listed / "train.listing.npz"
    lines, numbers = path.read_bytes(), table.read_bytes()
    path.write_bytes(lines[:-5])
    with pytest.raises(UserError, match="train.listing.jsonl and train.listing.npz do not belong together"):
        Listing(listed, "train")
    path.write_bytes(lines)
    table.write_bytes(numbers[: len(numbers) // 2])
    with pytest.raises(UserError, match="train.listing.npz is damaged: run `smke prepare` again"):
        Listing(listed, "train")
    table.unlink()
    with pytest.raises(UserError, match="train.listing.npz is missing"):
        Listing(listed, "train")


def test_one_damaged_line_costs_one_image(listed):
    path = listed / "train.listing.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"image_id": 7,', b'"image_id"= 7,'))
    listing = Listing(listed, "train")
    assert listing[1] == ENTRIES[1]
    with pytest.raises(DamagedImage, match="line 1 of train.listing.jsonl is damaged"):
        listing[0]


def test_a_prepared_source_reads_captions_without_its_records(tmp_path):
    build({"train": tiny_items(4)}, tmp_path / "out", dataset="x", skips=Skips())
    source = open_prepared(tmp_path / "out", "train")
    captions = [example.captions for example in source]
    source._records = NoImages()
    assert source.all_captions() == captions == [source.captions(i) for i in range(4)]
    assert captions[2] == ("picture 2",) * 3
    assert source.names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] and source.image_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        source.captions(4)


def test_sources_in_memory_read_captions_without_their_images(tmp_path):
    build({"train": tiny_items(3)}, tmp_path / "out", dataset="x", skips=Skips())
    prepared = open_prepared(tmp_path / "out", "train")
    kept = InMemorySource(prepared)
    kept.images = NoImages()
    arrays = ArraySource(np.zeros((2, 4, 4, 3), np.uint8), [["one"], ["two", "three"]])
    arrays.images = NoImages()
    scenes = SceneSource("gallery")
    scenes.images = NoImages()
    for source in (kept, arrays, scenes):
        assert source.all_captions() == [source.captions(i) for i in range(len(source))]
        assert [len(texts) for texts in source.all_captions()] == source.num_captions.tolist()
        assert source.image_ids.tolist() == list(range(len(source))) and source.image_ids.dtype == np.int64
        assert len(source.names) == len(source) and source.repeats.tolist() == [1] * len(source)
    assert arrays.captions(1) == ("two", "three") and len(scenes.captions(0)) == 5
    assert kept.all_captions() == prepared.all_captions() and kept.names == prepared.names


def test_memory_keeps_the_ids(tmp_path):
    items = [item._replace(image_id=10 * i) for i, item in enumerate(tiny_items(3))]
    build({"train": items}, tmp_path / "out", dataset="x", skips=Skips())
    assert InMemorySource(open_prepared(tmp_path / "out", "train")).image_ids.tolist() == [0, 10, 20]


def test_the_position_stands_for_a_missing_id_and_counts_what_is_stored(tmp_path):
    items = tiny_items(4)
    items[1] = items[1]._replace(image=b"no picture")
    build({"train": items}, tmp_path / "out", dataset="x", skips=Skips())
    source = open_prepared(tmp_path / "out", "train")
    assert source.image_ids.tolist() == [0, 1, 2] and source.names == ["0.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("ids", [[3, None, 1], [3, 1, 3]])
def test_ids_that_do_not_tell_all_images_apart_are_left_out(ids):
    items = [Item(f"{i}.jpg", ["A ."], b"", "row", image_id) for i, image_id in enumerate(ids)]
    ordered = in_order_of_ids(items)
    assert [item.name for item in ordered] == ["0.jpg", "1.jpg", "2.jpg"]
    assert {item.image_id for item in ordered} == {None}


def karpathy(ids: dict[str, str], name: str) -> dict:
    """One image for each {id: split}, as a Karpathy file has it: `name` is 'cocoid' or 'imgid'."""
    images = [
        {"filename": f"{i}.jpg", "filepath": "val2014", "split": split, name: i, "sentences": [{"raw": f"On {i} ."}]}
        for i, split in ids.items()
    ]
    if name == "cocoid":
        for number, image in enumerate(images):
            image["imgid"] = number
    return {"images": images}


def test_coco_is_written_in_the_order_of_its_ids(tmp_path):
    ids = {391895: "test", 42: "test", 581929: "train", 9: "restval", 184613: "test", 285: "val"}
    photos = {f"val2014/{i}.jpg": jpeg(i) for i in ids}
    source = write(tmp_path / "s", photos | {"dataset_coco.json": json.dumps(karpathy(ids, "cocoid"))})
    prepare("coco", source, tmp_path / "out")
    test, train = open_prepared(tmp_path / "out", "test"), open_prepared(tmp_path / "out", "train")
    assert test.image_ids.tolist() == [42, 184613, 391895] and train.image_ids.tolist() == [9, 581929]
    assert test.names == ["42.jpg", "184613.jpg", "391895.jpg"]
    assert [(example.name, example.image) for example in test] == [
        (f"{i}.jpg", jpeg(i)) for i in (42, 184613, 391895)
    ]  # fmt: skip
    assert test.all_captions() == [("On 42 .",), ("On 184613 .",), ("On 391895 .",)]


def test_flickr30k_has_the_numbers_of_its_file(tmp_path):
    ids = {12: "test", 5: "test", 7: "train"}
    photos = {f"flickr30k-images/{i}.jpg": jpeg(i) for i in ids}
    source = write(tmp_path / "s", photos | {"dataset_flickr30k.json": json.dumps(karpathy(ids, "imgid"))})
    prepare("flickr30k", source, tmp_path / "out")
    assert open_prepared(tmp_path / "out", "test").image_ids.tolist() == [5, 12]


def test_ids_of_jsonl_rows(tmp_path):
    rows = [("b.jpg", 30), ("a.jpg", 20), ("b.jpg", 30), ("c.jpg", 10)]
    lines = [json.dumps({"image_path": name, "text": f"{name} {k}", "id": i}) for k, (name, i) in enumerate(rows)]
    photos = {f"{name}.jpg": jpeg(k) for k, name in enumerate("abc")}
    source = write(tmp_path / "s", photos | {"coco.test.jsonl": "\n".join(lines), "dev.jsonl": lines[0]})
    prepare("jsonl", source, tmp_path / "out")
    test = open_prepared(tmp_path / "out", "test")
    assert test.image_ids.tolist() == [10, 20, 30]
    assert test.all_captions() == [("c.jpg 3",), ("a.jpg 1",), ("b.jpg 0", "b.jpg 2")]
    lines[1] = json.dumps({"image_path": "a.jpg", "text": "no number", "id": "twenty"})
    source = write(tmp_path / "t", photos | {"test.jsonl": "\n".join(lines)})
    prepare("jsonl", source, tmp_path / "other")
    other = open_prepared(tmp_path / "other", "test")
    assert other.names == ["b.jpg", "a.jpg", "c.jpg"] and other.image_ids.tolist() == [0, 1, 2]


def test_older_folders_are_refused_in_one_line(tmp_path):
    build({"train": tiny_items()}, tmp_path / "out", dataset="x", skips=Skips())
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(UserError, match="out has format 1, not 2: run `smke prepare` again"):
        open_prepared(tmp_path / "out", "train")


def test_records_and_listing_of_different_data_are_told_apart(tmp_path):
    items = [item._replace(image_id=10 + i) for i, item in enumerate(tiny_items(3))]
    build({"train": items}, tmp_path / "a", dataset="x", skips=Skips())
    build({"train": tiny_items(3)}, tmp_path / "b", dataset="x", skips=Skips())
    for name in ("train.listing.jsonl", "train.listing.npz"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(DamagedImage, match="'0.jpg' .*the record here is of image 10, not 0"):
        open_prepared(tmp_path / "a", "train")[0]


def test_half_a_surrogate_pair_does_not_end_the_work(tmp_path):
    assert clean_caption("a \ud83d dog") == "a \ufffd dog"
    lines = ['{"image_path": "a.jpg", "text": "a \\ud83d dog"}', '{"image_path": "\\ud83d.jpg", "text": "no file"}']
    source = write(tmp_path / "s", {"a.jpg": jpeg(), "train.jsonl": "\n".join(lines)})
    prepare("jsonl", source, tmp_path / "out")
    assert open_prepared(tmp_path / "out", "train").all_captions() == [("a \ufffd dog",)]
    assert skipped(tmp_path / "out")[0]["name"] == "\ud83d.jpg"
