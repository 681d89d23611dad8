"""`run.json`, what a run directory says of its run, read for whoever needs it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

FILE = "run.json"
SECTIONS = ("identity", "facts", "networks", "versions")


def read_run(workdir: Path) -> dict[str, Any]:
    """The record of the run in `workdir`: its flattened config, the digests in 'identity', facts, devices, command.

    Raises UserError where there is none, and where it is not of the shape that `smke train` writes.
    """
    path = workdir / FILE
    if not path.is_file():
        raise UserError(f"no run at {workdir}: it has no {FILE}; give the --workdir of `smke train`")
    try:
        record = parse_json(path.read_bytes())
    except ValueError:
        record = None
    if not _is_record(record):
        raise UserError(f"{path} is damaged: restore it, or start a new --workdir")
    return record


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not all(isinstance(record.get(name, {}), dict) for name in SECTIONS):
        return False
    config, devices, command = record.get("config"), record.get("devices"), record.get("command", [])
    said = record.get("identity", {}).values()
    is_flat = isinstance(config, dict) and not any(isinstance(value, Mapping) for value in config.values())
    return (
        is_flat
        and all(isinstance(digest, str | None) for digest in said)
        and type(config.get("config.total_steps")) is int
        and all(type(config.get(f"config.{name}", 0)) is int for name in ("batch_size", "num_devices"))
        and _are(str, devices)
        and bool(devices)
        and _are(str, command)
        and _are(dict, record.get("data", []))
        and all(_are(str, [row.get("split"), row.get("data")]) for row in record.get("data", []))
        and all(isinstance(record.get(name, ""), str | None) for name in ("started", "host", "commit"))
    )


def _are(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, kind) for x in value)
