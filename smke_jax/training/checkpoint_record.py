"""What a checkpoint says about itself, so that a reader can tell sound from damaged from different.

Each step directory holds a JSON record beside its arrays: the caller's metadata, the metric, shape, dtype
and digest of every array, the hash of the data iterator's state, and a hash over the record itself.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from smke_jax.training.digest import leaf_table, tree_digest

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Reading can fail for reasons that lie with this process and not with the files.
NOT_DAMAGE = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Damaged(Exception):
    """A checkpoint that cannot be read back as it was written; the text is the reason."""


def make(trees: Mapping[str, Any], data: Any, meta: Any, metric: float | None) -> dict[str, Any]:
    """The sealed record of `trees` (item name -> pytree of arrays) with JSON values `data` and `meta`."""
    leaves = {}
    for item, tree in trees.items():
        table, digests = leaf_table(tree), tree_digest(tree)
        leaves[item] = {path: [table[path], digests[path]] for path in table}
    record = {"meta": meta, "metric": metric, "leaves": leaves, "data_sha256": json_hash(data)}
    return record | {"sha256": json_hash(record)}


def check_seal(record: Any) -> None:
    """Raises `Damaged` unless the record hashes to what it says."""
    if not isinstance(record, dict) or "sha256" not in record:
        raise Damaged("its record is not one written by smke_jax")
    if record["sha256"] != json_hash({key: value for key, value in record.items() if key != "sha256"}):
        raise Damaged("its record changed on disk")


def check_trees(record: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
    """Raises `Damaged` when an array's digest is not the recorded one."""
    for item, tree in trees.items():
        recorded = record["leaves"][item]
        changed = [path for path, digest in tree_digest(tree).items() if digest != recorded[path][1]]
        if changed:
            raise Damaged(f"{item} '{changed[0]}' changed on disk ({len(changed)} of {len(recorded)} arrays)")


def check_data(record: Mapping[str, Any], data: Any) -> None:
    """Raises `Damaged` when the iterator state does not hash to the recorded value."""
    if record["data_sha256"] != json_hash(data):
        raise Damaged("the data iterator's state changed on disk")


def first_difference(record: Mapping[str, Any], item: str, abstract: Any) -> str | None:
    """Where the recorded arrays of `item` differ in name, shape or dtype from `abstract`; None if nowhere."""
    saved = {path: entry[0] for path, entry in record["leaves"][item].items()}
    wanted = leaf_table(abstract)
    for path in [*wanted, *saved]:
        if saved.get(path) != wanted.get(path):
            return f"{path}: {saved.get(path, 'absent')} vs {wanted.get(path, 'absent')} here"
    return None


def placed(abstract: Any) -> Any:
    """`abstract` with a sharding on every leaf: where none is given, this process's first device.

    Without one orbax would look for the devices the checkpoint was written on.
    """
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or one)

    return jax.tree.map(place, abstract)


def json_hash(value: Any) -> str:
    """sha256 of the canonical JSON text of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def os_error(error: BaseException) -> tuple[int, str] | None:
    """The operating system's (errno, text) behind `error`, or None if it has none.

    Array files are written by tensorstore, which raises ValueError with the errno only in the text.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno, os.strerror(cause.errno)
        if found := re.search(r"os_error_code='(\d+)'", str(cause)):
            return int(found[1]), os.strerror(int(found[1]))
    return None


def out_of_memory(error: BaseException) -> bool:
    """True when reading failed for want of host or device memory."""
    return any(isinstance(cause, MemoryError) or "out of memory" in str(cause).lower() for cause in _causes(error))


def one_line(error: BaseException, limit: int = 160) -> str:
    """The error as a short piece of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
