"""Compiled programs in files, so that a new process neither traces nor compiles what an earlier one did.

Weights are arguments of a program, never a part of it: a program cannot give the answer of another model's weights.
The name of a file is the fingerprint of everything else that decides about the program.  A file also holds that
fingerprint and a digest of its content.  What is damaged, or holds another fingerprint than its name, is not used; one
line says so, and the program is compiled.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize

import smke_jax
from smke_jax import atomic
from smke_jax.cache_folder import cache_folder
from smke_jax.json_text import parse_json

log = logging.getLogger("smke_jax")

ROOT = Path(smke_jax.__file__).resolve().parent
DIGEST = 64  # characters of a hex sha256
MOST = 256  # files, of some 0.4 MB for each size of batch and each length
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment, which XLA reads


class Kept(NamedTuple):
    """facts: JSON-able, what the writer said of the program; program: serialized, b'' for facts alone."""

    facts: dict[str, Any]
    program: bytes


def folder() -> Path | None:
    """Where files are kept: JAX's cache of compiled programs, or this package's; None where none is wanted."""
    if not jax.config.jax_enable_compilation_cache:
        return None
    found = jax.config.jax_compilation_cache_dir  # '' where JAX_COMPILATION_CACHE_DIR is empty
    return cache_folder() if found is None else Path(found) if found else None


def fingerprint(*parts: str | bytes) -> str:
    """Hex sha256 of `parts`, of this JAX with its settings, of the device, and of what the processor can do."""
    device = jax.devices()[0]
    settings = {name: repr(value) for name, value in jax.config.values.items() if "cache" not in name}
    found = hashlib.sha256()
    for part in (
        *parts,
        jax.__version__,
        device.client.platform_version,
        device.device_kind,
        *(os.environ.get(name, "") for name in FLAGS),
        json.dumps(settings, sort_keys=True),
        _instructions(),
    ):
        data = part.encode() if isinstance(part, str) else part
        found.update(b"%d " % len(data))
        found.update(data)
    return found.hexdigest()


def code_digest(*rooms: str) -> str | None:
    """Hex sha256 of this package's source below `rooms` and of Flax's version: what decides about a traced program.

    None where the source is not there, or changed after this process had imported the package: the source then does
    not say what this process traces.
    """
    files = sorted(path for room in rooms for path in _sources(room))
    try:
        if not files or max(_changed(path) for path in files) > smke_jax.IMPORTED:
            return None
        found = hashlib.sha256(metadata.version("flax").encode())
        for path in files:
            found.update(f"\0{path.relative_to(ROOT)}\0".encode())
            found.update(path.read_bytes())
    except OSError:
        return None
    return found.hexdigest()


def read(kind: str, name: str) -> Kept | None:
    """What `write` wrote under the fingerprint `name`; None where there is nothing of use, with a line for damage."""
    path = _place(kind, name)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return refused(kind, name, error.strerror or str(error))
    digest, rest = content[:DIGEST], memoryview(content)[DIGEST:]
    if digest.decode("ascii", "replace") != hashlib.sha256(rest).hexdigest():
        return refused(kind, name, "it is damaged")
    line, _, program = bytes(rest).partition(b"\n")
    head = parse_json(line)
    if head["fingerprint"] != name or head["kind"] != kind:
        return refused(kind, name, "it was made for something else")
    return Kept(head["facts"], program)


def refused(kind: str, name: str, why: str) -> None:
    """One line that a kept file is not used."""
    log.warning("%s cannot be used and is made anew: %s", _place(kind, name), why.partition("\n")[0])


def write(kind: str, name: str, facts: Mapping[str, Any], program: bytes = b"") -> None:
    """Keeps `facts` and `program` under the fingerprint `name`; a folder that takes no files costs one line.

    Of more than `MOST` files those that were written first are removed.
    """
    path = _place(kind, name)
    if path is None:
        return
    head = json.dumps({"kind": kind, "fingerprint": name, "facts": dict(facts)}).encode()
    rest = head + b"\n" + program
    try:
        atomic.write_bytes(path, hashlib.sha256(rest).hexdigest().encode() + rest)
        _remove_oldest(path.parent)
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s", path.parent, error.strerror or error)


def load(program: bytes, arguments: Any, results: Any) -> Callable:
    """The program of `compiled`, on the first device.  May raise anything for another JAX's.

    arguments: a tuple, and results: trees like those that it takes and gives
    """
    trees = jax.tree.structure((arguments, {})), jax.tree.structure(results)
    return deserialize_and_load(program, *trees, execution_devices=jax.devices()[:1])


def compiled(lowered: jax.stages.Lowered) -> tuple[Callable, bytes]:
    """(the compiled program, the bytes that `load` takes); b'', and a line, of a device whose programs have none."""
    with _without_jax_cache():
        made = lowered.compile()
    try:
        return made, serialize(made)[0]
    except Exception as error:  # each kind of device has its own
        log.warning("compiled programs are not kept: %s", str(error).partition("\n")[0])
        return made, b""


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """A program that JAX took from its own cache lacks functions when it is written again (jaxlib 0.10.2, CPU)."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX looks at the setting once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _remove_oldest(where: Path) -> None:
    """Leaves the `MOST` files that were written last; other processes may write and remove at the same time."""
    written = []
    for path in where.glob("smke-*"):
        with contextlib.suppress(FileNotFoundError):
            written.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(written)[:-MOST]:
        path.unlink(missing_ok=True)


def _place(kind: str, name: str) -> Path | None:
    where = folder()
    return where and where / f"smke-{kind}-{name}"


def _sources(room: str) -> list[Path]:
    return list((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / room]


def _changed(path: Path) -> float:
    """When the content or the place of the file last changed, in seconds since 1970."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


@functools.cache
def _instructions() -> str:
    """What the processor can do: another one, which uses the same home directory, may lack some of it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
