"""The two pipelines do the same work, and the program writes what it measured."""

import re

import numpy as np
import pytest
import tiny_pairs
from PIL import Image

from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.data.transforms import View
from smke_jax.programs import prepare
from smke_jax.studies.benchmarks import input_pipeline
from smke_jax.studies.benchmarks.pytorch_data import Collate, Photos, loader

COUNT, SIZE = 12, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder of made-up photos."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((30, 30), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)
        (folder / f"{i}.txt").write_text(f"picture {i}\nanother of {i}\n")
    out = tmp_path_factory.mktemp("prepared") / "data"
    assert prepare.main(["folder", f"--source={folder}", f"--out={out}"]) == 0
    return folder, out


def test_pytorch_sees_what_we_see(data):
    folder, _ = data
    paths = [folder / f"{i}.jpg" for i in range(COUNT)]
    captions = [path.with_suffix(".txt").read_text().splitlines() for path in paths]
    tokenizer = train_wordpiece((text for texts in captions for text in texts), 60)
    photos = Photos(paths, captions, SIZE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    ours = [View(SIZE, (1.0, 1.0), (1.0, 1.0), flip=0.0)(Image.open(p), np.random.default_rng(0)) for p in paths]
    batch = next(iter(loader(photos, Collate(tokenizer, 8), COUNT, workers=0)))
    assert batch["image"].shape == (COUNT, SIZE, SIZE, 3)
    seen = set()
    for image, ids in zip(batch["image"].numpy(), batch["text"].numpy(), strict=True):
        matches = [i for i, x in enumerate(ours) if (x == image).all() or (x[:, ::-1] == image).all()]
        assert len(matches) == 1  # each photo as a whole, mirrored or not
        assert any((tokenizer.encode([text], 8)[0][0] == ids).all() for text in captions[matches[0]])
        seen.update(matches)
    assert len(seen) > COUNT // 3  # drawn at random
    boxes = [Photos(paths, captions, SIZE, (0.3, 0.5), (0.75, 4 / 3))._box(100, 80) for _ in range(50)]
    areas = [(right - left) * (bottom - top) / 8000 for left, top, right, bottom in boxes]
    assert 0.3 <= min(areas) < 0.35 < 0.45 < max(areas) <= 0.5


def test_the_program_writes_both_tables(data, tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipeline, "BATCH", 4)
    monkeypatch.setattr(input_pipeline, "WORKERS", (0,))  # no processes beside JAX's threads
    config, out = tmp_path / "config.py", tmp_path / "out.md"
    config.write_text(tiny_pairs.CONFIG_FILE)
    arguments = [f"--data={data[1]}", f"--image_size={SIZE}", "--rounds=2", "--seconds=0.05"]
    assert input_pipeline.main([*arguments, f"--config={config}", "--steps=3", f"--out={out}"]) == 0
    text = out.read_text()
    number = r"[\d.,]+ \([\d.,]+–[\d.,]+\)"
    for unit in ("second", "CPU second"):
        assert re.search(rf"\| 0 \| examples per {unit} \| {number} \| {number} \| {number} \|", text)
    assert f"folder, train: {COUNT} photos, the first 30 × 30 pixels" in text
    assert len(re.findall(r"\| 8 \| 3 \| [\d.,]+ \(.*?\) \| [\d.]+ % \([\d.]+ %\) \|", text)) == 2
