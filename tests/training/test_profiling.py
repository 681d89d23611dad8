"""The trace of some steps of a real run, with the names of its passes and terms."""

import gzip

import tiny

from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.profiling import Profiler


def test_steps_are_traced_with_names(tmp_path):
    config = tiny.tiny_config()
    config.profile_steps = (3, 4)
    train_and_evaluate(config, tmp_path)
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    assert gzip.decompress(trace.read_bytes()).count(b'"train') >= 2
    (planes,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = planes.read_bytes()
    for name in (b"student", b"teacher", b"target_itc", b"optimizer"):
        assert name in content, name


def test_a_run_that_ends_early_leaves_a_whole_trace(tmp_path):
    with Profiler(tmp_path, (1, 99)) as profiler, profiler.step(1):
        pass
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_no_steps_no_trace(tmp_path):
    with Profiler(tmp_path, ()) as profiler:
        for step in range(3):
            with profiler.step(step):
                pass
            profiler.step_done(step, None)
    assert not list(tmp_path.iterdir())
