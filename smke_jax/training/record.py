"""What a run directory says of its run: config, data, weights, versions; and whether a command continues it."""

import datetime
import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.parallel.process import check_shared, failing_together
from smke_jax.reporting.machine import commit
from smke_jax.reporting.run_file import read_run
from smke_jax.tasks.vocabulary import is_left_over

# What may change when a run is continued: where and how it is computed, what is logged, saved and evaluated, and where
# the files lie whose digests the record holds.
MAY_CHANGE = re.compile(
    r"config\.(num_devices|sharding|fsdp_size|loss_impl|exchange_dtype|attention|micro_batch|split_by_length"
    r"|profile_steps|eval_batch_size|assets\.\w+\.folder|log\..*|checkpoint\..*|evaluators\..*"
    r"|task\.(threads|prefetch_mib|in_memory|data|tokenizer)"
    r"|networks\.\w+\.(remat|start|image_start|text_start))"
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "smke_jax")


def flatten(config: Any, prefix: str = "config") -> dict[str, Any]:
    """{'config.a.b': value} of nested dicts; tuples become lists, as they do in JSON."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}.{key}"
        if isinstance(value, (dict, ConfigDict)):
            flat |= flatten(value, path)
        else:
            flat[path] = json.loads(json.dumps(value))
    return flat


def check_workdir(workdir: Path) -> None:
    """Refuses a folder that holds something else than a run: nothing in it must be lost."""
    if workdir.is_dir() and not (workdir / "run.json").exists():
        # A vocabulary alone is left over from a command that was refused.
        foreign = sorted(path.name for path in workdir.iterdir() if not is_left_over(path))
        if foreign:
            raise UserError(f"{workdir} is no run, it holds {', '.join(foreign[:3])}: give an empty --workdir")
    elif workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give a folder as --workdir")


def check_or_write(
    workdir: Path, flat: Mapping[str, Any], text: str, found: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Writes run.json and config.json into a new run; refuses to continue a run that was started otherwise.

    flat, text: the config, flattened and as JSON.  What MAY_CHANGE names may change.
    found:      {'identity': digests of what a config only names: data, tokenizer, weights; 'facts': of the task;
                'networks': what files said of networks; 'data': counts of its splits}
    recorded:   the flattened config that the run began with; empty where it begins
    """
    with failing_together():
        if jax.process_index() == 0:
            _check_or_write(workdir, flat, text, found, recorded)
    check_shared(workdir / "run.json")


def _check_or_write(workdir, flat, text, found, recorded):
    path = workdir / "run.json"
    if recorded:
        then = {**recorded, **read_run(workdir)["identity"]}
        if different := differences(then, {**flat, **found["identity"]}):
            raise UserError(
                f"{workdir} holds a run of another config ({different}): give those values, or another --workdir"
            )
        return
    record = {
        "config": dict(flat),
        **found,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "host": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    atomic.write_text(workdir / "config.json", text + "\n")
    atomic.write_text(path, json.dumps(record, indent=2) + "\n")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """'config.a: 1 there, 2 now; …' of flattened configs, empty where they are equal but for what MAY_CHANGE names."""
    keys = [key for key in sorted({*old, *new}) if not MAY_CHANGE.fullmatch(key) and old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys)


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"no run at {workdir}: it has no config.json; give the --workdir of `smke train`")
    return ConfigDict(_tuples(_read(path)))


def _tuples(value):
    # JSON has no tuples; configs hold no lists.
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _read(path):
    try:
        return parse_json(path.read_text())
    except ValueError:
        raise UserError(f"{path} is damaged: restore it, or start a new --workdir") from None
