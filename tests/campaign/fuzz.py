"""Damaged files, thousands of them: each is used, or refused in one line, or left out and counted.

    python tests/campaign/fuzz.py --inputs=10000 [--seed=0] [--kinds=jsonl,tars]

An input is one seed of one kind, so that a finding is made again by its line `kind seed`:

    python tests/campaign/fuzz.py --again='jsonl 17'

Exit status 1 if there was any finding: an exception, a message of many lines, books that do not add up, something whole
that was lost, more than SECONDS for one input, more than MEMORY for one kind.
"""

import argparse
import contextlib
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "search"), str(HERE)]
    os.environ["JAX_PLATFORMS"] = "cpu"

from kinds import KINDS, Finding, Kind  # noqa: E402
from made_up import write  # noqa: E402
from mutations import mutated  # noqa: E402

SECONDS = 20  # for one input, which takes a few milliseconds
MEMORY = 1 << 30  # bytes that the process may grow by, whatever a header says


class Bench:
    """A kind's sound files in a folder, one of which is damaged at a time."""

    def __init__(self, name: str, kind: Kind, folder: Path):
        self.name, self.kind, self._folder = name, kind, folder
        folder.mkdir()
        if callable(kind.make):
            kind.make(folder)
        else:
            write(folder, kind.make)
        self._sound = self._content()
        with tempfile.TemporaryDirectory() as scratch:
            damaged = kind.damaged[0]
            outcome = kind.use(folder, Path(scratch), damaged, self._sound[damaged])
        if outcome != "used":
            raise Finding(f"the sound files of {name!r} were refused: nothing could be learnt from damaged ones")
        self._restore()

    def try_one(self, seed: int) -> str:
        """'used' or 'refused'; raises what is a finding."""
        rng = random.Random(f"{self.name} {seed}")
        damaged = rng.choice(self.kind.damaged)
        sound = self._sound[damaged]
        (self._folder / damaged).write_bytes(mutated(sound, rng, self.kind.mutations))
        try:
            with tempfile.TemporaryDirectory() as scratch, time_limit():
                return self.kind.use(self._folder, Path(scratch), damaged, sound)
        finally:
            self._restore()

    def _content(self) -> dict[str, bytes]:
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self._folder)): path.read_bytes() for path in files}

    def _restore(self) -> None:
        now = self._content()
        for name in now.keys() - self._sound.keys():
            (self._folder / name).unlink()
        write(self._folder, {name: data for name, data in self._sound.items() if now.get(name) != data})


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_):
        raise Finding(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def campaign(name: str, inputs: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """(how many inputs were used, refused, found; a line for each finding) of so many inputs of a kind."""
    count: Counter = Counter()
    findings, started = [], peak_memory()
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(name, KINDS[name], Path(root, name))
        for number in range(seed, seed + inputs):
            try:
                count[bench.try_one(number)] += 1
            except Exception as error:
                count["found"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                line = f"{type(error).__name__}: {str(error)[:500]} ({Path(where.filename).name}:{where.lineno})"
                findings.append(f"{name} {number}: {line}")
    grown = peak_memory() - started
    if grown > MEMORY:
        findings.append(f"{name}: the process grew by {grown / 2**20:.0f} MiB")
    return count, findings


def peak_memory() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B")
    parser.add_argument("--again", metavar="'KIND SEED'")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.again:
        name, seed = arguments.again.split()
        with tempfile.TemporaryDirectory() as root:
            print(Bench(name, KINDS[name], Path(root, name)).try_one(int(seed)))
        return 0
    names, total, wrong, start = arguments.kinds.split(","), Counter(), False, time.monotonic()
    print(f"{'kind':12}{'used':>8}{'refused':>8}{'found':>8}", flush=True)
    for place, name in enumerate(names):
        share = arguments.inputs // len(names) + (place < arguments.inputs % len(names))
        count, findings = campaign(name, share, arguments.seed)
        print(f"{name:12}{count['used']:8}{count['refused']:8}{count['found']:8}", *findings, sep="\n  ", flush=True)
        total, wrong = total + count, wrong or bool(findings)
    print(f"{'all':12}{total['used']:8}{total['refused']:8}{total['found']:8}   {time.monotonic() - start:.0f} s")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
