"""Which files are photos, whatever stands around them."""

import os

import numpy as np
import pytest
from planted import picture, write_photos

from smke_jax.search.photos import Left, Photo, PhotoFile, digest_of, photos_below


def listed(root):
    found = list(photos_below(root))
    return [x.name for x in found if isinstance(x, Photo)], {x.name: x.reason for x in found if isinstance(x, Left)}


def test_photos_in_order_without_hidden_and_system_folders(tmp_path):
    names = [
        "b.JPG",
        "a.png",
        "sub/deep/c.webp",
        "sub/x.heic",
        ".hidden.png",
        ".cache/d.png",
        "@eaDir/e.png",
        "note.txt",
    ]
    write_photos(tmp_path, dict.fromkeys([*names, "$RECYCLE.BIN/f.png", "lost+found/g.png"], 0))
    assert listed(tmp_path) == (["a.png", "b.JPG", "sub/x.heic", "sub/deep/c.webp"], {})


def test_what_is_left_out_has_a_reason(tmp_path):
    write_photos(tmp_path, {"a.png": 0, "raw.CR2": 0})
    (tmp_path / "up").symlink_to(tmp_path)  # around in a circle
    (tmp_path / "broken.jpg").symlink_to("nothing")
    (tmp_path / "same.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    names, left = listed(tmp_path)
    assert names == ["a.png", "same.png"]
    assert left == {
        "raw.CR2": "raw photo: export it as JPEG to find it",
        "up": "link to a folder, which is not followed",
        "broken.jpg": "link or file cannot be read: No such file or directory",
        "pipe.jpg": "no regular file",
    }


@pytest.fixture
def closed(monkeypatch):
    """Closes a folder, for the superuser as well."""

    def close(folder):
        scandir = os.scandir

        def refuse(path):
            if str(path) == str(folder):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return close


def test_a_folder_that_cannot_be_read(tmp_path, closed):
    write_photos(tmp_path, {"a.png": 0, "closed/b.png": 1})
    closed(tmp_path / "closed")
    assert list(photos_below(tmp_path))[1:] == [Left("closed", "folder cannot be read: Permission denied", True)]


def test_odd_names(tmp_path):
    names = [b"new\nline.png", b"\xff\xfe.png", b"-x.png", b"y" * 251 + b".png", "ü✓.png".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(picture(0))
    found, left = listed(tmp_path)
    assert sorted(map(os.fsencode, found)) == sorted(names) and not left


def test_a_file_is_read_once_and_says_when_it_was_taken(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture(3, taken="2020:02:29 12:00:01"))
    os.utime(path, (0, 0))
    (photo,) = photos_below(tmp_path)
    file = PhotoFile(tmp_path, photo)
    assert file.read(1 << 20) == path.read_bytes() and file.digest == digest_of(path)
    assert np.datetime64(file.taken, "s") == np.datetime64("2020-02-29T12:00:01")
    path.unlink()
    with pytest.raises(OSError, match="^No such file or directory$"):
        file.read(9)


def test_without_exif_the_date_of_the_file_counts(tmp_path, monkeypatch):
    write_photos(tmp_path, {"a.png": 0})
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    __import__("time").tzset()
    (photo,) = photos_below(tmp_path)
    file = PhotoFile(tmp_path, photo)
    file.read(1 << 20)
    monkeypatch.undo()
    __import__("time").tzset()
    assert file.taken == 1_700_000_000 + 9 * 3600
