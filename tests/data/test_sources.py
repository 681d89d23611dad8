"""Random access to prepared data, from threads, from other processes, and in memory."""

import concurrent.futures
import io
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.sources import ArraySource, Example, open_prepared
from smke_jax.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    items = []
    for i in range(20):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(buffer, "PNG")
        items.append(Item(f"{i}.png", [f"Größe {i} {k}" for k in range(i % 3 + 1)], buffer.getvalue(), "row"))
    out = tmp_path_factory.mktemp("prepared") / "data"
    build({"train": items[:15], "dev": items[15:]}, out, dataset="made_up", skips=Skips())
    return out


def name_of(source, index: int) -> str:
    return source[index].name


def test_examples(directory):
    source = open_prepared(directory, "train")
    example = source[4]
    assert isinstance(example, Example)
    assert example.captions == ("Größe 4 0", "Größe 4 1") and example.name == "4.png"
    assert isinstance(example.image, bytes) and example.image.startswith(b"\x89PNG")
    assert len(source) == 15 and len(list(source)) == 15
    assert source[np.int64(4)] == example


def test_attributes(directory):
    source = open_prepared(str(directory), "dev")
    assert source.split == "dev" and source.manifest["dataset"] == "made_up"
    assert source.digest == source.manifest["splits"]["dev"]["digest"]
    assert source.num_captions.dtype == np.int32
    np.testing.assert_array_equal(source.num_captions, [len(example.captions) for example in source])
    assert str(directory) not in repr(source)


@pytest.mark.parametrize("index", [15, -1])
def test_outside_is_an_index_error(directory, index):
    with pytest.raises(IndexError):
        open_prepared(directory, "train")[index]


def test_threads_agree(directory):
    source = open_prepared(directory, "train")
    indices = np.random.default_rng(0).integers(0, 15, 500).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [e.name for e in pool.map(source.__getitem__, indices)] == [f"{i}.png" for i in indices]


def test_pickled_source_reads_the_same(directory, monkeypatch, tmp_path):
    monkeypatch.chdir(directory.parent)
    source = open_prepared(directory.name, "train")
    source[0]
    data = pickle.dumps(source)
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data)[7] == source[7]


def test_read_in_a_spawned_process(directory):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(name_of, open_prepared(directory, "train"), 3).result(60) == "3.png"


def test_grain_reads_it(directory):
    import grain

    dataset = grain.MapDataset.source(open_prepared(directory, "train")).shuffle(seed=1)
    assert sorted(dataset[i].name for i in range(15)) == sorted(f"{i}.png" for i in range(15))


def test_mistakes_are_named(directory, tmp_path):
    with pytest.raises(UserError, match="no prepared dataset at .*smke prepare"):
        open_prepared(tmp_path / "gone", "train")
    with pytest.raises(UserError, match="no split 'test': it has train, dev"):
        open_prepared(directory, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no manifest.json"):
        open_prepared(tmp_path / "empty", "train")


def test_damaged_folders_are_named(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["n_images"] = 14
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not hold what its manifest says"):
        open_prepared(copy, "train")
    next(copy.glob("*-dev.*")).unlink()
    with pytest.raises(UserError, match="-dev.array_record-00000-of-00001 is missing"):
        open_prepared(copy, "dev")
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="has format 99"):
        open_prepared(copy, "train")
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        open_prepared(copy, "train")


def test_array_source():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    source = ArraySource(images, [["one"], ["two", "three"]])
    assert len(source) == 2 and source[1].captions == ("two", "three") and source[1].name == "1"
    np.testing.assert_array_equal(source[0].image, images[0])
    np.testing.assert_array_equal(source.num_captions, np.array([1, 2], np.int32))
    assert len(list(pickle.loads(pickle.dumps(source)))) == 2


def test_array_source_refuses_what_does_not_fit():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="2 images, 1 caption lists"):
        ArraySource(images, [["one"]])
    with pytest.raises(ValueError, match="uint8"):
        ArraySource(images.astype(np.float32), [["one"], ["two"]])
