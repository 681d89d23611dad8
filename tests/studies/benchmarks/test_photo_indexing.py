"""The benchmark of indexing runs on a few made-up photos, and what it times is an index of all of them."""

import re

import numpy as np
import pytest
from PIL import Image
from tiny_export import save_model

import smke_jax
from smke_jax.errors import UserError
from smke_jax.search.store import Index
from smke_jax.studies.benchmarks import photo_indexing


@pytest.fixture
def photos(tmp_path):
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    (folder / "below").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "below" / f"{i}.jpg")
    return folder


def test_the_table_has_all_figures(photos, tmp_path):
    out = tmp_path / "table.md"
    argv = [f"--model={save_model(tmp_path / 'model')}", f"--photos={photos}", "--count=4", "--rounds=2"]
    assert photo_indexing.main([*argv, "--batch_size=2", "--tiles=1", f"--out={out}"]) == 0
    text = out.read_text()
    assert "4 JPEGs of 1² photos of photos" in text and "nan" not in text
    numbers = re.findall(r"[\d.]+ \([\d.]+–[\d.]+\)", text)
    assert len(numbers) == 10 and all(float(x.split()[0]) > 0 for x in numbers)


def test_what_is_timed_is_an_index_of_all_photos_with_the_embeddings_of_the_files(photos, tmp_path):
    model, work = smke_jax.load(save_model(tmp_path / "model")), tmp_path / "work"
    work.mkdir()
    paths = photo_indexing.first_photos(photos, 5)
    indexing = photo_indexing.Indexing(model, paths, 2, work)
    assert (indexing(), indexing()) == (5, 5), "the second index took over what the first has"
    np.testing.assert_allclose(Index(work / "index1").rows, model.encode_images(paths), atol=1e-3)


def test_mosaics_are_large_and_differ(photos, tmp_path):
    paths = photo_indexing.first_photos(photos, 3)
    made = photo_indexing.mosaics(paths, 2, tmp_path / "mosaics")
    first, second, _ = (np.asarray(Image.open(path), np.int16) for path in made)
    assert first.shape == (512, 512, 3)
    same = lambda a, b: abs(a - b).mean() < 8  # noqa: E731
    assert same(first[:256, 256:], second[:256, :256]) and not same(first, second)


def test_too_few_photos_are_refused(photos):
    with pytest.raises(UserError, match="holds 5 photos: give --count=5 or another --photos"):
        photo_indexing.first_photos(photos, 6)
