"""The efficiency tables of two small models: sizes counted by hand, both sides timed, recalls of a prepared folder."""

import re

import jax
import made_up
import numpy as np
import pytest
from tiny_export import save_model

from smke_jax.convert.params_file import load_params
from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import efficiency


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [save_model(tmp_path_factory.mktemp(f"model{seed}"), seed) for seed in (0, 1)]


def scalars(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_sizes_are_those_of_what_each_side_depends_on(models):
    params = load_params(models[0])
    found = efficiency.open_model(models[0])
    types = params["type_embedding"].size // 2 * 2
    shared = scalars(params["shared"]) + scalars(params["type_scale"]) + types
    assert found.counts["image"] == scalars(params["image_encoder"]) + shared
    assert found.counts["text"] == scalars(params["text_encoder"]) + shared
    assert found.counts["both"] == scalars(params) - scalars(params["head"]) - scalars(params["head_norm"])
    sizes = found.sizes["both"]
    np.testing.assert_allclose([sizes["fp32"], sizes["fp16"]], found.counts["both"] / 2**20 * np.array([4, 2]))
    assert found.counts["both"] / 2**20 < sizes["int8"] < sizes["fp32"]


def test_the_tables(models, tmp_path):
    files = {f"{i}.jpg": made_up.jpeg(i) for i in range(6)} | {
        f"{i}.txt": f"a red dog {i}\nthe blue snow" for i in range(6)
    }
    made_up.prepare("folder", made_up.write(tmp_path / "photos", files), tmp_path / "data")
    out = tmp_path / "table.md"
    argv = [*map(str, models), "--batch_size=4", "--rounds=2", "--seconds=0.01", f"--out={out}"]
    argv += [f"--data={tmp_path / 'data'}", "--split=train"]
    assert efficiency.main(argv) == 0
    text = out.read_text()
    assert len(re.findall(r"^\| (?:images|texts) \| [14] \|", text, re.MULTILINE)) == 4
    assert len(re.findall(r"^\| model\d* \| 6 \|", text, re.MULTILINE)) == 2 or text.count("| 6 |") == 2
    assert text.count("× 1.00") >= 4 and "nan" not in text.lower()


def test_one_side_alone_is_refused(tmp_path):
    folder = save_model(tmp_path)
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="does not embed both images and texts: give image-text models"):
        efficiency.open_model(folder)
