"""Twenty kills; `python tests/campaign/kills.py --kills=200` is the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Forks belong into a process that has computed nothing yet.
MADE_UP = """
import json, sys, time
sys.path[:0] = [{paths}]
from pathlib import Path
import kills

def work(given, out):
    out.mkdir(exist_ok=True)
    for i in range(20):
        with open(out / "lines", "a") as file:
            file.write(f"{{i}}")
            file.flush()
            time.sleep(0.005)
            file.write("\\n")

def atomic(given, out):
    time.sleep(0.05)
    out.write_text("done")

kills.JOBS |= {{
    "appends": kills.Job(kills.nothing, work, lambda out: (out / "lines").read_text()),
    "replaces": kills.Job(kills.nothing, atomic, lambda out: out.read_text()),
}}
print(json.dumps({{name: kills.campaign(name, 8) for name in ("appends", "replaces")}}))
"""


def run(*command: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_killed_work_goes_on_and_ends_the_same():
    done = run(str(HERE / "kills.py"), "--kills=20", "--jobs=train,prepare,index,convert")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("killed    5 times, 0 findings") == 4


def test_work_that_only_appends_is_found():
    paths = ", ".join(repr(str(path)) for path in (HERE.parents[1], HERE.parent, HERE.parent / "search", HERE))
    done = run("-c", MADE_UP.format(paths=paths))
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["appends"][0] == found["replaces"][0] == 8
    assert found["replaces"][1] == []
    assert found["appends"][1] and all("it ends otherwise" in line for line in found["appends"][1])
