"""Real processes on this machine, for tests: `start` and `finish` them; run as a program, this file is one of them.

python workers.py train --config=FILE --workdir=DIR …    `tiny.py train`, noting the ids of its rows and what it writes
python workers.py ACT [FOLDER]                           one of ACTS below, without a model
"""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 600.0  # seconds; a process that still runs then is killed


class Ended(NamedTuple):
    """How one process ended; notes are what it noted."""

    status: int
    notes: list[dict]
    errors: list[str]  # lines on stderr that are its own, not those of libraries

    def noted(self, key: str) -> list:
        return [note[key] for note in self.notes if key in note]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(folder: Path, count: int, devices: int, *arguments: str, only=None, each: Callable = lambda i: {}, **more):
    """`count` processes with `devices` CPU devices each, or `only` some of them; output goes to files in `folder`.

    `each` (number) -> further arguments as {flag: value}; `more` is added to their environment.
    """
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags += " --xla_cpu_use_fusion_emitters=false"
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": str(devices),
        "SMKE_COORDINATOR": f"127.0.0.1:{free_port()}", "SMKE_NUM_PROCESSES": str(count), "SMKE_START_TIMEOUT": "180",
        **more,
    }  # fmt: skip
    processes = {}
    for i in range(count) if only is None else only:
        own = [f"--{flag}={value}" for flag, value in each(i).items()]
        mine = {"SMKE_PROCESS_ID": str(i), "NOTES": str(folder / f"notes-{i}")}
        with open(folder / f"out-{i}", "w") as out, open(folder / f"err-{i}", "w") as err:
            processes[i] = subprocess.Popen(
                [sys.executable, __file__, *arguments, *own], env={**environment, **mine}, stdout=out, stderr=err
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


def note(**values) -> None:
    """Not on stdout, where libraries write too: into the middle of a line, in their own threads."""
    os.write(_note_file(), json.dumps(values).encode() + b"\n")


def _train(arguments: list[str]) -> int:
    sys.path.insert(0, str(TESTS))
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
    return tiny.main(["train", *arguments])


def _differ(process: int, folder: Path) -> None:
    from smke_jax.parallel.process import check_same

    check_same({"config.same": 1})
    check_same({"config.a": [1, None], "config.b": {"c": process}})


def _fail_together(process: int, folder: Path) -> None:
    from smke_jax.errors import UserError
    from smke_jax.parallel.process import failing_together

    with failing_together():
        note(reached=process)
    with failing_together():
        if process == 1:
            raise UserError("no data here")


def _turns(process: int, at_turn_3: Callable[[], None]) -> None:
    import numpy as np

    from smke_jax.parallel.process import gather_rows, stop_requests

    with stop_requests() as asked:
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

    _turns(process, fail)


def _die(process: int, folder: Path) -> None:
    _turns(process, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _be_stopped(process: int, folder: Path) -> None:
    _turns(process, lambda: os.kill(os.getpid(), signal.SIGTERM))


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

    with Checkpointer(folder) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, *_placed(step), {"next": step}, {}, metric=step)


def _restore(process: int, folder: Path) -> None:
    import jax

    from smke_jax.training.checkpoint import Checkpointer

    params, train = _placed(1)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, train))
    with Checkpointer(folder) as checkpoints:
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
    "fail-together": _fail_together,
    "fail-alone": _fail_alone,
    "die": _die,
    "be-stopped": _be_stopped,
    "save": _save,
    "restore": _restore,
}


def _act(arguments: list[str]) -> int:
    import jax

    from smke_jax.parallel.process import leaving_on_error, start_processes

    start_processes()
    with leaving_on_error():
        ACTS[arguments[0]](jax.process_index(), Path(arguments[-1]))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(_train(sys.argv[2:]))
    from smke_jax.__main__ import run_program

    sys.exit(run_program(_act, sys.argv[1:]))
