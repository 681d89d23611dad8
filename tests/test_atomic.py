"""A file is written whole or not at all, and nothing is left beside it."""

import subprocess
import sys

import pytest

from smke_jax import atomic


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "report.html"
    assert atomic.write_text(path, "früher") == path
    atomic.write_text(path, "später")
    assert path.read_bytes() == "später".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        atomic.write_text(tmp_path / "taken", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "export"
    with pytest.raises(RuntimeError), atomic.replacing(path) as neighbour:
        neighbour.mkdir()
        (neighbour / "half").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic.replacing(path) as neighbour:
        neighbour.mkdir()
        (neighbour / "whole").write_text("whole")
        assert not path.exists()
    assert (path / "whole").read_text() == "whole"
    with pytest.raises(OSError), atomic.replacing(path) as neighbour:
        neighbour.mkdir()
        (neighbour / "other").write_text("other")
    assert [file.name for file in tmp_path.iterdir()] == ["export"] and (path / "whole").exists()


KILLED = """
import os, signal, sys
from smke_jax import atomic
with atomic.replacing(sys.argv[1]) as neighbour:
    neighbour.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    for name in ("a", "a.b"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    (tmp_path / ".a.mine").mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    with atomic.replacing(tmp_path / "a") as ours:
        atomic.write_text(tmp_path / "a", "of the same process")
        assert ours.parent.is_dir(), "a neighbour that is in use"
        ours.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 3 and left[0].startswith(".a.b-") and left[1:] == [".a.mine", "a"]
    atomic.write_text(tmp_path / ("n" * 255), "the longest name")
