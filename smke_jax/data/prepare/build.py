"""Checks every image and caption of a dataset and writes the prepared folder, whole or not at all.

What an interrupted run has finished is kept beside the folder, and the same command goes on from there (journal.py).
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import operator
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from smke_jax import atomic
from smke_jax.data.listing import Entry, ListingWriter
from smke_jax.data.prepare.check import Checked
from smke_jax.data.prepare.items import Item, Skips, clean_caption
from smke_jax.data.prepare.journal import Journal, any_closed_shard, found, remove_journals
from smke_jax.data.prepare.shards import SplitWriter, write_metadata
from smke_jax.data.prepare.workers import Workers
from smke_jax.data.progress import Progress
from smke_jax.data.sources import FORMAT_VERSION
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

LONG_NAME = 200  # bytes; a longer one leaves no room for what the work folder's name has besides
ABOUT = "about.json"  # in the work folder: what the work is


def build(
    splits: dict[str, Iterable[Item]],
    out: Path,
    *,
    dataset: str,
    skips: Skips,
    created_by: dict | None = None,
    max_side: int | None = None,
    workers: int = 1,
) -> dict:
    """Writes `out`: array_record shards that tfds opens, listings, the manifest, and the list of what was skipped.

    Everything is written to a sibling folder that is renamed at the end: whatever interrupts the work, `out`
    is either a complete dataset or not there.  Shards that were closed before an interruption are kept in the sibling;
    the same call goes on behind them, and decodes no image of theirs again.

    Args:
      splits: items of each split, in the order they are to be stored.
      out: folder to create; must not exist, or be empty.
      dataset: name that goes into the manifest.
      skips: book of what the reader left out; what is skipped here is added to it.
      created_by: options of the command, recorded in the manifest.
      max_side: None keeps the original file bytes. A number re-encodes each image whose shorter side has more pixels,
        as RGB JPEG of quality 90 with that many (bicubic, aspect kept), or as PNG where the longer side has more than a
        JPEG can. Images that need no shrinking keep their bytes.
      workers: processes that decode and shrink. What is written does not depend on their number. With more than one,
        a script that calls this must have its own work under `if __name__ == "__main__"`, which each of them imports.

    Returns:
      The manifest, as written to manifest.json.

    Raises:
      UserError: `out` is taken, the disk is full, not one image could be used, or the dataset is not the one that an
        interrupted run began with, or a worker process was killed.
    """
    check_free(out)
    about = {"format_version": FORMAT_VERSION, "dataset": dataset, "created_by": created_by, "max_side": max_side}
    with _partial_sibling(out, json.dumps(about, default=str)) as partial, Workers(workers, max_side) as checking:
        report, infos = {}, []
        for split, items in splits.items():
            report[split], info = _write_split(partial, split, items, skips, checking)
            infos += [info] if info else []
        if not infos:
            reason, count, where = (skips.reasons() or [("the dataset lists no images", 0, out.name)])[0]
            raise UserError(
                f"no image of {dataset} could be used; most frequent reason ({count}x, first at {where}): {reason}"
            )
        write_metadata(partial, infos)
        skips.write(partial / "skipped.jsonl")
        manifest = {
            "dataset": dataset,
            "format_version": FORMAT_VERSION,
            "created_by": created_by or {},
            "max_side": max_side,
            "splits": report,
            **_balance(report, skips),
            "skip_reasons": {reason: count for reason, count, _ in skips.reasons()},
            "notes": dict(skips.notes),
        }
        atomic.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        remove_journals(partial)
        (partial / ABOUT).unlink()
        partial.rename(out)
    return manifest


def _balance(report: dict, skips: Skips) -> dict:
    """n_read = n_kept + n_skipped, and what was not reached, where nobody could count it as read.

    What is read are the images that the reader listed, and the rows that it left out.
    """
    not_reached, unknown = skips.not_reached()
    return {
        "n_read": sum(part.pop("n_listed") for part in report.values()) + skips.by_readers(),
        "n_kept": sum(part["n_images"] for part in report.values()),
        "n_skipped": len(skips.entries),
        "n_not_reached": not_reached,
        "n_places_not_reached": unknown,
    }


def check_free(out: Path) -> None:
    """Refuses an output folder that is taken."""
    if (out / "manifest.json").exists():
        raise UserError(f"{out} already holds a prepared dataset: remove it or choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out")


def _write_split(
    directory: Path, split: str, items: Iterable[Item], skips: Skips, checking: Workers
) -> tuple[dict, object]:
    """Writes one split; returns its part of the manifest and its tfds SplitInfo (None when empty)."""
    journal, listing = Journal(directory, split), ListingWriter(directory, split)
    shards = SplitWriter(directory, split, lengths=journal.lengths, num_bytes=journal.num_bytes, closed=journal.seal)
    items, length = iter(items), operator.length_hint(items)
    if journal.done:
        log.info("%s: %s items were finished before an interruption", split, f"{len(journal.done):,}")
    progress = Progress(split, length)
    digest = hashlib.sha256()
    num_captions = dropped = seen = reencoded = 0
    for item, outcome, data in itertools.chain(_finished(journal, items, directory), checking.checked(items)):
        seen += 1
        progress.update(seen)
        captions = [text for text in map(clean_caption, item.captions) if text]  # '' for what is no text
        dropped += len(item.captions) - len(captions)
        if reason := outcome.reason or ("" if captions else "image has no caption"):
            skips.add(item.where, reason, split=split, name=item.name, listed=True)
            journal.add(outcome)
            continue
        name = item.name.encode("utf-8", "backslashreplace").decode()
        image_id = len(listing) if item.image_id is None else item.image_id
        if data is not None:
            shards.write({"image": data, "image_id": image_id})
        journal.add(outcome)
        listing.write(Entry(image_id, name, tuple(captions)))
        num_captions += len(captions)
        reencoded += outcome.is_new
        digest.update("\0".join([name, *captions]).encode("utf-8", "replace"))
        digest.update(bytes.fromhex(outcome.digest))
    listing.close()
    report = {
        "n_listed": seen,
        "n_images": len(listing),
        "n_captions": num_captions,
        "n_skipped": skips.count(split),
        "n_captions_dropped": dropped,
        "n_reencoded": reencoded,
        "digest": digest.hexdigest(),
    }
    info = shards.close()
    journal.close()
    return report, info


def _finished(journal: Journal, items: Iterator[Item], directory: Path) -> Iterator[Checked]:
    """Yields the items that an interrupted run has finished, without bytes: closed shards have them."""
    for outcome in journal.done:
        item = next(items, None)
        if item is None or found(item) != outcome.item:
            where = "the end of the dataset" if item is None else item.where
            raise UserError(f"{where} is not what it was before an interruption: delete {directory} to begin anew")
        yield item, outcome, None


@contextlib.contextmanager
def _partial_sibling(out: Path, about: str) -> Iterator[Path]:
    """A work folder beside `out`, with what a dead process left of the same work.

    It is removed unless it was renamed or has a closed shard; so are those of dead processes with other work, of which
    `about` is not the same.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    name = out.name
    if len(os.fsencode(name)) > LONG_NAME:
        name = f"{name[:40]}-{zlib.crc32(os.fsencode(name)):08x}"
    start = f"{name}.partial-"
    partial = out.with_name(f"{start}{os.getpid()}")
    beside = {path: path.name.removeprefix(start) for path in out.parent.iterdir() if path.name.startswith(start)}
    pids = {path: int(pid) for path, pid in beside.items() if pid.isdecimal() and (path / ABOUT).is_file()}
    dead = [leftover for leftover, pid in pids.items() if pid == os.getpid() or not _is_running(pid)]
    kept = next((leftover for leftover in dead if _goes_on(leftover, about)), None)
    for leftover in dead:
        if leftover != kept:
            shutil.rmtree(leftover, ignore_errors=True)
    if kept:
        kept.rename(partial)
    partial.mkdir(exist_ok=True)
    (partial / ABOUT).write_text(about)
    try:
        yield partial
    except BaseException as error:
        if any_closed_shard(partial):
            log.warning("%s keeps what is finished: the same command goes on from there", partial)
        else:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise UserError(f"the disk of {out} is full: free some space or choose another --out") from error
        raise


def _goes_on(leftover: Path, about: str) -> bool:
    """Whether the folder has closed shards of the same work."""
    try:
        return (leftover / ABOUT).read_text() == about and any_closed_shard(leftover)
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process can have such a number
        return False
    except PermissionError:
        pass
    return True


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of room."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error)  # array_record reports a failed write as text
