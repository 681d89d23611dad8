"""Programs keep the memory that they have used: what they use again needs no fresh pages."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from smke_jax.__main__ import run_program

def use():
    for _ in range(2):
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(64 * 2**20)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
    print(faults)

def program(argv):  # in a thread, as XLA takes its memory
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

run_program(program, [])
"""


def faults(**environment) -> int:
    """Pages that the second use of 64 MiB met for the first time."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="an option of glibc")
def test_memory_is_used_again_unless_the_user_has_chosen():
    assert faults() < 100
    assert faults(MALLOC_ARENA_MAX="8") > 100
