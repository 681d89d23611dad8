"""Work that is killed at random moments, and begun again, ends as if nothing had happened.

    python tests/campaign/kills.py --kills=200 [--seed=0] [--jobs=train,prepare]

A job works in a child of this process.  The child is killed by SIGKILL, once or several times, and then left to end.
Exit status 1 if any end differs from that of a child that was never killed, if anything is left lying beside it, or if
what was there before could not be read in between.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "search"), str(HERE)]
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    # A step is compiled once, and not by every child.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="kills_compiled_"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import numpy as np  # noqa: E402
from kinds import make_bert, picture, smke  # noqa: E402
from made_up import contents, skipped  # noqa: E402
from planted import run as index_with_planted_embeddings  # noqa: E402
from planted import write_photos  # noqa: E402
from two_matrices import two_matrices_config  # noqa: E402

from smke_jax.convert.params_file import load_params, read_description  # noqa: E402
from smke_jax.search.store import Index  # noqa: E402
from smke_jax.training.checkpoint import Checkpointer  # noqa: E402
from smke_jax.training.loop import train_and_evaluate  # noqa: E402

ROWS = 150  # photos that are prepared
PRINTED = Path(tempfile.gettempdir(), f"kills_{os.getpid()}")  # what the last child wrote to stderr
UNREADABLE = "unreadable"
MOST_KILLS = 3  # of one piece of work


@dataclasses.dataclass(frozen=True)
class Job:
    """given: (empty folder) makes what the work starts from, once.
    work:   (that folder, the place of the result) works, and goes on with what a killed one left.
    end:    (place of the result) what came of it, as a JSON value.
    stands: (that folder, the place) raises where something that was there before cannot be read, right after a kill.
    """

    given: Callable[[Path], object]
    work: Callable[[Path, Path], object]
    end: Callable[[Path], object]
    stands: Callable[[Path, Path], object] = lambda given, out: None


def nothing(folder: Path) -> None:
    """The work starts from nothing."""


def train(given: Path, out: Path) -> None:
    train_and_evaluate(two_matrices_config(), out)


def end_of_training(out: Path) -> object:
    """The loss of every step, each once, and the digests of all arrays and of the data's position at the last one."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    with Checkpointer(out / "checkpoints", read_only=True) as checkpoints:
        record = checkpoints._record(losses[-1][0])
    return [losses, record["leaves"], record["data_sha256"]]


def make_rows(folder: Path) -> None:
    (folder / "images").mkdir()
    lines = []
    for i in range(ROWS):
        data = picture(i) if i % 10 else picture(i)[:200]  # every tenth is cut
        (folder / f"images/{i}.jpg").write_bytes(data)
        lines.append(json.dumps({"image_path": f"images/{i}.jpg", "text": f"picture {i}"}))
    (folder / "train.jsonl").write_text("\n".join(lines))


def prepare(given: Path, out: Path) -> None:
    if not (out / "manifest.json").exists():
        assert smke("prepare", "jsonl", f"--source={given}", f"--out={out}", "--max_side=24") == "used"


def end_of_preparing(out: Path) -> object:
    return [contents(out, "train"), skipped(out), _bytes_of(out, "*.arrayrecord*")]


def make_photos(folder: Path) -> None:
    write_photos(folder / "photos", {f"{i % 7}/{i}.png": i for i in range(300)})


def index(given: Path, out: Path) -> None:
    index_with_planted_embeddings(given / "photos", out)


def end_of_indexing(out: Path) -> object:
    made = Index(out)
    return sorted((made.name(i), made.rows[i].tobytes().hex(), made.is_sound(i)) for i in np.flatnonzero(made.live))


def is_searchable(given: Path, out: Path) -> None:
    if (out / "index.json").exists():
        made = Index(out)
        assert all(made.is_sound(i) for i in range(len(made.records)))


def convert(given: Path, out: Path) -> None:
    if not out.exists():
        assert smke("convert", f"--checkpoint={given}", f"--out={out}") == "used"


def end_of_converting(out: Path) -> object:
    arrays = load_params(out)
    return [sorted(arrays), read_description(out)["model"], _bytes_of(out, "*")]


def make_run(folder: Path) -> None:
    config = HERE.parents[1] / "configs/itc_only.py"
    assert smke("train", f"--config={config}:smoke", f"--workdir={folder / 'run'}") == "used"


def export(given: Path, out: Path) -> None:
    if not out.exists():
        assert smke("export", f"--workdir={given / 'run'}", f"--out={out}", "--format=flax") == "used"


def end_of_exporting(out: Path) -> object:
    return _bytes_of(out, "*")


def _bytes_of(folder: Path, pattern: str) -> dict[str, str]:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


JOBS = {
    "train": Job(nothing, train, end_of_training),
    "prepare": Job(make_rows, prepare, end_of_preparing),
    "index": Job(make_photos, index, end_of_indexing, is_searchable),
    "convert": Job(make_bert, convert, end_of_converting),
    "export": Job(make_run, export, end_of_exporting),
}


def child(function: Callable, *arguments, kill_after: float | None = None) -> tuple[int | None, float]:
    """(exit status, or None where it was killed; seconds) of `function` in a child of this process."""
    start, pid = time.monotonic(), os.fork()
    if not pid:
        os.dup2(os.open(PRINTED, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        status = 1
        try:
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if kill_after is not None:
        while time.monotonic() - start < kill_after:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return 0, time.monotonic() - start  # it was faster
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return (None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)), time.monotonic() - start


def campaign(name: str, kills: int, seed: int = 0) -> tuple[int, list[str]]:
    """(how many times work was killed, a line for each finding)."""
    job, rng, findings, done = JOBS[name], random.Random(f"{name} {seed}"), [], 0
    with tempfile.TemporaryDirectory() as root:
        given = Path(root, "given")
        given.mkdir()
        status, _ = child(job.given, given)
        assert status == 0, f"what {name} starts from could not be made"
        child(job.work, given, Path(root, "first"))  # and compiles
        status, seconds = child(job.work, given, Path(root, "reference"))
        assert status == 0, f"{name} does not work even without being killed"
        expected = seen(job, Path(root, "reference"))
        assert not expected.startswith(UNREADABLE), f"what came of {name} cannot be read"
        while done < kills:
            out = Path(root, f"try{done}", "out")
            out.parent.mkdir()
            moments = []
            for _ in range(min(rng.randint(1, MOST_KILLS), kills - done)):
                moments.append(rng.uniform(0, 1.05 * seconds))
                status, _ = child(job.work, given, out, kill_after=moments[-1])
                done += 1
                if child(job.stands, given, out)[0] != 0:
                    findings.append(f"{name}, killed after {moments}: what was there cannot be read ({last_line()})")
            said = f"{name}, killed after {', '.join(f'{x:.3f} s' for x in moments)}"
            if child(job.work, given, out)[0] != 0:
                findings.append(f"{said}: it does not go on ({last_line()})")
            elif seen(job, out) != expected:
                findings.append(f"{said}: it ends otherwise")
            elif left := [path.name for path in out.parent.iterdir() if path != out]:
                findings.append(f"{said}: {left} lie beside it")
    return done, findings


def last_line() -> str:
    return (PRINTED.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]


def seen(job: Job, out: Path) -> str:
    """What came of it, read in a child, since reading may begin what a fork must not inherit."""
    path = out.parent / "seen.json"
    status, _ = child(lambda: path.write_text(json.dumps(job.end(out), sort_keys=True, default=str)))
    text = path.read_text() if status == 0 else f"{UNREADABLE}, status {status}"
    path.unlink(missing_ok=True)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS), metavar="A,B")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names, wrong = arguments.jobs.split(","), False
    for place, name in enumerate(names):
        start = time.monotonic()
        share = arguments.kills // len(names) + (place < arguments.kills % len(names))
        done, findings = campaign(name, share, arguments.seed)
        print(
            f"{name:10} killed {done:4} times, {len(findings)} findings, {time.monotonic() - start:.0f} s", flush=True
        )
        print("".join(f"  {line}\n" for line in findings), end="", flush=True)
        wrong |= bool(findings)
    PRINTED.unlink(missing_ok=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
