"""The trace of some steps of a real run, with the names of its passes and terms."""

from two_matrices import two_matrices_config

from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.profiling import Profiler


def test_steps_are_traced_with_names(tmp_path):
    config = two_matrices_config()
    config.profile_steps = (3, 4)
    train_and_evaluate(config, tmp_path)
    (planes,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = planes.read_bytes()
    for name in (b"train", b"net/image", b"net/text", b"target", b"target_itc", b"optimizer"):
        assert name in content, name


def test_a_run_that_ends_early_leaves_a_whole_trace(tmp_path):
    with Profiler(tmp_path, (1, 99)) as profiler, profiler.step(1):
        pass
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_that_continues_later_traces_what_is_left_or_says_so(tmp_path, caplog):
    for first, traced in ((4, True), (6, False)):
        directory = tmp_path / str(first)
        with Profiler(directory, (3, 5)) as profiler:
            for step in range(first, 8):
                with profiler.step(step):
                    pass
                profiler.step_done(step, None)
        assert bool(list(directory.rglob("*.xplane.pb"))) == traced
    assert caplog.text.count("no profile: steps 3 to 5 are past") == 1


def test_no_steps_no_trace(tmp_path):
    with Profiler(tmp_path, ()) as profiler:
        for step in range(3):
            with profiler.step(step):
                pass
            profiler.step_done(step, None)
    assert not list(tmp_path.iterdir())
