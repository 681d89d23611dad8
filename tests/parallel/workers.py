"""Real processes on this machine, for tests: `start` and `finish` them; run as a program, this file is one of them.

python workers.py train --config=FILE --workdir=DIR …    `tiny.py train`, noting the ids of its rows and what it writes
python workers.py                                        nothing yet

Then each does what the variable ACTS names, one after the other: starting costs more than most of them.
"""

import functools
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 600.0  # seconds; a process that still runs then is killed
MARK = "--- "  # on stderr, before the name of an act


class Ended(NamedTuple):
    """How one process ended; notes are what it noted."""

    status: int
    notes: list[dict]
    errors: list[str]  # lines on stderr that are its own, not those of libraries

    def noted(self, key: str, act: str | None = None) -> list:
        """What it noted under `key`, in all or in one of its acts."""
        return [note[key] for note in self.notes if key in note and act in (None, note["act"])]

    def said(self, act: str = "") -> list[str]:
        """Its errors in that act; before the first one, without a name."""
        starts = [0, *(i + 1 for i, line in enumerate(self.errors) if line.startswith(MARK))]
        for start, end in zip(starts, [*(i - 1 for i in starts[1:]), None], strict=True):
            if act == (self.errors[start - 1].removeprefix(MARK) if start else ""):
                return self.errors[start:end]
        return []


def free_port() -> int:
    """One of this pytest-xdist worker's own, and none that the system gives to connections going out (from 32768)."""
    first = 12000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20)
    for port in range(first + time.monotonic_ns() % 900, first + 1000):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError(f"all ports up to {first + 1000} are taken")


def start(
    folder: Path, count: int, devices: int, *arguments: str, acts: Sequence[str] = (), only=None, **more,
) -> dict[int, subprocess.Popen]:  # fmt: skip
    """`count` processes with `devices` CPU devices each, or `only` some of them; output goes to files in `folder`.

    `more` is added to their environment.
    """
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": str(devices),
        "SMKE_COORDINATOR": f"127.0.0.1:{free_port()}", "SMKE_NUM_PROCESSES": str(count), "SMKE_START_TIMEOUT": "180",
        "ACTS": " ".join(acts), "FOLDER": str(folder), **more,
    }  # fmt: skip
    processes = {}
    for i in range(count) if only is None else only:
        mine = {"SMKE_PROCESS_ID": str(i), "NOTES": str(folder / f"notes-{i}")}
        with open(folder / f"out-{i}", "w") as out, open(folder / f"err-{i}", "w") as err:
            processes[i] = subprocess.Popen(
                [sys.executable, __file__, *arguments], env={**environment, **mine}, stdout=out, stderr=err
            )
    return processes


def finish(folder: Path, processes: dict[int, subprocess.Popen], limit: float = LIMIT) -> list[Ended]:
    """Waits for all of them; kills those that hang, which is an error."""
    deadline = time.monotonic() + limit
    try:
        for process in processes.values():
            process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes.values():
            process.kill()  # SIGTERM is for jax to handle
            process.wait()
    return [Ended(process.returncode, _notes(folder / f"notes-{i}"), _lines(folder / f"err-{i}"))
            for i, process in processes.items()]  # fmt: skip


def run(folder: Path, count: int, devices: int, *arguments: str, limit: float = LIMIT, **options) -> list[Ended]:
    return finish(folder, start(folder, count, devices, *arguments, **options), limit)


def _notes(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith(("[Gloo]", "W1", "W0", "INFO:"))]


@functools.cache
def _note_file() -> int:
    return os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


current = "train"  # the act


def note(**values) -> None:
    """Not on stdout, where libraries write too: into the middle of a line, in their own threads."""
    os.write(_note_file(), json.dumps({"act": current, **values}).encode() + b"\n")


def _train(arguments: list[str]) -> int:
    import tiny

    from smke_jax.training import loop

    *_, workdir = (Path(a.partition("=")[2]) for a in arguments if a.startswith("--workdir="))
    put = loop.put_batch

    def noting_put(batch, mesh):
        note(ids=batch["id"].tolist())
        return put(batch, mesh)

    def audit(event, details):
        if event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR) and str(workdir) in str(details[0]):
            note(wrote=str(Path(details[0]).relative_to(workdir)))

    loop.put_batch = noting_put
    sys.addaudithook(audit)
    status = tiny.main(["train", *arguments])
    note(status=status)
    return status


def _differ(process: int, folder: Path) -> None:
    from smke_jax.errors import UserError
    from smke_jax.parallel.process import check_same

    check_same({"config.same": 1})
    try:
        check_same({"config.a": [1, None], "config.b": {"c": process}})
    except UserError as error:
        note(refused=str(error))


def _fail_together(process: int, folder: Path) -> None:
    from smke_jax.errors import UserError
    from smke_jax.parallel.process import failing_together

    with failing_together():
        note(reached=process)
    try:
        with failing_together():
            if process == 1:
                raise UserError("no data here")
    except UserError as error:
        note(refused=str(error))


def _own_disk(process: int, folder: Path) -> None:
    import tiny_pairs

    from smke_jax.errors import UserError
    from smke_jax.training.loop import train_and_evaluate

    config = tiny_pairs.tiny_pairs()
    config.num_devices = 0
    try:
        train_and_evaluate(config, folder / f"disk-{process}")
    except UserError as error:
        note(refused=str(error))


def _differ_in_config(process: int, folder: Path) -> None:
    import tiny_pairs

    from smke_jax.errors import UserError
    from smke_jax.training.loop import train_and_evaluate

    config = tiny_pairs.tiny_pairs()
    config.num_devices, config.optimizer.learning_rate = 0, 0.001 * (process + 1)
    try:
        train_and_evaluate(config, folder / "differ")
    except UserError as error:
        note(refused=str(error))


def _turns(process: int, asked: Callable[[int], bool], at_turn_3: Callable[[], None]) -> None:
    import numpy as np

    from smke_jax.parallel.process import gather_rows

    for turn in range(600):
        if asked(turn):
            note(stopped=turn)
            return
        note(rows=gather_rows(np.array([10 * process, turn])).tolist())
        if turn == 3 and process == 1:
            at_turn_3()
        time.sleep(0.05)


def _fail_alone(process: int, folder: Path) -> None:
    from smke_jax.errors import UserError

    def fail():
        raise UserError("something of mine")

    _turns(process, lambda turn: False, fail)


def _die(process: int, folder: Path) -> None:
    _turns(process, lambda turn: False, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _be_stopped(process: int, folder: Path) -> None:
    from smke_jax.parallel.process import stop_requests

    with stop_requests() as asked:
        _turns(process, asked, lambda: os.kill(os.getpid(), signal.SIGTERM))


def arrays():
    """The trees that `_save` saves at step 1, as numpy arrays; step 2 has them one higher."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {"rows": rng.normal(size=(8, 1024)).astype(np.float32), "whole": np.arange(4096, dtype=np.int32)}, {
        "columns": rng.normal(size=(16, 2048)).astype(np.float32)
    }


def _placed(step: int):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from smke_jax.parallel.mesh import make_mesh, replicated, sharded

    mesh = make_mesh(fsdp_size=2)
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    where = {"rows": sharded(mesh), "whole": replicated(mesh)}, {"columns": columns}
    place = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i] + (step - 1))  # noqa: E731
    return jax.tree.map(place, arrays(), where)


def _save(process: int, folder: Path) -> None:
    from smke_jax.training.checkpoint import Checkpointer

    (folder / "checkpoints").mkdir(exist_ok=True)
    with Checkpointer(folder / "checkpoints") as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, *_placed(step), {"next": step}, {}, metric=step)


def _restore(process: int, folder: Path, damaged: int | None = None) -> None:
    """From a copy of what `_save` saved; of its step 2, what the process `damaged` wrote is cut off."""
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    from smke_jax.training.checkpoint import Checkpointer

    copy = folder / f"damaged-{damaged}"
    if process == 0:
        shutil.copytree(folder / "checkpoints", copy)
        if damaged is not None:
            files = (copy / "2/params" / f"ocdbt.process_{damaged}" / "d").iterdir()
            with open(max(files, key=lambda path: path.stat().st_size), "r+b") as file:
                file.truncate(1000)
    sync_global_devices("copied")
    params, train = _placed(1)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, train))
    with Checkpointer(copy) as checkpoints:
        found = checkpoints.restore_latest(*abstract)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), (found.params, found.train), _placed(found.step))
    note(restored=found.step, same=jax.tree.leaves(same), data=found.data, steps=checkpoints.steps())


def _embed(process: int, folder: Path) -> None:
    import numpy as np

    from smke_jax.evaluators.encode import Encoder
    from smke_jax.parallel.mesh import make_mesh
    from smke_jax.passes.base import Pass
    from smke_jax.tasks.base import Column, Split

    def read(rows):
        for row in rows:
            note(read=int(row))
        return np.stack([np.full((4, 4, 3), 10 * (row + 1), np.uint8) for row in rows])

    def sums(params, arrays, key, train):
        return {"sum": arrays["image"].sum((1, 2)) * params["net"]}

    p = Pass("sum", ("net",), ("image",), ("sum",), sums)
    encode = Encoder(lambda names, columns: (p,), lambda p: {"net": np.float32(2)}, make_mesh(), batch_size=4)
    found = encode(("sum",), Split("eleven", "", {"image": Column(11, read)}))
    note(sums=found["sum"][:, 0].tolist())


ACTS = {
    "embed": _embed,
    "differ": _differ,
    "differ-in-config": _differ_in_config,
    "fail-together": _fail_together,
    "own-disk": _own_disk,
    "fail-alone": _fail_alone,
    "die": _die,
    "be-stopped": _be_stopped,
    "save": _save,
    "restore": _restore,
    "restore-damaged-0": functools.partial(_restore, damaged=0),
    "restore-damaged-1": functools.partial(_restore, damaged=1),
}


def _act(names: list[str]) -> int:
    global current
    import jax

    from smke_jax.parallel.process import leaving_on_error, start_processes

    if not jax.distributed.is_initialized():
        start_processes()
    with leaving_on_error():
        for current in names:
            print(f"{MARK}{current}", file=sys.stderr, flush=True)
            ACTS[current](jax.process_index(), Path(os.environ["FOLDER"]))
    return 0


def _main(arguments: list[str]) -> int:
    gc.set_threshold(50_000, 20, 20)  # as in conftest.py
    sys.path.insert(0, str(TESTS))
    status, acts = _train(arguments[1:]) if arguments else 0, os.environ["ACTS"].split()
    if status or not acts:
        return status
    from smke_jax.__main__ import run_program

    return run_program(_act, acts)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
