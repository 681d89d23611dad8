"""The index follows its folder of photos, and survives kills and damage."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted import WIDTH, Planted, embedding, picture, run, write_photos

from smke_jax.errors import UserError
from smke_jax.search import store
from smke_jax.search.query import searchable
from smke_jax.search.store import RECORD, About, Index, writing

NAMES = {"a.png": 1, "b.png": 2, "sub/c.png": 3, "sub/d.png": 4, "e.png": 5}


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", NAMES)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "index"


def contents(out) -> dict[str, np.ndarray]:
    index = Index(out)
    live = np.flatnonzero(index.live).tolist()
    found = {index.name(i): np.array(index.rows[i], np.float32) for i in live}
    assert len(found) == len(live) and all(index.is_sound(i) for i in live)
    return found


def holds(out, photos) -> bool:
    """Whether the index has every readable photo of the folder, with its own embedding, and nothing else."""
    expected = {str(p.relative_to(photos)): embedding(p.read_bytes()) for p in photos.rglob("*.png")}
    found = contents(out)
    return found.keys() == expected.keys() and all(np.allclose(found[n], expected[n], atol=2e-3) for n in found)


def counted(counts) -> dict[str, int]:
    found = {key: value for key, value in vars(counts).items() if key not in ("left", "found") and value}
    assert counts.found == sum(
        getattr(counts, key) for key in ("unchanged", "moved", "new", "changed")
    ) + sum(not x.is_folder for x in counts.left)  # fmt: skip
    return found


def test_new_changed_moved_copied_and_deleted_photos(photos, out):
    assert counted(run(photos, out)) == {"new": 5} and holds(out, photos)
    embedder = Planted()
    assert counted(run(photos, out, embedder)) == {"unchanged": 5} and embedder.read == 0
    (photos / "a.png").write_bytes(picture(11))  # changed
    (photos / "b.png").rename(photos / "sub/moved.png")
    (photos / "sub/c.png").unlink()
    (photos / "copy.png").write_bytes((photos / "e.png").read_bytes())
    os.utime(photos / "sub/d.png", (1, 1))  # another date, the same bytes
    (photos / "new.png").write_bytes(picture(6))
    counts = counted(run(photos, out, embedder))
    assert counts == {"changed": 1, "moved": 2, "deleted": 2, "unchanged": 2, "new": 1, "cleared": 4}
    assert embedder.read == 2 and holds(out, photos)
    assert counted(run(photos, out, embedder)) == {"unchanged": 6} and embedder.read == 2


def test_a_photo_that_comes_back_keeps_its_embedding(photos, out):
    run(photos, out)
    data = (photos / "a.png").read_bytes()
    (photos / "a.png").unlink()
    run(photos, out)
    (photos / "again.png").write_bytes(data)
    embedder = Planted()
    assert counted(run(photos, out, embedder)) == {"moved": 1, "unchanged": 4} and embedder.read == 0
    assert holds(out, photos)


def test_a_photo_of_the_same_size_is_told_by_its_bytes(photos, out):
    (photos / "a.png").write_bytes(b"x" * 10)
    run(photos, out)
    old = (photos / "b.png").read_bytes()
    for seed in range(100, 400):
        if len(picture(seed)) == len(old):
            (photos / "b.png").write_bytes(picture(seed))
            break
    os.utime(photos / "b.png", (1_700_000_001, 1_700_000_001))
    (photos / "a.png").unlink()
    assert counted(run(photos, out)) == {"unchanged": 3, "changed": 1} and holds(out, photos)


def test_what_cannot_be_read_is_counted_and_listed(photos, out):
    (photos / "broken.png").write_bytes(picture(1)[:40])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "b.png").write_bytes(b"no picture")
    run(photos, out)
    (photos / "sub/c.png").write_bytes(b"no more a picture")
    counts = run(photos, out)
    assert counted(counts) == {"unchanged": 3, "cleared": 1} and counts.found == 7
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {"broken.png", "empty.jpg", "b.png", "sub/c.png"}
    assert {line["reason"] for line in lines if line["name"] != "broken.png"} == {"not an image file", "empty file"}
    assert contents(out).keys() == {"a.png", "sub/d.png", "e.png"}


def test_photos_below_a_folder_that_is_closed_now_stay(photos, out, monkeypatch):
    run(photos, out)
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(photos / "sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (photos / "a.png").unlink()
    counts = run(photos, out)
    assert counted(counts) == {"unchanged": 2, "kept": 2, "deleted": 1}
    monkeypatch.undo()
    assert counted(run(photos, out)) == {"unchanged": 4} and holds(out, photos)


def test_no_photos_are_refused_and_take_nothing_away(photos, out, tmp_path):
    run(photos, out)
    before = contents(out).keys()
    photos.rename(tmp_path / "elsewhere")
    photos.mkdir()  # a disk that is not connected
    with pytest.raises(UserError, match="no photos below .*photos; the index stays as it is"):
        run(photos, out)
    (photos / "x.cr2").touch()
    with pytest.raises(UserError, match=r"no photos below .* \(1 left out, the first, x.cr2: raw photo"):
        run(photos, tmp_path / "other")
    assert contents(out).keys() == before


def test_a_folder_of_photos_may_move(photos, out, tmp_path):
    run(photos, out)
    with pytest.raises(UserError, match="is of the photos in .*photos: give --out a new folder"):
        run(write_photos(tmp_path / "others", {"x.png": 9}), out)
    moved = photos.rename(tmp_path / "disk")
    assert counted(run(moved, out)) == {"unchanged": 5} and holds(out, moved)
    assert Index(out).path(0) == moved / "a.png"


def test_odd_names_come_back(tmp_path, out):
    names = [b"new\nline.png", b"\xff.png", b"y" * 251 + b".png"]
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(names):
        with open(os.path.join(os.fsencode(tmp_path / "photos"), name), "wb") as file:
            file.write(picture(seed))
    run(tmp_path / "photos", out)
    assert sorted(map(os.fsencode, contents(out))) == sorted(names) and holds(out, tmp_path / "photos")


class Stop(Exception):
    pass


def stop():
    raise Stop


@pytest.mark.parametrize("after", range(5))
def test_a_stop_loses_no_batch_that_was_done(photos, out, after):
    embedder = Planted(after, stop)
    with pytest.raises(Stop):
        run(photos, out, embedder)
    assert len(contents(out)) == after // 2 * 2
    again = Planted()
    run(photos, out, again)
    assert holds(out, photos) and again.read == 5 - after // 2 * 2


@pytest.mark.parametrize("place", range(15))
def test_a_stop_between_any_two_writes_loses_nothing(photos, out, place, monkeypatch):
    """Also one in the middle of a write, for all files, and where the index is written anew at the end."""
    run(photos, out)
    (photos / "a.png").write_bytes(picture(11))
    (photos / "e.png").unlink()
    (photos / "sub/c.png").rename(photos / "c.png")
    write, calls = store._append, []

    def cut(path, data):
        calls.append(path)
        if len(calls) > place:
            if data:
                write(path, data[: len(data) // 2])
            raise Stop
        write(path, data)

    monkeypatch.setattr(store, "_append", cut)
    try:
        run(photos, out)
    except Stop:
        pass
    monkeypatch.undo()
    assert len(calls) == min(place + 1, 14)
    embedder = Planted()
    run(photos, out, embedder)
    assert holds(out, photos) and embedder.read == (place < 9)
    assert counted(run(photos, out)) == {"unchanged": 4}
    assert len(Index(out).records) == 4 and len(list(out.glob("*.bin"))) == 4


def names_of(out) -> set[str]:
    return {path.name for path in out.glob("*.bin")}


def test_photos_that_are_gone_leave_the_files(photos, out):
    run(photos, out)
    (photos / "a.png").unlink()
    assert counted(run(photos, out)) == {"unchanged": 4, "deleted": 1}  # a fifth, and no more
    before = Index(out)
    (photos / "sub/c.png").unlink()
    assert counted(run(photos, out)) == {"unchanged": 3, "deleted": 1, "cleared": 2} and holds(out, photos)
    assert names_of(out) == {"photos.1.bin", "rows.1.bin", "names.1.bin", "gone.1.bin"}
    after = Index(out)
    assert after.live.all() and (out / "rows.1.bin").stat().st_size == 3 * 2 * WIDTH
    for number in range(3):
        old = next(i for i in range(5) if before.name(i) == after.name(number))
        for field in ("size", "mtime", "taken", "digest", "typical", "spread"):
            np.testing.assert_array_equal(after.records[field][number], before.records[field][old])
        assert before.is_sound(old)  # who has opened the old files goes on with them
    (photos / "b.png").unlink()
    write_photos(photos, {"new.png": 7})
    assert counted(run(photos, out)) == {"unchanged": 2, "deleted": 1, "new": 1, "cleared": 1} and holds(out, photos)
    assert names_of(out) == {"photos.2.bin", "rows.2.bin", "names.2.bin", "gone.2.bin"}


def test_a_stop_before_the_old_files_are_removed(photos, out, monkeypatch):
    run(photos, out)
    for name in ("a.png", "b.png"):
        (photos / name).unlink()
    remove, calls = store._remove_other_generations, []

    def stop_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise Stop
        remove(*arguments)

    monkeypatch.setattr(store, "_remove_other_generations", stop_the_second)
    with pytest.raises(Stop):
        run(photos, out)
    assert len(names_of(out)) == 8 and holds(out, photos)
    assert counted(run(photos, out)) == {"unchanged": 3} and len(names_of(out)) == 4 and holds(out, photos)


def test_a_reader_while_the_index_is_written_anew(photos, out, monkeypatch):
    run(photos, out)
    for name in ("a.png", "b.png"):
        (photos / name).unlink()
    read, waiting = store._mapped, [None]

    def late(path, width):
        if waiting:
            waiting.clear()
            run(photos, out)
        return read(path, width)

    monkeypatch.setattr(store, "_mapped", late)
    index = Index(out)
    assert index.about.generation == 1 and len(index.records) == 3 == index.live.sum()
    assert all(index.is_sound(i) for i in range(3))


def test_a_damaged_photo_does_not_become_a_sound_one(photos, out):
    run(photos, out)
    with writing(out, About("model", None, "a", WIDTH, str(photos))) as writer:
        writer.forget([0])
        with open(out / "rows.bin", "r+b") as file:
            file.seek(2 * WIDTH * 2)
            file.write(np.float16(0.5).tobytes())
        damaged = Index(out).name(2)
        assert writer.compact() == 2
    assert damaged not in contents(out) and len(contents(out)) == 3
    embedder = Planted()
    run(photos, out, embedder)
    assert holds(out, photos) and embedder.read == 2


SLOW = """
import sys, time
from pathlib import Path
from planted import Planted, run
print("ready", flush=True)
run(Path(sys.argv[1]), Path(sys.argv[2]), Planted(3, lambda: (print("three", flush=True), time.sleep(60))))
"""


def test_a_kill_and_two_at_once(photos, out):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, photos, out], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "three\n"]
    with pytest.raises(UserError, match="another `smke index` is writing to .*index: wait until it is done"):
        run(photos, out)
    assert len(contents(out)) == 2  # may be searched meanwhile
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = Planted()
    assert counted(run(photos, out, again)) == {"unchanged": 2, "new": 3}
    assert again.read == 3 and holds(out, photos)


def test_another_model_and_another_width_are_refused(photos, out):
    run(photos, out)
    with pytest.raises(UserError, match="was made by another model, model: give --out a new folder, or that model"):
        run(photos, out, digest="b")
    assert holds(out, photos)


def test_a_folder_with_other_things_is_no_index(photos, tmp_path):
    with pytest.raises(UserError, match="photos holds files and no index: give --out an empty or a new folder"):
        run(photos, photos)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: give --out a folder"):
        run(photos, tmp_path / "file")
    with pytest.raises(UserError, match="nothing holds no index: make one"):
        Index(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["photos.bin", "rows.bin", "names.bin", "gone.bin"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "removed", "flipped"])
def test_damaged_files_are_mended(photos, out, name, damage):
    run(photos, out)
    (photos / "b.png").unlink()
    run(photos, out)
    path = out / name
    data = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0x40
        path.write_bytes({"emptied": b"", "cut": data[: len(data) * 2 // 3], "flipped": data}[damage])
    run(photos, out)
    assert holds(out, photos)
    assert counted(run(photos, out)) == {"unchanged": 4}


def test_a_folder_of_photos_that_cannot_exist_is_not_there(photos, out):
    run(photos, out)
    said = json.loads((out / "index.json").read_text())
    for name in ("x" * 5000, "a\0b"):
        (out / "index.json").write_text(json.dumps(said | {"photos": name}))
        with pytest.raises(UserError, match="is not there: connect its disk"):
            searchable(out)
    (out / "index.json").write_text(json.dumps(said | {"width": 1 << 40}))
    with pytest.raises(UserError, match="index.json is damaged"):
        searchable(out)


def test_a_search_says_that_rows_are_cut(photos, out):
    run(photos, out)
    os.truncate(out / "rows.bin", 2 * WIDTH)
    with pytest.raises(UserError, match="index is damaged, rows.bin or names.bin is cut: run `smke index` again"):
        Index(out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "model": 0, "step": 0, "digest": 0, '
                                  '"width": "x", "photos": ""}'])  # fmt: skip
def test_a_damaged_description_is_named(photos, out, text):
    run(photos, out)
    (out / "index.json").write_text(text)
    with pytest.raises(UserError, match="index.json is damaged: delete .*index and index again"):
        run(photos, out)


def test_an_index_of_another_format_is_named(photos, out):
    run(photos, out)
    (out / "index.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="written by another version of smke"):
        Index(out)


def test_the_record_has_no_padding_and_numbers_are_not_given_twice(photos, out):
    assert RECORD.itemsize == 64
    run(photos, out)
    (photos / "e.png").unlink()
    run(photos, out)  # number 3 or 4 is gone
    os.truncate(out / "photos.bin", 2 * RECORD.itemsize)  # and will be given again
    run(photos, out)
    assert holds(out, photos)


def test_the_usual_scores_are_of_the_phrases(photos, out):
    phrases = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    phrases /= np.linalg.norm(phrases, axis=1, keepdims=True)
    run(photos, out, phrases=phrases)
    index = Index(out)
    scores = np.array([embedding(index.path(i).read_bytes()) @ phrases.T for i in range(5)])
    np.testing.assert_allclose(index.records["typical"], scores.mean(1), atol=1e-5)
    np.testing.assert_allclose(index.records["spread"], scores.std(1), atol=1e-5)


def test_an_embedding_that_is_not_finite_is_left_out(photos, out):
    class Broken(Planted):
        def image_batches(self, images, *, batch_size):
            for found in super().image_batches(images, batch_size=batch_size):
                found.embeddings[0] = np.nan
                yield found

    counts = run(photos, out, Broken())
    assert counted(counts) == {"new": 2} and {x.reason for x in counts.left} == {"its embedding is not finite"}


def test_the_writer_is_one(photos, out):
    about = About("model", None, "a", WIDTH, str(photos))
    with writing(out, about):
        with pytest.raises(UserError, match="another `smke index`"):
            run(photos, out)
    assert counted(run(photos, out)) == {"new": 5}
