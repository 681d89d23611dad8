"""`smke doctor`: the work behind smke_jax/flags/doctor.py, which says what it does."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_stages, override_stages
from smke_jax.errors import UserError
from smke_jax.flags.doctor import parser
from smke_jax.studies.doctor.computing import check_computing
from smke_jax.studies.doctor.config import check_config
from smke_jax.studies.doctor.findings import Finding
from smke_jax.studies.doctor.machine import (
    NO_DEVICE,
    check_cache,
    check_devices,
    check_disk,
    check_memory,
    check_settings,
    gpus_of_driver,
)
from smke_jax.studies.doctor.versions import check_versions


def main(argv: list[str]) -> int:
    """Parses the command line, looks and prints; returns the exit status: 1 where something is wrong."""
    arguments = parser().parse_args(argv)
    if arguments.overrides and not arguments.config:
        raise UserError(f"{arguments.overrides[0]} changes a config: give --config=FILE too")
    stages = override_stages(load_stages(arguments.config), arguments.overrides) if arguments.config else {}
    start, findings = time.perf_counter(), []
    for finding in _look(arguments.workdir, stages):
        findings.append(finding)
        if not arguments.json:
            print(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.what:13}  {finding.said}", flush=True)
    seconds, wrong = time.perf_counter() - start, sum(not finding.ok for finding in findings)
    if arguments.json:
        found = {"ok": not wrong, "seconds": round(seconds, 2), "findings": [x._asdict() for x in findings]}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(f"{f'{wrong} of {len(findings)} are wrong' if wrong else 'all is well'}, {seconds:.1f} s")
    return int(bool(wrong))


def _look(workdir: Path, stages) -> Iterator[Finding]:
    yield check_versions()
    devices = check_devices(gpus_of_driver())
    yield devices
    yield check_settings(os.environ)
    yield check_cache()
    yield check_disk(workdir)
    if devices.said.startswith(NO_DEVICE):
        return
    yield check_memory()
    yield from check_computing()
    if stages:
        yield from check_config(stages)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
