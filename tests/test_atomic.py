"""A file is written whole or not at all, and nothing is left beside it."""

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
