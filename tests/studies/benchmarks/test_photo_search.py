"""The benchmark of photo search runs on a few made-up photos, and what it times gives the right photos."""

import re

import numpy as np
import pytest
from tiny_export import save_model

from smke_jax.search.store import About, Index
from smke_jax.studies.benchmarks import photo_search


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def test_the_table_has_all_figures(model, tmp_path):
    out = tmp_path / "table.md"
    argv = [f"--model={model}", "--photos=1100", "--rounds=2", "--seconds=0.01", "--tries=1", f"--out={out}"]
    assert photo_search.main(argv) == 0
    text = out.read_text()
    assert "1,100 photos of 8 numbers each" in text and "NaN" not in text
    assert len(re.findall(r"^\|.*\d", text, re.MULTILINE)) == 10


def test_the_made_up_index_is_a_sound_one(tmp_path):
    about = About("model", None, "a", 16, str(tmp_path / "photos"))
    photo_search.make(tmp_path / "index", about, 1500)
    index = Index(tmp_path / "index")
    assert index.live.sum() == 1500 and all(index.is_sound(i) for i in range(0, 1500, 100))
    vector = np.array(index.rows[1234], np.float32)
    assert photo_search._find(index, vector).hits[0].path == index.path(1234)
    seconds, before, most = photo_search.refresh(tmp_path / "index")
    assert seconds > 0 and most >= before * 0.9 and Index(tmp_path / "index").live.sum() == 1500
