"""Places that cannot be written to: one line names the place, nothing is half-written, and the same command goes on."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "search")]  # what `kinds` reads
from kinds import jsonl_files, make_bert, make_finished_run, save_model  # noqa: E402
from made_up import write  # noqa: E402

from smke_jax.__main__ import main  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write(folder / "rows", jsonl_files())
    (folder / "bert").mkdir()
    make_bert(folder / "bert")
    make_finished_run(folder)
    save_model(folder / "model")
    return folder


COMMANDS = {
    "prepare": "prepare jsonl --source={given}/rows --out={out}",
    "convert": "convert --checkpoint={given}/bert --out={out}",
    "index": "index --model={given}/model --photos={given}/rows --out={out}",
    "compare": "compare {given}/run --out={out}",
}


def command(name: str, given: Path, out: str | Path) -> list[str]:
    return [part.format(given=given, out=out) for part in COMMANDS[name].split()]


def error_of(argv, capsys) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_places_that_cannot_be(name, given, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (tmp_path / "file/out", tmp_path / "file", tmp_path / ("n" * 256), tmp_path / "loop/out"):
        said = error_of(command(name, given, out), capsys)
        assert str(tmp_path) in said, said
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, which nobody can write to")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_system_that_takes_no_files(name, given, capsys):
    assert "/proc" in error_of(command(name, given, "/proc/out"), capsys)


# The limit on the size of a file stands for a full disk: the system refuses a write in the middle of a file.
FULL = """
import json, resource, sys
from smke_jax.__main__ import main
argv, limit = json.loads(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
sys.exit(main(argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, limit", [("prepare", 700), ("convert", 2000), ("index", 60), ("compare", 500)])
def test_a_full_disk(name, limit, given, tmp_path):
    out = tmp_path / "out"
    argv = json.dumps(command(name, given, out))
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    full = subprocess.run(
        [sys.executable, "-c", FULL, argv, str(limit)], capture_output=True, text=True, env=environment, cwd=HERE
    )
    assert full.returncode == 2, full.stderr[-2000:]
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in full.stderr and "File too large" in last
    assert not (out / "manifest.json").exists() and not (out / "params.safetensors").exists()
    assert main(json.loads(argv)) == 0  # once there is room
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_photos_that_vanish_while_they_are_read(tmp_path, monkeypatch):
    """As from a disk that is pulled out: those that were read are kept, and the others are counted."""
    folder, out, read = write(tmp_path / "rows", jsonl_files()), tmp_path / "out", Path.read_bytes

    def until_the_second(path):
        if path.name in ("2.jpg", "3.jpg", "4.jpg"):
            path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", until_the_second)
    assert main(["prepare", "jsonl", f"--source={folder}", f"--out={out}"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["n_kept"], manifest["n_skipped"]) == (2, 3)
