"""The benchmark of captions in parts runs the same step in both forms, and its table holds what it measured."""

from pathlib import Path

import numpy as np

from smke_jax.config_files import load_config, override
from smke_jax.studies.benchmarks import caption_length
from smke_jax.training.build import build_experiment, resolve

ROOT = Path(__file__).resolve().parents[3]
CONFIG = f"{ROOT}/configs/itc_only.py:smoke"
CHANGES = ["--config.batch_size=64", "--config.num_devices=1", "--config.networks.student.dtype=float32"]


def test_both_forms_take_the_same_steps_and_are_timed_in_turns(tmp_path, monkeypatch, capsys):
    def in_turns(runs, *, rounds, seconds):
        assert (rounds, seconds) == (2, 0.5) and list(runs) == [caption_length.PARTS, caption_length.WHOLE]
        losses = [run(2) for run in runs.values()]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        return {caption_length.PARTS: [3.0, 4.0], caption_length.WHOLE: [2.0, 2.0]}

    monkeypatch.setattr(caption_length, "in_turns", in_turns)
    out = tmp_path / "table.md"
    argv = [f"--config={CONFIG}", *CHANGES, "--rounds=2", "--seconds=0.5", "--max_lengths=64", f"--out={out}"]
    assert caption_length.main(argv) == 0
    (row,) = [line for line in out.read_text().splitlines() if line.startswith("| 1") or line.startswith("| 2")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "64" and " of 64" in cells[2] and ", " in cells[2], "nothing was cut"
    assert cells[4:] == ["224 (192–256)", "128 (128–128)", "1.75 (1.50–2.00)"]
    first = [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines() if "before the first" in line]
    assert len(first) == 2 and first[0] == first[1]


def test_captions_of_the_made_up_batch_are_as_long_as_those_given(tmp_path):
    experiment = build_experiment(resolve(override(load_config(CONFIG), CHANGES)), tmp_path)
    batch = caption_length.noise(experiment, np.array([3, 7]))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in experiment.batch.items()
    }
    assert set(batch["text_mask"].sum(1)) == {3, 7} and not np.any(batch["text"][batch["text_mask"] == 0])
