"""Every public layout, with its known bad rows, becomes a dataset that says what it left out."""

import io
import json
import tarfile

import pytest
from made_up import contents, jpeg, prepare, skipped, write

from smke_jax.data.prepare.jsonl import join_wordpieces
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError
from smke_jax.programs.prepare import main


def test_flickr8k(flickr8k, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = prepare("flickr8k", flickr8k, out)
    assert contents(out, "train") == [
        ("c.jpg", ("A dog c 0 .", "A dog c 1 .")),
        ("a.jpg", ("A dog a 0 .", "A dog a 1 .")),
    ]
    assert [name for name, _ in contents(out, "dev")] == ["b.jpg"]
    train = manifest["splits"]["train"]
    assert (train["n_images"], train["n_captions"], train["n_skipped"]) == (2, 4, 3)
    assert train["n_captions_dropped"] == 1
    assert manifest["n_skipped"] == 6 and "test" not in manifest["splits"]
    by_where = {entry["where"]: entry["reason"] for entry in skipped(out)}
    assert by_where == {
        "Flickr8k.token.txt:11": "line is not of the form name.jpg#k<TAB>caption",
        "Flickr8k.token.txt:12": "line is not of the form name.jpg#k<TAB>caption",
        "Flickr8k.token.txt:15": "line is not UTF-8",
        "Flickr_8k.trainImages.txt:4": "image file is truncated",
        "Flickr_8k.trainImages.txt:5": "image file is missing",
        "Flickr_8k.trainImages.txt:6": "image file is missing",
    }
    printed = capsys.readouterr().out
    assert str(out) in printed and "skipped 2x: image file is missing" in printed
    assert "Downloading" not in printed


def test_original_bytes_are_kept(flickr8k, tmp_path):
    prepare("flickr8k", flickr8k, tmp_path / "out")
    assert open_prepared(tmp_path / "out", "dev")[0].image == jpeg(ord("b"))


@pytest.mark.parametrize("nesting", ["", "archive/"])
def test_flickr8k_at_the_root_or_nested(nesting, tmp_path):
    files = {
        "Flicker8k_Dataset/a.jpg": jpeg(),
        "Flickr8k.token.txt": "a.jpg#0\tA dog .\n",
        "Flickr_8k.testImages.txt": "a.jpg\n",
    }
    write(tmp_path / "source", {nesting + name: content for name, content in files.items()})
    assert list(prepare("flickr8k", tmp_path / "source", tmp_path / "out")["splits"]) == ["test"]


def karpathy(*rows: tuple[str, str]) -> dict:
    images = [
        {"filename": name, "filepath": "val2014", "split": split, "sentences": [{"raw": f"On {name} ."}]}
        for name, split in rows
    ]
    return {"images": images, "dataset": "made up"}


RESULTS_CSV = """image_name| comment_number| comment
a.jpg| 0| A dog | and a bar .
a.jpg| 1| Another .
b.jpg| 4   A line without its second bar .
b.jpg| 0| A cat .
"""


@pytest.mark.parametrize("photos", ["flickr30k-images", "flickr30k_images", "images"])
def test_flickr30k_csv(photos, tmp_path):
    source = write(
        tmp_path / "source",
        {f"{photos}/a.jpg": jpeg(1), f"{photos}/b.jpg": jpeg(2), "results.csv": RESULTS_CSV},
    )
    prepare("flickr30k", source, tmp_path / "out")
    assert contents(tmp_path / "out", "train") == [
        ("a.jpg", ("A dog | and a bar .", "Another .")),
        ("b.jpg", ("A cat .",)),
    ]
    assert [entry["where"] for entry in skipped(tmp_path / "out")] == ["results.csv:4"]


def test_flickr30k_karpathy_wins_over_csv(tmp_path):
    captions = karpathy(("a.jpg", "train"), ("b.jpg", "val"), ("c.jpg", "test"))
    captions["images"].append({"filename": "d.jpg", "split": "train"})
    files = {f"flickr30k-images/{name}.jpg": jpeg() for name in "abc"}
    source = write(
        tmp_path / "source",
        {**files, "results.csv": RESULTS_CSV, "dataset_flickr30k.json": json.dumps(captions)},
    )
    manifest = prepare("flickr30k", source, tmp_path / "out")
    assert {split: report["n_images"] for split, report in manifest["splits"].items()} == {
        "train": 1, "dev": 1, "test": 1,
    }  # fmt: skip
    assert contents(tmp_path / "out", "dev") == [("b.jpg", ("On b.jpg .",))]
    assert skipped(tmp_path / "out")[0]["where"] == "dataset_flickr30k.json: images[3]"


def test_coco(tmp_path):
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (391895, 2, 3, 4)]
    captions = karpathy(*zip(names, ("train", "restval", "val", "test")))
    source = write(
        tmp_path / "source",
        {**{f"val2014/{name}": jpeg() for name in names}, "dataset_coco.json": json.dumps(captions)},
    )
    prepare("coco", source, tmp_path / "out", "--splits=train,dev")
    assert [name for name, _ in contents(tmp_path / "out", "train")] == names[:2]
    assert contents(tmp_path / "out", "dev") == [(names[2], (f"On {names[2]} .",))]
    with pytest.raises(UserError, match="no split 'test': it has train, dev"):
        open_prepared(tmp_path / "out", "test")


def test_damaged_karpathy_file(tmp_path):
    source = write(tmp_path, {"images/a.jpg": jpeg(), "dataset_flickr30k.json": '{"images": [{'})
    with pytest.raises(UserError, match="dataset_flickr30k.json is not a whole"):
        main(["flickr30k", f"--source={source}", f"--out={tmp_path / 'out'}"])


def tar_bytes(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_cc(tmp_path):
    first = {
        "000000.jpg": jpeg(0), "000000.txt": "A dog .", "000000.json": '{"status": "success"}',
        "000001.json": '{"status": "failed_to_download"}', "000001.txt": "Gone .",
        "000002.txt": "No picture .",
        "000003.jpg": jpeg(3), "000003.json": '{"status": "success", "caption": "From json ."}',
        "000004.jpg": jpeg(4),
        "000005.jpg": jpeg(5), "000005.txt": b"Caf\xe9 .", "000005.json": "{",
    }  # fmt: skip
    second = tar_bytes({"000100.jpg": jpeg(6), "000100.txt": "A cat .", "000101.jpg": jpeg(7, (400, 300))})
    source = write(
        tmp_path / "source",
        {
            "00000.tar": tar_bytes(first),
            "00001.tar": second[: second.index(b"000101.jpg") + 2000],
            "00002.tar": b"",
            "00000_stats.json": '{"successes": 4}',
        },
    )
    manifest = prepare("cc", source, tmp_path / "out")
    assert contents(tmp_path / "out", "train") == [
        ("000000.jpg", ("A dog .",)),
        ("000003.jpg", ("From json .",)),
        ("000005.jpg", ("Café .",)),
        ("000100.jpg", ("A cat .",)),
    ]
    assert manifest["skip_reasons"] == {
        "tar file ends early or cannot be read to its end": 1,
        "tar file is empty": 1,
        "image is cut with its tar file": 1,
        "image has no caption": 1,
        "download status: failed_to_download": 1,
        "sample has no image": 1,
    }
    assert (manifest["n_read"], manifest["n_kept"], manifest["n_skipped"]) == (8, 4, 4)
    assert list(prepare("cc", source, tmp_path / "other", "--split=test")["splits"]) == ["test"]


def test_jsonl_as_the_thesis_writes_it(tmp_path):
    rows = [
        {"image_path": "images/a.jpg", "text": ["a", "play", "##ing", "dog"], "id": 1},
        {"image_path": "images/b.png", "text": "A raw string .", "id": 2},
        {"image_path": "images/a.jpg", "text": ["[CLS]", "again", "[SEP]"], "id": 1},
        {"image_path": str(tmp_path / "elsewhere.jpg"), "captions": ["One .", " ", "Two ."], "id": 3},
    ]
    bad = ["{", "[]", '{"text": "no path"}', '{"image_path": "x", "text": [101, 102]}', '{"image_path": "x"}']
    lines = [*map(json.dumps, rows), "", *bad]
    source = write(
        tmp_path / "source",
        {
            "coco.train.jsonl": "\n".join(lines),
            "coco.val.jsonl": json.dumps(rows[1]),
            "images/a.jpg": jpeg(1),
            "images/b.png": jpeg(2, kind="PNG"),
            "../elsewhere.jpg": jpeg(3),
        },
    )
    manifest = prepare("jsonl", source, tmp_path / "out")
    assert contents(tmp_path / "out", "train") == [
        ("images/a.jpg", ("a playing dog", "again")),
        ("images/b.png", ("A raw string .",)),
        (str(tmp_path / "elsewhere.jpg"), ("One .", "Two .")),
    ]
    assert manifest["splits"]["dev"]["n_images"] == 1
    assert [entry["where"] for entry in skipped(tmp_path / "out")] == [
        f"coco.train.jsonl:{number}" for number in range(6, 11)
    ]


def test_one_jsonl_without_splits(tmp_path):
    source = write(tmp_path / "s", {"cc3m.jsonl": '{"image_path": "a.jpg", "text": "A ."}', "a.jpg": jpeg()})
    assert list(prepare("jsonl", source, tmp_path / "out")["splits"]) == ["train"]


def test_join_wordpieces():
    assert join_wordpieces("the un ##believ ##able dog".split()) == "the unbelievable dog"
    assert join_wordpieces([]) == ""


def test_folder_with_split_folders(tmp_path):
    source = write(
        tmp_path / "s",
        {
            "train/deep/a.JPG": jpeg(1), "train/deep/a.txt": "\ufeffOne .\r\n\r\nTwo .\r\n",
            "val/b.png": jpeg(2, kind="PNG"), "val/b.txt": "Three .",
            "train/silent.jpg": jpeg(3), "train/alone.txt": "No picture .",
            "stray.jpg": jpeg(4), "train/._a.jpg": b"finder droppings",
        },
    )  # fmt: skip
    prepare("folder", source, tmp_path / "out")
    assert contents(tmp_path / "out", "train") == [("train/deep/a.JPG", ("One .", "Two ."))]
    assert contents(tmp_path / "out", "dev") == [("val/b.png", ("Three .",))]
    assert {entry["where"]: entry["reason"] for entry in skipped(tmp_path / "out")} == {
        "train/alone.txt": "caption file without a photo",
        "stray.jpg": "photo lies outside the folders train, dev (or val, valid, validation) and test",
        "train/silent.jpg": "image has no caption",
    }


def test_folder_holdout_is_deterministic(tmp_path):
    photos = {f"{i}.png": jpeg(i, kind="PNG") for i in range(10)}
    source = write(tmp_path / "s", photos | {f"{i}.txt": f"Photo {i} ." for i in range(10)})
    manifest = prepare("folder", source, tmp_path / "a", "--holdout=3")
    assert manifest["splits"] == prepare("folder", source, tmp_path / "b", "--holdout=3")["splits"]
    train, dev = (set(contents(tmp_path / "a", split)) for split in ("train", "dev"))
    assert (len(train), len(dev), len(train | dev)) == (7, 3, 10)
    with pytest.raises(UserError, match="leaves nothing of the 10"):
        prepare("folder", source, tmp_path / "c", "--holdout=10")


def test_missing_layout_names_what_is_missing(tmp_path):
    expected = {
        "flickr8k": "dataset_flickr8k.json, captions.txt", "flickr30k": "results.csv", "coco": "captions_val2017.json",
        "cc": "no .tar", "jsonl": "no .jsonl", "folder": "no photos",
    }  # fmt: skip
    for dataset, words in expected.items():
        with pytest.raises(UserError, match=words):
            main([dataset, f"--source={tmp_path}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="is not a folder"):
        main(["cc", f"--source={tmp_path / 'gone'}", f"--out={tmp_path / 'out'}"])


def test_a_caption_that_is_no_text_counts_as_empty():
    from smke_jax.data.prepare.items import clean_caption

    assert [clean_caption(x) for x in (None, 5, ["a"], " a\n b ")] == ["", "", "", "a b"]


def kept(dataset: str, files: dict, tmp_path) -> dict[str, list]:
    """{split: [(name, captions), …]} of what `smke prepare` makes of the files."""
    manifest = prepare(dataset, write(tmp_path / "source", files), tmp_path / "out")
    return {split: contents(tmp_path / "out", split) for split in manifest["splits"]}


FLICKR8K_TABLE = 'image,caption\na.jpg,"A dog , and a ""bar"" ."\na.jpg,A 5" knife .\nb.jpg,A cat .\n'
FLICKR8K_FOUND = [("a.jpg", ('A dog , and a "bar" .', 'A 5" knife .')), ("b.jpg", ("A cat .",))]


@pytest.mark.parametrize("nesting", ["", "Flickr8k/", "archive/Flickr_Data/Flickr_Data/"])
def test_flickr8k_of_kaggle(nesting, tmp_path):
    files = {"Images/a.jpg": jpeg(1), "Images/b.jpg": jpeg(2), "captions.txt": FLICKR8K_TABLE}
    found = kept("flickr8k", {nesting + name: data for name, data in files.items()}, tmp_path)
    assert found == {"train": FLICKR8K_FOUND}


def test_flickr8k_of_kaggle_with_the_official_lists(tmp_path):
    files = {
        "Images/a.jpg": jpeg(1), "Images/b.jpg": jpeg(2), "captions.txt": FLICKR8K_TABLE,
        "Flickr_8k.trainImages.txt": "b.jpg\n", "Flickr_8k.testImages.txt": "a.jpg\n",
    }  # fmt: skip
    assert kept("flickr8k", files, tmp_path) == {"train": FLICKR8K_FOUND[1:], "test": FLICKR8K_FOUND[:1]}


def test_flickr8k_of_karpathy(tmp_path):
    captions = json.dumps(karpathy(("a.jpg", "train"), ("b.jpg", "val")))
    files = {"Images/a.jpg": jpeg(1), "Images/b.jpg": jpeg(2), "dataset_flickr8k.json": captions}
    assert {split: len(rows) for split, rows in kept("flickr8k", files, tmp_path).items()} == {"train": 1, "dev": 1}


@pytest.mark.parametrize(
    "name, text",
    [
        ("results_20130124.token", "a.jpg#0\tA dog .\na.jpg#1\tAnother .\n"),
        ("captions.txt", "image_name,comment_number,comment\na.jpg,0,A dog .\na.jpg,1,Another .\n"),
        ("results.csv", "image_name| comment_number| comment\r\na.jpg| 0| A dog .\r\na.jpg| 1| Another .\r\n"),
    ],
)
def test_flickr30k_of_kaggle(name, text, tmp_path):
    files = {"flickr30k_images/flickr30k_images/a.jpg": jpeg(), f"flickr30k_images/{name}": text}
    assert kept("flickr30k", files, tmp_path) == {"train": [("a.jpg", ("A dog .", "Another ."))]}


def test_flickr30k_of_kaggle_with_karpathys_splits(tmp_path):
    files = {
        "flickr30k_images/flickr30k_images/a.jpg": jpeg(),
        "flickr30k_images/results.csv": RESULTS_CSV,
        "dataset_flickr30k.json": json.dumps(karpathy(("a.jpg", "test"))),
    }
    assert kept("flickr30k", files, tmp_path) == {"test": [("a.jpg", ("On a.jpg .",))]}


def test_flickr30k_of_the_hub(tmp_path):
    rows = [("a.jpg", "train", ["A dog , black .", 'It "sits" .']), ("b.jpg", "val", ["A cat ."]), ("c.jpg", "?", [])]
    lines = ["raw,sentids,split,filename,img_id"]
    for number, (name, split, captions) in enumerate(rows):
        raw = json.dumps(captions).replace('"', '""')
        lines.append(f'"{raw}","[0, 1]",{split},{name},{number}')
    files = {
        "flickr_annotations_30k.csv": "\n".join(lines),
        "flickr30k-images/a.jpg": jpeg(),
        "flickr30k-images/b.jpg": jpeg(),
    }
    assert kept("flickr30k", files, tmp_path) == {
        "train": [("a.jpg", ("A dog , black .", 'It "sits" .'))],
        "dev": [("b.jpg", ("A cat .",))],
    }
    assert [entry["where"] for entry in skipped(tmp_path / "out")] == ["flickr_annotations_30k.csv:4"]


@pytest.mark.parametrize("year, name", [("2017", "{:012d}.jpg"), ("2014", "COCO_{split}2014_{:012d}.jpg")])
def test_coco_as_published(year, name, tmp_path):
    files, expected = {}, {}
    for split, ours in (("train", "train"), ("val", "dev")):
        names = {number: name.format(number, split=split) for number in (7, 3)}
        content = {
            "images": [{"id": number, "file_name": own} for number, own in names.items()] + [{"id": "x"}],
            "annotations": [{"image_id": n, "caption": f"On {own} ."} for n, own in names.items()] + [{"image_id": 99}],
        }
        files |= {f"{split}{year}/{own}": jpeg(number) for number, own in names.items()}
        files[f"annotations/captions_{split}{year}.json"] = json.dumps(content)
        expected[ours] = [(names[n], (f"On {names[n]} .",)) for n in (3, 7)]
    assert kept("coco", files, tmp_path) == expected
    assert len(skipped(tmp_path / "out")) == 4


def test_coco_of_karpathy_with_the_photos_of_2017(tmp_path):
    name = "COCO_val2014_000000391895.jpg"
    files = {"train2017/000000391895.jpg": jpeg(), "dataset_coco.json": json.dumps(karpathy((name, "restval")))}
    assert kept("coco", files, tmp_path) == {"train": [(name, (f"On {name} .",))]}


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "VAL", "dev", "val2017", "validation_images"])
def test_folders_of_splits_by_their_usual_names(name, tmp_path):
    files = {"training/a.png": jpeg(1), "training/a.txt": "A .", f"{name}/b.png": jpeg(2), f"{name}/b.txt": "B ."}
    found = kept("folder", {f"wrapper/{path}": data for path, data in files.items()}, tmp_path)
    assert {split: [captions for _, captions in rows] for split, rows in found.items()} == {
        "train": [("A .",)], "dev": [("B .",)],
    }  # fmt: skip


def test_a_class_of_photos_is_no_split(tmp_path):
    files = {f"{name}/a.png": jpeg() for name in ("test tubes", "dogs")}
    files |= {f"{name}/a.txt": "A ." for name in ("test tubes", "dogs")}
    assert {split: len(rows) for split, rows in kept("folder", files, tmp_path).items()} == {"train": 2}


def test_jsonl_of_splits_by_their_usual_names(tmp_path, capsys):
    row = '{"image_path": "a.jpg", "text": "A ."}'
    names = ("flickr.train", "validation", "coco_TEST_1k", "heldout")
    found = kept("jsonl", {"a.jpg": jpeg(), **{f"{name}.jsonl": row for name in names}}, tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "dev": 1, "test": 1}
    assert "heldout.jsonl" in capsys.readouterr().out and [e["where"] for e in skipped(tmp_path / "out")] == [
        "heldout.jsonl"
    ]


@pytest.mark.parametrize(
    "stored, written",
    [("images/a b.jpg", "images\\a b.jpg"), ("Größe.jpg", "Gro\u0308ße.jpg"), ("Gro\u0308ße.jpg", "Größe.jpg")],
)
def test_paths_as_other_systems_write_them(stored, written, tmp_path):
    row = json.dumps({"image_path": written, "text": "A ."})
    assert kept("jsonl", {stored: jpeg(), "train.jsonl": row}, tmp_path) == {"train": [(written, ("A .",))]}


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.jpg.txt", "a.text"])
@pytest.mark.parametrize(
    "encoded",
    [
        "Café .\nZwei „Wörter“ .".encode(form)
        for form in ("utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be")
    ] + [b"Caf\xe9 .\rZwei \x84W\xf6rter\x93 .\r"],
)  # fmt: skip
def test_caption_files_of_every_name_and_encoding(name, encoded, tmp_path):
    found = kept("folder", {"a.jpg": jpeg(), name: encoded}, tmp_path)
    assert found == {"train": [("a.jpg", ("Café .", "Zwei „Wörter“ ."))]}


def test_text_that_is_neither_is_named(tmp_path):
    files = {"a.jpg": jpeg(), "a.txt": b"One .\n" + "Привет мир".encode("cp1251") + b"\nTwo .\n"}
    assert kept("folder", files, tmp_path) == {"train": [("a.jpg", ("One .", "Two ."))]}
    assert [(e["where"], e["reason"]) for e in skipped(tmp_path / "out")] == [("a.txt:2", "line is not UTF-8")]


def test_files_beside_photos_are_named(tmp_path):
    files = {"a.jfif": jpeg(), "a.txt": "A .", "b.cr2": b"raw", "README.md": "x", "Thumbs.db": b"x"}
    assert kept("folder", files, tmp_path) == {"train": [("a.jfif", ("A .",))]}
    assert {e["where"] for e in skipped(tmp_path / "out")} == {"b.cr2", "README.md"}


@pytest.mark.parametrize(
    "row",
    [
        "[" * 100_000,
        '{"image_path": "a.jpg", "captions": ["\\ud83d", null, "Half ."]}',
        "1e999",
        '{"image_path": "\\u0000", "text": "x"}',
        '{"image_path": "/dev/zero", "text": "x"}',
        '{"image_path": "images", "text": "x"}',
    ],
)
def test_no_row_ends_the_work(row, tmp_path):
    good = '{"image_path": "images/b.jpg", "text": "Good ."}'
    files = {"a.jpg": jpeg(), "images/b.jpg": jpeg(1), "train.jsonl": f"{row}\n{good}\n"}
    assert ("images/b.jpg", ("Good .",)) in kept("jsonl", files, tmp_path)["train"]
