"""`smke prepare` with worker processes writes what one process writes, and ends in order when processes are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up import jpeg, prepare, tiny_items, write

from smke_jax.data.prepare import workers as workers_module
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.prepare.shards import SplitWriter
from smke_jax.errors import UserError

SMALL_SHARDS = 3000  # bytes: one to three photos each
PACKAGE = Path(workers_module.__file__).parents[3]


@pytest.fixture(autouse=True)
def workers_at_once(monkeypatch):
    """The workers start at the third photo, and get two at a time."""
    monkeypatch.setattr(workers_module, "FIRST", 2)
    monkeypatch.setattr(workers_module, "CHUNK", 2)


def mixed_items(folder: Path) -> list[Item]:
    """Photos in files and in bytes, large and small, broken ones, and one without a caption."""
    items = []
    for i in range(15):
        data = b"no picture" if i in (4, 5) else jpeg(i, (90, 60) if i % 3 else (20, 10))
        (folder / f"{i}.jpg").write_bytes(data)
        image = folder / f"{i}.jpg" if i % 2 else data
        items.append(Item(f"{i}.jpg", [] if i == 7 else ["A ."], image, f"row {i}"))
    return [*items, Item("gone.jpg", ["A ."], folder / "gone.jpg", "row 15")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def workers_below(pid: int) -> list[int]:
    """The worker processes that `pid` has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # the process has ended
    return found


def test_what_is_written_does_not_depend_on_the_workers(tmp_path):
    (tmp_path / "files").mkdir()
    splits = {"train": mixed_items(tmp_path / "files"), "dev": tiny_items(3)}
    made = {}
    for count in (1, 2):
        skips, out = Skips(), tmp_path / f"out{count}"
        made[count] = build(splits, out, dataset="x", skips=skips, max_side=40, workers=count)
    assert made[1] == made[2]
    assert made[2]["skip_reasons"] == {"not an image file": 2, "image has no caption": 1, "image file is missing": 1}
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


def test_the_program_writes_the_same_with_another_number(tmp_path):
    source = write(tmp_path / "s", {f"{i}.jpg": jpeg(i) for i in range(5)} | {f"{i}.txt": "A ." for i in range(5)})
    made = []
    for count in (1, 2):
        made.append(prepare("folder", source, tmp_path / "out", f"--workers={count}"))
        (tmp_path / "out").rename(tmp_path / f"out{count}")
    assert made[0] == made[1]


def test_a_worker_imports_no_heavy_library(tmp_path):
    code = (
        "import sys, smke_jax.data.prepare.workers; print({'jax', 'tensorflow_datasets', 'grain'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE)
    assert done.stdout.strip() == "set()"


def test_a_killed_worker_is_one_line_and_the_next_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(SplitWriter.__init__, "__kwdefaults__", {"shard_bytes": SMALL_SHARDS})
    items = tiny_items(30)

    def killing():
        yield from items[:20]
        for pid in workers_below(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        yield from items[20:]

    given = {"dataset": "x", "created_by": {}}
    whole = build({"train": items}, tmp_path / "whole", skips=Skips(), **given)
    with pytest.raises(UserError, match="a worker process was killed.* fewer --workers"):
        build({"train": killing()}, tmp_path / "out", skips=Skips(), workers=2, **given)
    (kept,) = tmp_path.glob("out.partial-*")
    assert list(kept.glob("*.open")), "what was written before is kept"
    assert build({"train": items}, tmp_path / "out", skips=Skips(), **given) == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Unreadable:
    """Captions that cannot be looked at, by a mistake in a reader."""

    def __iter__(self):
        raise ZeroDivisionError("a mistake of ours")

    def __str__(self):
        raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_of_ours_in_a_worker_keeps_its_traceback(tmp_path):
    items = [*tiny_items(4), Item("bad.jpg", [Unreadable()], jpeg(1), "row")]
    with pytest.raises(ZeroDivisionError, match="a mistake of ours") as error:
        build({"train": items}, tmp_path / "out", dataset="x", skips=Skips(), workers=2)
    assert "in found" in str(error.value.__cause__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_wrong_setting_is_not_blamed_on_the_photos(count, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "FIRST", 0)
    monkeypatch.setenv("SMKE_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="SMKE_MAX_PIXELS=many is no number of pixels"):
        build({"train": tiny_items()}, tmp_path / "out", dataset="x", skips=Skips(), max_side=9, workers=count)


SLOW = """
import time
from pathlib import Path
from smke_jax.__main__ import run_program
from smke_jax.data.prepare import workers
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from made_up import jpeg
workers.FIRST, workers.CHUNK = 0, 1
def items():
    for i in range(100_000):
        yield Item(f"{i}.jpg", ["A ."], jpeg(i), "row")
        if i == 20:
            print("begun", flush=True)
        time.sleep(0.01 if i > 20 else 0)
def main(argv):
    build({"train": items()}, Path(argv[0]), dataset="x", skips=Skips(), workers=2)
raise SystemExit(run_program(main, [OUT]))
"""


@pytest.fixture
def slow_build(tmp_path):
    """A process, the leader of its group, that prepares photos with two workers until it is stopped."""
    code = SLOW.replace("OUT", repr(str(tmp_path / "out")))
    paths = os.pathsep.join([str(PACKAGE), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def ended(pids: list[int]) -> bool:
    """Whether all of these processes have ended within some seconds."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ctrl_c_is_one_line(slow_build, tmp_path):
    pids = workers_below(slow_build.pid)
    assert len(pids) == 2
    os.killpg(slow_build.pid, signal.SIGINT)  # as a terminal does
    _, printed = slow_build.communicate(timeout=60)
    assert [line for line in printed.splitlines() if not line.startswith("train: ")] == ["interrupted"]
    assert slow_build.returncode == 130
    assert ended(pids) and list(tmp_path.iterdir()) == []


def test_workers_end_with_a_killed_program(slow_build):
    pids = workers_below(slow_build.pid)
    assert len(pids) == 2
    slow_build.kill()
    slow_build.wait()
    assert ended(pids)
