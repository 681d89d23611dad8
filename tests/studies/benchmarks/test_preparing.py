"""The benchmark of preparing runs on a few made-up photos, and predicts what its milliseconds say."""

import re

import numpy as np
import pytest
from PIL import Image

from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import preparing


@pytest.fixture
def photos(tmp_path):
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.jpg")
    return folder


def test_the_table_has_all_figures(photos, tmp_path):
    out = tmp_path / "table.md"
    argv = [f"--photos={photos}", "--count=4", "--size=40x30", "--max_side=16", "--rounds=1", f"--out={out}"]
    assert preparing.main(argv) == 0
    text = out.read_text()
    assert "4 photos of photos, scaled to 40 × 30 pixels" in text and "--size=40x30 --max_side=16" in text
    rows = re.findall(r"^\| ([12]) \| .*\(.*\| .*\(.*\| (\S+) \(.*\| (\S+) \(.*\|$", text, re.MULTILINE)
    own, below = (dict(zip("12", column, strict=True)) for column in zip(*(row[1:] for row in rows), strict=True))
    assert float(below["1"]) == 0 < float(below["2"]) and float(own["2"]) > 0
    assert text.count("| all work |") + text.count("| reading and writing |") == len(preparing.CORES)


def test_one_process_that_writes_bounds_what_many_cores_do():
    given = {"photos": 3600, "own": 1.0, "children": 7.0, "alone": 6.0}
    assert preparing.hours(cores=1, **given) == pytest.approx((1000 / 6, 0.006))
    assert preparing.hours(cores=2, **given) == pytest.approx((250, 0.004))
    assert preparing.hours(cores=64, **given) == pytest.approx((1000, 0.001))


def test_a_size_that_is_none(photos):
    with pytest.raises(UserError, match="--size=40 is no size: give one such as 640x480"):
        preparing.main([f"--photos={photos}", "--size=40"])
