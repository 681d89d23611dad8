"""What a run directory says of its run: config, data, teacher, versions; and whether a command continues it."""

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from smke_jax import atomic
from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.parallel.process import check_shared, failing_together
from smke_jax.reporting.machine import commit

# Of the config, what says where and how a run is computed and not what; it may change when a run is continued.
PLACEMENT = frozenset(
    f"config.{key}"
    for key in (
        "num_devices", "sharding", "fsdp_size", "loss_impl", "micro_batch", "student.remat", "profile_steps",
        "data.threads", "data.in_memory",
    )
)  # fmt: skip
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


def check_or_write(workdir: Path, config: ConfigDict, identity: dict[str, str]) -> None:
    """Writes run.json and config.json into a new run; refuses to continue a run that was started otherwise.

    `identity` holds digests of what a config only names: data, tokenizer, teacher.  Where a run is computed may change
    (`PLACEMENT`).
    """
    with failing_together():
        if jax.process_index() == 0:
            _check_or_write(workdir, config, identity)
    check_shared(workdir / "run.json")


def _check_or_write(workdir, config, identity):
    path = workdir / "run.json"
    if path.exists():
        recorded = _read(path)
        # A field that did not exist then stands at its default, which is what the code did without it.
        then = {**flatten(base()), **recorded["config"], **recorded["identity"]}
        if different := differences(then, {**flatten(config), **identity}):
            raise UserError(
                f"{workdir} holds a run of another config ({different}): give those values, or another --workdir"
            )
        return
    record = {
        "config": flatten(config),
        "identity": identity,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "host": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    atomic.write_text(workdir / "config.json", config.to_json(indent=2) + "\n")
    atomic.write_text(path, json.dumps(record, indent=2) + "\n")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """'config.a: 1 there, 2 now; …' of flattened configs, empty where they are equal but for `PLACEMENT`."""
    keys = [key for key in sorted({*old, *new} - PLACEMENT) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys)


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with; fields that are newer than it stand at their defaults."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"no run at {workdir}: it has no config.json; give the --workdir of `smke train`")
    return _filled(ConfigDict(_tuples(_read(path))), base())


def read_run(workdir: Path) -> dict:
    """What run.json says: the flattened config, the digests in 'identity', command, versions."""
    path = workdir / "run.json"
    if not path.is_file():
        raise UserError(f"no run at {workdir}: it has no run.json; give the --workdir of `smke train`")
    return _read(path)


def _filled(config: ConfigDict, defaults: ConfigDict) -> ConfigDict:
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict):
            _filled(config[key], value)
    return config


def _tuples(value):
    # JSON has no tuples; configs hold no lists.
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _read(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is damaged: restore it, or start a new --workdir") from None
