"""A run directory has one run at a time."""

import subprocess
import sys

import pytest
from two_matrices import two_matrices_config

from smke_jax.errors import UserError
from smke_jax.training.lock import alone_in
from smke_jax.training.loop import train_and_evaluate

HOLD = """
import pathlib, sys, time
from smke_jax.training.lock import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    train_and_evaluate(two_matrices_config(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {first.pid} on .*another --workdir"):
            train_and_evaluate(two_matrices_config(), tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    finally:
        first.kill()  # no chance to let go of anything
        first.wait()
        first.stdout.close()
    with alone_in(tmp_path):
        pass


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path), pytest.raises(UserError, match="in use by process"):
            with alone_in(tmp_path):
                pass
