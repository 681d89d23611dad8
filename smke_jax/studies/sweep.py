"""A config over a grid of values: a job for each combination."""

import itertools
import re
from collections.abc import Mapping, Sequence

from smke_jax.errors import UserError
from smke_jax.studies.job import Job, check_config, make_job
from smke_jax.studies.jobs import count_devices


def plan_jobs(config: str, axes: Mapping[str, Sequence], overrides: Sequence[str]) -> list[Job]:
    """A job for every combination of the axes' values; UserError for keys and values that no run could work with.

    axes:      {'config.key': its values}
    overrides: `--config.key=value` flags of all jobs
    """
    short = {key: key.rpartition(".")[2] for key in axes}
    if len(set(short.values())) < len(short):
        short = {key: key.removeprefix("config.") for key in axes}
    jobs = {}
    for values in itertools.product(*axes.values()):
        name = ",".join(f"{short[key]}={value}" for key, value in zip(axes, values))
        name = re.sub(r"[^\w.,+=-]+", "-", name)
        if name in jobs:
            raise UserError(f"two runs of the sweep would have the directory {name}: give values with other names")
        flags = [*overrides, *(f"--{key}={value}" for key, value in zip(axes, values))]
        check_config(config, flags)
        jobs[name] = make_job(name, config, flags)
    return list(jobs.values())


def without_devices(jobs: Sequence[Job], environment: Mapping[str, str]) -> dict[str, str]:
    """{name: reason} of the jobs that ask for more devices than there are."""
    asked = {job.name: job.fields["config.num_devices"] for job in jobs}
    if not any(asked.values()):
        return {}
    there = count_devices(environment)
    return {
        name: f"it asks for {number} devices and this machine shows {there}"
        for name, number in asked.items()
        if number > there
    }
