"""The prepared folder is whole or absent, and its manifest says what is in it."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from made_up import jpeg, prepare, tiny_items, write

from smke_jax.data.decode import decode_image
from smke_jax.data.mixture import open_mixture
from smke_jax.data.pipeline import InMemorySource
from smke_jax.data.prepare import build as build_module
from smke_jax.data.prepare import check as check_module
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.prepare.journal import Journal, Outcome
from smke_jax.data.prepare.shards import SplitWriter
from smke_jax.data.progress import Progress
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError
from smke_jax.programs.prepare import main


def test_max_side_reduces_the_shorter_side(tmp_path):
    sizes = {"wide": (200, 100), "tall": (90, 300), "small": (20, 40)}
    files = {f"{name}.png": jpeg(1, size, "PNG") for name, size in sizes.items()}
    source = write(tmp_path / "s", files | {f"{name}.txt": "A ." for name in sizes})
    prepare("folder", source, tmp_path / "out", "--max_side=50")
    images = {e.name: e.image for e in open_prepared(tmp_path / "out", "train")}
    assert images["small.png"] == files["small.png"]
    assert all(images[name].startswith(b"\xff\xd8") for name in ("wide.png", "tall.png"))
    shapes = {name: decode_image(image).shape for name, image in images.items()}
    assert shapes == {"wide.png": (50, 100, 3), "tall.png": (167, 50, 3), "small.png": (40, 20, 3)}


def test_what_was_done_to_photos_is_said_where_figures_are(tmp_path):
    source = write(tmp_path / "s", {"a.png": jpeg(1, (90, 60), "PNG"), "a.txt": "A ."})
    for side, about in ((50, "photos stored at 50 px"), (60, "")):
        prepare("folder", source, tmp_path / f"out{side}", f"--max_side={side}")
        opened = open_prepared(tmp_path / f"out{side}", "train")
        assert opened.about == InMemorySource(opened).about == about
    mixture = open_mixture([tmp_path / "out50", tmp_path / "out60"], "train")
    assert mixture.about == "photos stored at 50 px"


def test_max_side_of_pictures_wider_than_a_jpeg_can_be(tmp_path):
    wide = {f"{width}.png": jpeg(1, (width, height), "PNG") for width, height in ((70_000, 20), (70_000 * 2, 40))}
    source = write(
        tmp_path / "s", wide | {f"{name[:-4]}.txt": "A ." for name in wide} | {"b.txt": "B .", "b.jpg": jpeg()}
    )
    manifest = prepare("folder", source, tmp_path / "out", "--max_side=20")
    images = {e.name: decode_image(e.image).shape for e in open_prepared(tmp_path / "out", "train")}
    assert images == {"140000.png": (20, 70_000, 3), "70000.png": (20, 70_000, 3), "b.jpg": (20, 27, 3)}
    assert manifest["splits"]["train"]["n_reencoded"] == 2


def test_whatever_one_picture_does_to_its_decoder(tmp_path, monkeypatch):
    def fail(data, **_):
        if data == b"1":
            raise MemoryError

    monkeypatch.setattr(check_module, "open_image", fail)
    items = [Item(name, ["A ."], name.encode(), name) for name in "012"]
    manifest = build({"train": items}, tmp_path / "out", dataset="x", skips=Skips())
    assert manifest["skip_reasons"] == {"cannot be read: MemoryError": 1}
    assert (manifest["n_read"], manifest["n_kept"], manifest["n_skipped"]) == (3, 2, 1)


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
    with pytest.raises(UserError, match=r"no image of flickr8k .*\(4x, first at .*\): not an image file"):
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
from smke_jax.data.prepare.journal import Journal, Outcome
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
    (tmp_path / "out.partial-mine").mkdir()
    build({"train": tiny_items()}, tmp_path / "out", dataset="x", skips=Skips())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial-mine"]


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


def test_unknown_split_is_named(flickr8k, tmp_path):
    with pytest.raises(UserError, match="no split 'val': it has train, dev"):
        prepare("flickr8k", flickr8k, tmp_path / "out", "--splits=val")


def test_progress_line(capsys):
    progress = Progress("train", 100, every=0)
    progress.start -= 10
    progress.update(50)
    assert capsys.readouterr().err == "train: 50/100, 5/s, 0 min 10 s left\n"
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


SMALL_SHARDS = 3000  # bytes: one to three photos each


def mixed_items(folder):
    """Photos in files and in bytes, a broken one, and one without a caption."""
    items = tiny_items(12)
    files = []
    for i, item in enumerate(items):
        path = folder / f"{i}.jpg"
        path.write_bytes(b"no picture" if i == 4 else item.image)
        files.append(item._replace(image=path if i % 2 == 0 else item.image, captions=[] if i == 2 else item.captions))
    return files


def stop_after(items, count):
    yield from items[:count]
    raise KeyboardInterrupt


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "stops, name", [((7,), "photos [1]"), ((3, 7, 11), "out"), ((12,), "n" * 255), ((7,), "ü" * 127)]
)
def test_an_interrupted_build_goes_on_and_writes_the_same(stops, name, tmp_path, monkeypatch):
    monkeypatch.setattr(SplitWriter.__init__, "__kwdefaults__", {"shard_bytes": SMALL_SHARDS})
    files = tmp_path / "files"
    files.mkdir()
    items = mixed_items(files)
    given = {"dataset": "x", "created_by": {"out": "out"}, "max_side": 20}
    whole = build({"train": items, "dev": tiny_items(2)}, tmp_path / "whole", skips=Skips(), **given)
    loads = []
    load = check_module._load
    monkeypatch.setattr(check_module, "_load", lambda item, side: loads.append(item.name) or load(item, side))
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            splits = {"train": stop_after(items, stop), "dev": tiny_items(2)}
            build(splits, tmp_path / name, skips=Skips(), **given)
        assert not (tmp_path / name).exists()
    before = len(loads)
    again = build({"train": items, "dev": tiny_items(2)}, tmp_path / name, skips=Skips(), **given)
    assert again == whole
    assert contents(tmp_path / name) == contents(tmp_path / "whole")
    assert len(loads) - before < 14 - stops[-1] + 4, "what a closed shard has is decoded again"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["files", name, "whole"])


def test_what_changed_in_between_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(SplitWriter.__init__, "__kwdefaults__", {"shard_bytes": SMALL_SHARDS})
    files = tmp_path / "files"
    files.mkdir()
    items = mixed_items(files)
    with pytest.raises(KeyboardInterrupt):
        build({"train": stop_after(items, 10)}, tmp_path / "out", dataset="x", skips=Skips())
    changed = [items[0]._replace(captions=["another caption"]), *items[1:]]
    with pytest.raises(UserError, match="is not what it was before an interruption: delete .*out.partial-"):
        build({"train": changed}, tmp_path / "out", dataset="x", skips=Skips())
    # Other options are other work: nothing is taken over.
    build({"train": changed}, tmp_path / "out", dataset="x", skips=Skips(), max_side=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "out"]


def test_a_journal_that_was_cut_off_is_read_up_to_its_last_closed_shard(tmp_path):
    journal = Journal(tmp_path, "train")
    journal.add(Outcome("a", "00", False))
    journal.seal([1], 10)
    journal.add(Outcome("b", reason="not an image file"))
    journal.seal([1, 1], 20)
    journal.close()
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(tmp_path, "train")
    assert (journal.done, journal.lengths, journal.num_bytes) == ([Outcome("a", "00", False)], [1], 10)
    journal.close()
