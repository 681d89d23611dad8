"""Every public layout, with its known bad rows, becomes a dataset that says what it left out."""

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smke_jax.data.decode import decode_image
from smke_jax.data.prepare import build as build_module
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.prepare.jsonl import join_wordpieces
from smke_jax.data.prepare.progress import Progress
from smke_jax.data.prepare.shards import SplitWriter
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError
from smke_jax.programs.prepare import main


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def prepare(dataset: str, source: Path, out: Path, *options: str) -> dict:
    assert main([dataset, f"--source={source}", f"--out={out}", *options]) == 0
    return json.loads((out / "manifest.json").read_text())


def skipped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]


def contents(out: Path, split: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.name, example.captions) for example in open_prepared(out, split)]


def tiny_items(n: int = 3) -> list[Item]:
    return [Item(f"{i}.jpg", [f"picture {i}"] * (i + 1), jpeg(i), f"row {i}") for i in range(n)]


@pytest.fixture
def flickr8k(tmp_path) -> Path:
    captions = "".join(f"{n}.jpg#{k}\t  A  dog {n} {k} .\n" for n in "abcde" for k in range(2))
    captions += "2258277193_586949ec62.jpg.1#0\tsome one\nno tab here\n\na.jpg#2\t   \n"
    files = {f"Flicker8k_Dataset/{n}.jpg": jpeg(ord(n)) for n in "abcd"}
    files["Flicker8k_Dataset/d.jpg"] = files["Flicker8k_Dataset/d.jpg"][:300]
    return write(
        tmp_path / "source",
        {
            **files,
            "Flickr8k_text/Flickr8k.token.txt": captions.encode() + b"a.jpg#3\t\xff\xfe\n",
            "Flickr8k_text/Flickr_8k.trainImages.txt": "c.jpg\r\na.jpg\n\nd.jpg\ne.jpg\nf.jpg\n",
            "Flickr8k_text/Flickr_8k.devImages.txt": "b.jpg",
        },
    )


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
        ("000005.jpg", ("Caf\ufffd .",)),
        ("000100.jpg", ("A cat .",)),
    ]
    assert manifest["skip_reasons"] == {
        "tar file is cut short or damaged": 2,
        "image has no caption": 1,
        "download status: failed_to_download": 1,
        "sample has no image": 1,
    }
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
        "stray.jpg": "photo lies outside the folders train, dev and test",
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


def test_max_side_reduces_the_shorter_side(tmp_path):
    sizes = {"wide": (200, 100), "tall": (90, 300), "small": (20, 40)}
    files = {f"{name}.png": jpeg(1, size, "PNG") for name, size in sizes.items()}
    source = write(tmp_path / "s", files | {f"{name}.txt": "A ." for name in sizes})
    prepare("folder", source, tmp_path / "out", "--max_side=50")
    images = {e.name: e.image for e in open_prepared(tmp_path / "out", "train")}
    assert all(image.startswith(b"\xff\xd8") for image in images.values())
    shapes = {name: decode_image(image).shape for name, image in images.items()}
    assert shapes == {"wide.png": (50, 100, 3), "tall.png": (167, 50, 3), "small.png": (40, 20, 3)}


def test_digest_knows_names_captions_order_and_pixels(tmp_path):
    def digest(label: str, items: list[Item]) -> str:
        manifest = build({"train": items}, tmp_path / label, dataset="x", skips=Skips())
        return manifest["splits"]["train"]["digest"]

    items = tiny_items()
    first = digest("0", items)
    assert digest("1", items) == first
    changes = [
        items[::-1],
        items[:2],
        [items[0]._replace(name="new.jpg"), *items[1:]],
        [items[0]._replace(captions=["other"]), *items[1:]],
        [items[0]._replace(image=jpeg(99)), *items[1:]],
    ]
    digests = {digest(f"changed{i}", changed) for i, changed in enumerate(changes)}
    assert len(digests) == len(changes) and first not in digests


def test_num_captions_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(SplitWriter.__init__, "__kwdefaults__", {"shard_bytes": 3000})
    build({"train": tiny_items(12)}, tmp_path / "out", dataset="x", skips=Skips())
    assert len(list((tmp_path / "out").glob("*train.array_record-*-of-*"))) > 2
    source = open_prepared(tmp_path / "out", "train")
    np.testing.assert_array_equal(source.num_captions, np.arange(1, 13))
    assert [example.name for example in source] == [f"{i}.jpg" for i in range(12)]


def test_all_skipped_names_the_main_reason(flickr8k, tmp_path):
    for path in (flickr8k / "Flicker8k_Dataset").iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"no image of flickr8k .*\(4x\): not an image file"):
        prepare("flickr8k", flickr8k, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [flickr8k]


def test_one_empty_split_is_told_apart(tmp_path):
    splits = {"train": tiny_items(), "dev": [Item("gone.jpg", ["A ."], tmp_path / "gone.jpg", "row")]}
    manifest = build(splits, tmp_path / "out", dataset="x", skips=Skips())
    assert manifest["splits"]["dev"]["n_images"] == 0
    with pytest.raises(UserError, match="split 'dev' .* is empty .*use train"):
        open_prepared(tmp_path / "out", "dev")


def test_taken_output_is_refused(flickr8k, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare("flickr8k", flickr8k, out)  # an empty folder is fine
    with pytest.raises(UserError, match="already holds a prepared dataset"):
        prepare("flickr8k", flickr8k, out)
    with pytest.raises(UserError, match="not an empty folder"):
        prepare("flickr8k", flickr8k, flickr8k)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")])
def test_interrupted_build_leaves_nothing(error, tmp_path):
    def items():
        yield from tiny_items()
        raise error

    with pytest.raises(type(error)):
        build({"train": items()}, tmp_path / "out", dataset="x", skips=Skips())
    assert list(tmp_path.iterdir()) == []


def test_killed_build_is_cleaned_up_by_the_next(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
def items():
    yield Item("a.jpg", ["a"], {jpeg()!r}, "row")
    os.kill(os.getpid(), signal.SIGKILL)
build({{"train": items()}}, Path({str(tmp_path / "out")!r}), dataset="x", skips=Skips())
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith("out.partial-")
    with pytest.raises(UserError, match="no prepared dataset"):
        open_prepared(tmp_path / "out", "train")
    build({"train": tiny_items()}, tmp_path / "out", dataset="x", skips=Skips())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("write failed: No space left on device")],
)
def test_full_disk_is_one_line(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(build_module.SplitWriter, "write", fail)
    with pytest.raises(UserError, match="the disk of .*out is full"):
        build({"train": tiny_items()}, tmp_path / "out", dataset="x", skips=Skips())
    assert list(tmp_path.iterdir()) == []


def test_missing_layout_names_what_is_missing(tmp_path):
    expected = {
        "flickr8k": "Flicker8k_Dataset", "flickr30k": "flickr30k-images", "coco": "val2014",
        "cc": "no .tar", "jsonl": "no .jsonl", "folder": "no photos",
    }  # fmt: skip
    for dataset, words in expected.items():
        with pytest.raises(UserError, match=words):
            main([dataset, f"--source={tmp_path}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="is not a folder"):
        main(["cc", f"--source={tmp_path / 'gone'}", f"--out={tmp_path / 'out'}"])


def test_unknown_split_is_named(flickr8k, tmp_path):
    with pytest.raises(UserError, match="no split 'val': it has train, dev"):
        prepare("flickr8k", flickr8k, tmp_path / "out", "--splits=val")


def test_progress_line(capsys):
    progress = Progress("train", 100, every=0)
    progress.start -= 10
    progress.update(50)
    assert capsys.readouterr().err == "train: 50/100, 5 images/s, 0 min 10 s left\n"
    Progress("train", 100, every=60).update(50)
    assert capsys.readouterr().err == ""


def test_tokenizer_program(flickr8k, tmp_path, capsys):
    prepare("flickr8k", flickr8k, tmp_path / "data")
    command = ["tokenizer", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'tok'}", "--vocab_size=40"]
    assert main(command) == 0
    assert "4 captions of train" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a tokenizer"):
        main(command)


def test_all_of_it_without_tensorflow(flickr8k, tmp_path):
    program = """
import sys
from smke_jax.programs.prepare import main
from smke_jax.data.sources import open_prepared
from smke_jax.data.tokenizer import load_tokenizer
source, data, tok = sys.argv[1:]
main(["flickr8k", "--source=" + source, "--out=" + data])
main(["tokenizer", "--data=" + data, "--out=" + tok, "--vocab_size=40"])
load_tokenizer(tok).encode(list(open_prepared(data, "train")[0].captions), 8)
assert "tensorflow" not in sys.modules
"""
    arguments = [flickr8k, tmp_path / "data", tmp_path / "tok"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)


@pytest.mark.real_data
def test_real_flickr8k(real_data, tmp_path):
    original = real_data / "flickr8k"
    names = (original / "Flickr8k_text/Flickr_8k.devImages.txt").read_text().split()[:60]
    source = write(tmp_path / "source", {"Flickr8k_text/Flickr_8k.devImages.txt": "\n".join(names)})
    (source / "Flicker8k_Dataset").symlink_to(original / "Flicker8k_Dataset")
    (source / "Flickr8k_text/Flickr8k.token.txt").symlink_to(original / "Flickr8k_text/Flickr8k.token.txt")
    manifest = prepare("flickr8k", source, tmp_path / "out")
    assert manifest["n_skipped"] == 0
    dev = open_prepared(tmp_path / "out", "dev")
    assert [example.name for example in dev] == names
    assert 4 <= dev.num_captions.min() and dev.num_captions.max() == 5
    assert decode_image(dev[0].image).shape == (128, 128, 3)
