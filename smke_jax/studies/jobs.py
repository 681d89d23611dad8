"""Many jobs, one after the other, each in processes of its own: what sweeps and ladders are made of."""

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from smke_jax import atomic
from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.studies.job import Job, is_trained
from smke_jax.training import record
from smke_jax.training.writers import format_duration

SMKE = (sys.executable, "-m", "smke_jax")
FINISHED, FAILED, STOPPED, SKIPPED = "finished", "failed", "stopped", "skipped"


def run_jobs(
    jobs: Sequence[Job], out: Path, *, skipped: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[dict[str, dict], int]:
    """Trains each job in `out`/NAME, leaves finished ones alone and continues interrupted ones.

    A job that fails is reported, and the next one starts. SIGINT, SIGTERM and SIGHUP let the running job save and end;
    a second signal ends it at once. What a job prints goes to stderr and to `out`/NAME.log.

    skipped:     {name: reason} of jobs that are not to be run here.
    environment: variables of the jobs' processes, besides those of this one.

    Returns ({name: {state, error, seconds}}, number of the signal that stopped it or 0). Raises UserError, before
    anything is run, where `out` holds a job of the same name with another config.
    """
    ledger = Ledger(out)
    ledger.check(jobs)
    with _signals() as stop:
        for number, job in enumerate(jobs, 1):
            head = f"[{number}/{len(jobs)}]"
            if job.is_finished(out):
                ledger.note(job, FINISHED)
                _say(f"{head} {job.name}: finished already")
            elif job.name in skipped:
                ledger.note(job, SKIPPED, skipped[job.name])
                _say(f"{head} {job.name}: skipped, {skipped[job.name]}")
            else:
                waiting = [x for x in jobs[number - 1 :] if x.name not in skipped and not x.is_finished(out)]
                _say(f"{head} {job.name}{ledger.time_left(len(waiting))}")
                started = time.monotonic()
                code, lines = 0, ()
                for arguments in job.programs(out):
                    code, lines = _run([*SMKE, *arguments], out / f"{job.name}.log", head, environment, stop)
                    if code or stop.number or not is_trained(job.directory(out)):
                        break
                if not code and job.is_finished(out):
                    state, error = FINISHED, ""
                elif stop.number or not code:
                    state, error = STOPPED, "the same command continues it"
                else:
                    state, error = FAILED, _reason(code, lines)
                seconds = time.monotonic() - started
                ledger.note(job, state, error, seconds)
                _say(f"{head} {job.name}: {state} after {format_duration(seconds)}{error and ': '}{error}")
            if stop.number:
                break
    return {job.name: ledger.records[job.name] for job in jobs if job.name in ledger.records}, stop.number


def report_outcome(records: Mapping[str, dict]) -> int:
    """Says on stderr which of the runs are not finished, and why; returns the exit status: 1 where one failed."""
    unfinished = [f"{name} {said['state']}: {said['error']}" for name, said in records.items()
                  if said["state"] != FINISHED]  # fmt: skip
    _say("\n".join([f"{len(records) - len(unfinished)} of {len(records)} runs are finished", *unfinished]))
    return int(any(said["state"] == FAILED for said in records.values()))


def count_devices(environment: Mapping[str, str]) -> int:
    """Devices that a job would find, counted in a process of its own: this one must not hold the jobs' devices."""
    command = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if found.returncode:
        raise UserError(f"JAX finds no devices: {_reason(found.returncode, found.stderr.splitlines())}")
    return int(found.stdout.split()[-1])


class Ledger:
    """`jobs.json` in the directory of the jobs: config and stages of each, how it ended, and the seconds it took."""

    def __init__(self, out: Path):
        self.path = out / "jobs.json"
        self.records: dict[str, dict] = {}
        if self.path.exists():
            try:
                self.records = dict(parse_json(self.path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise UserError(f"{self.path} is damaged: remove it, the runs beside it are kept") from None

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises UserError for a job that was started with another config."""
        out = self.path.parent
        for job in jobs:
            if job.name not in self.records or not job.is_begun(out):
                continue
            then = {**record.flatten(base()), **self.records[job.name]["config"]}
            if different := record.differences(then, job.fields):
                raise UserError(
                    f"{out / job.name} holds a run of another config ({different}): give those values, or another --out"
                )

    def note(self, job: Job, state: str, error: str = "", seconds: float = 0.0) -> None:
        """Keeps how `job` ended, after `seconds` more."""
        seconds += self.records.get(job.name, {}).get("seconds", 0.0)
        said = {"state": state, "error": error, "seconds": seconds, "stages": job.stages, "config": job.fields}
        self.records[job.name] = said
        atomic.write_text(self.path, json.dumps(self.records, indent=1) + "\n")

    def time_left(self, jobs: int) -> str:
        """', N runs left, about 2 h' from the mean of the finished ones; without the time as long as there are none."""
        taken = [x["seconds"] for x in self.records.values() if x["state"] == FINISHED and x["seconds"]]
        about = f", about {format_duration(jobs * sum(taken) / len(taken))}" if taken else ""
        return f", {jobs} {'run' if jobs == 1 else 'runs'} left{about}"


class _Stop:
    """A signal handler: lets the running process save and end, or ends it at the second signal."""

    def __init__(self):
        self.number, self.process = 0, None

    def __call__(self, number, frame):
        again, self.number = bool(self.number), number
        if self.process is not None:
            self.process.kill() if again else self.process.terminate()


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hooked = {s: handler for s, handler in previous.items() if handler != signal.SIG_IGN}  # nohup ignores SIGHUP
    for s in hooked:
        signal.signal(s, stop)
    try:
        yield stop
    finally:
        for s, handler in hooked.items():
            signal.signal(s, handler)


def _run(command, log: Path, head: str, environment, stop: _Stop) -> tuple[int, Sequence[str]]:
    """(exit status, last lines) of `command`."""
    last: collections.deque[str] = collections.deque(maxlen=200)
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        # A process group of its own, or Ctrl-C would reach it too and end it before it has saved.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
            text=True, errors="replace", env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        ) as process,
    ):  # fmt: skip
        stop.process = process
        try:
            if stop.number:  # it came while the process was being made
                process.terminate()
            for line in process.stdout:
                file.write(line)
                _say(f"{head} {line.rstrip()}")
                last.append(line.rstrip())
        except BaseException:
            process.terminate()
            raise
        finally:
            stop.process = None
    return process.returncode, last


def _reason(code: int, lines: Sequence[str]) -> str:
    """One line for a process that ended with `code`."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, which is what the system does when memory runs out"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    # JAX adds notes below the error, so it need not be the last line.
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    said = [line for line in lines if line.strip()]
    return (errors or said or [f"exit status {code}"])[-1].removeprefix("error: ").strip()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
