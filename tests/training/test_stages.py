"""Which checkpoint of a stage the later stages begin with."""

import numpy as np
import pytest

from smke_jax.training import stages
from smke_jax.training.checkpoint import Checkpointer


@pytest.mark.parametrize("metrics, step", [((0.2, 0.7, 0.5), 2), ((None, None, None), None), ((0.1, 0.3, 0.3), 3)])
def test_it_is_the_best_one_where_they_are_ranked(tmp_path, monkeypatch, metrics, step):
    """Else the newest; and what is exported already stays."""
    asked = []
    monkeypatch.setattr(stages, "export_run", lambda folder, out, step: (asked.append(step), out.mkdir()))
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        for number, metric in enumerate(metrics, 1):
            checkpoints.save(number, {"x": np.ones(2)}, {"y": np.ones(2)}, {}, {}, metric=metric)
    stages._export(tmp_path)
    stages._export(tmp_path)
    assert asked == [step]
