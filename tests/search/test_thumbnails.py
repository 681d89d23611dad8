"""Thumbnails: made once, forgotten by bytes, made anew for changed photos."""

import io
import os

import pytest
from made_up import jpeg
from PIL import Image

from smke_jax.data.decode import BadImage
from smke_jax.search import thumbnails
from smke_jax.search.thumbnails import Thumbnails


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The names of the photos that were decoded."""
    found, real = [], thumbnails.pixels_of

    def count(path, **more):
        found.append(path.name)
        return real(path, **more)

    monkeypatch.setattr(thumbnails, "pixels_of", count)
    return found


@pytest.fixture
def photos(tmp_path):
    for seed in range(4):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed, (80, 60)))
    return [tmp_path / f"{seed}.jpg" for seed in range(4)]


def test_those_not_asked_for_longest_are_forgotten(photos, decoded):
    sizes = [len(Thumbnails().get(path, 64)) for path in photos]
    decoded.clear()
    cache = Thumbnails(max_bytes=sum(sizes[:3]) + 20)
    for number in (0, 1, 2, 0, 3, 0, 1):
        cache.get(photos[number], 64)
        assert cache.num_bytes <= sum(sizes[:3]) + 20
    assert decoded == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "1.jpg"]


def test_sizes_and_changes_are_told_apart(photos, decoded):
    cache = Thumbnails()
    small, large = cache.get(photos[0], 20), cache.get(photos[0], 64)
    assert [Image.open(io.BytesIO(data)).size for data in (small, large)] == [(20, 15), (64, 48)]
    photos[0].write_bytes(jpeg(9, (80, 60)))
    os.utime(photos[0], (1, 1))
    assert cache.get(photos[0], 64) not in (small, large)
    photos[0].unlink()
    with pytest.raises(BadImage, match="No such file"):
        cache.get(photos[0], 64)


def test_files_are_decoded_no_larger_than_needed(tmp_path):
    (tmp_path / "large.jpg").write_bytes(data := jpeg(0, (800, 600)))
    for given in (tmp_path / "large.jpg", data, io.BytesIO(data)):
        assert thumbnails.pixels_of(given, min_side=140).shape == (150, 200, 3)


def test_one_that_is_larger_than_the_cache_is_not_held(photos):
    cache = Thumbnails(max_bytes=10)
    assert cache.get(photos[0], 64) and cache.num_bytes == 0


def test_a_pipe_in_the_place_of_a_photo_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="no file"):
        Thumbnails().get(tmp_path / "a.jpg", 64)
