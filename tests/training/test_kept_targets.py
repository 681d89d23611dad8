"""Training on the teacher's kept features is training on the teacher, without its forward in the step."""

import json

import numpy as np
import pytest
import tiny

from smke_jax.errors import UserError
from smke_jax.training import loop
from smke_jax.training.loop import train_and_evaluate


def config(cache):
    c = tiny.tiny_config()
    c.data.teacher_view, c.teacher.cache = "fixed", cache
    c.total_steps, c.eval.every = 4, 0
    c.log.every = 1
    return c


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["target_itc/loss"] for line in lines if "target_itc/loss" in line]


@pytest.mark.slow
def test_the_run_is_the_same_and_continues_from_disk(tmp_path, monkeypatch):
    train_and_evaluate(config(False), tmp_path / "seen")
    first = config(True)
    first.checkpoint.every = 1
    real, steps = loop.put_batch, []

    def stop_after_two(batch, mesh):
        steps.append(set(batch))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(first, tmp_path / "kept")
    assert all("target/cls" in names and "teacher_image" not in names for names in steps)
    features = tmp_path / "kept" / "targets" / "target-cls.npy"
    written = features.stat().st_mtime_ns
    monkeypatch.setattr(loop, "put_batch", real)
    train_and_evaluate(first, tmp_path / "kept")
    assert features.stat().st_mtime_ns == written, "computed a second time"
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "seen"), rtol=2e-5)

    features.write_bytes(features.read_bytes()[:200])
    more = first.copy_and_resolve_references()
    with pytest.raises(UserError, match="target-cls.npy is damaged .*: delete it, and it is computed again"):
        train_and_evaluate(more, tmp_path / "kept")
    np.save(features, np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match="has 3 rows for 16 images: delete it"):
        train_and_evaluate(more, tmp_path / "kept")


def test_a_view_that_changes_cannot_be_kept(tmp_path):
    wrong = config(True)
    wrong.data.teacher_view = "shared"
    with pytest.raises(UserError, match="config.teacher.cache keeps features of a view that never changes"):
        train_and_evaluate(wrong, tmp_path)
