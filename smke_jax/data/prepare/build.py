"""Checks every image and caption of a dataset and writes the prepared folder, whole or not at all."""

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import itertools
import json
import operator
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from smke_jax import atomic
from smke_jax.data.decode import BadImage, decode_image
from smke_jax.data.listing import Entry, ListingWriter
from smke_jax.data.prepare.items import Item, Skips, clean_caption
from smke_jax.data.prepare.shards import SplitWriter, write_metadata
from smke_jax.data.progress import Progress
from smke_jax.data.sources import FORMAT_VERSION
from smke_jax.errors import UserError

CHUNK = 256  # images decoded in parallel before they are written in order


def build(
    splits: dict[str, Iterable[Item]],
    out: Path,
    *,
    dataset: str,
    skips: Skips,
    created_by: dict | None = None,
    max_side: int | None = None,
) -> dict:
    """Writes `out`: array_record shards that tfds opens, listings, the manifest, and the list of what was skipped.

    Everything is written to a sibling folder that is renamed at the end: whatever interrupts the work, `out`
    is either a complete dataset or not there.

    Args:
      splits: items of each split, in the order they are to be stored.
      out: folder to create; must not exist, or be empty.
      dataset: name that goes into the manifest.
      skips: book of what the reader left out; what is skipped here is added to it.
      created_by: options of the command, recorded in the manifest.
      max_side: None keeps the original file bytes. A number re-encodes every image as RGB JPEG, quality 90,
        its shorter side reduced to that many pixels (bicubic, aspect kept, never enlarged).

    Returns:
      The manifest, as written to manifest.json.

    Raises:
      UserError: `out` is taken, the disk is full, or not one image could be used.
    """
    check_free(out)
    with _partial_sibling(out) as partial:
        report, infos = {}, []
        for split, items in splits.items():
            report[split], info = _write_split(partial, split, items, skips, max_side)
            infos += [info] if info else []
        if not infos:
            reason, count = skips.reasons()[0] if skips.entries else ("the dataset lists no images", 0)
            raise UserError(f"no image of {dataset} could be used; most frequent reason ({count}x): {reason}")
        write_metadata(partial, infos)
        skips.write(partial / "skipped.jsonl")
        manifest = {
            "dataset": dataset,
            "format_version": FORMAT_VERSION,
            "created_by": created_by or {},
            "max_side": max_side,
            "splits": report,
            "n_skipped": len(skips.entries),
            "skip_reasons": dict(skips.reasons()),
        }
        atomic.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(out)
    return manifest


def check_free(out: Path) -> None:
    """Refuses an output folder that is taken."""
    if (out / "manifest.json").exists():
        raise UserError(f"{out} already holds a prepared dataset: remove it or choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another --out")


def _write_split(
    directory: Path, split: str, items: Iterable[Item], skips: Skips, max_side: int | None
) -> tuple[dict, object]:
    """Writes one split; returns its part of the manifest and its tfds SplitInfo (None when empty)."""
    shards, listing = SplitWriter(directory, split), ListingWriter(directory, split)
    progress = Progress(split, operator.length_hint(items))
    digest = hashlib.sha256()
    num_captions = dropped = seen = 0
    for item, data in _checked(items, split, skips, max_side):
        seen += 1
        progress.update(seen)
        captions = [text for text in map(clean_caption, item.captions) if text]  # '' for what is no text
        dropped += len(item.captions) - len(captions)
        if data is None:
            continue
        if not captions:
            skips.add(item.where, "image has no caption", split=split, name=item.name)
            continue
        name = item.name.encode("utf-8", "backslashreplace").decode()
        image_id = len(listing) if item.image_id is None else item.image_id
        shards.write({"image": data, "image_id": image_id})
        listing.write(Entry(image_id, name, tuple(captions)))
        num_captions += len(captions)
        digest.update("\0".join([name, *captions]).encode("utf-8", "replace"))
        digest.update(hashlib.sha256(data).digest())
    listing.close()
    report = {
        "n_images": len(listing),
        "n_captions": num_captions,
        "n_skipped": skips.count(split),
        "n_captions_dropped": dropped,
        "digest": digest.hexdigest(),
    }
    return report, shards.close()


def _checked(
    items: Iterable[Item], split: str, skips: Skips, max_side: int | None
) -> Iterator[tuple[Item, bytes | None]]:
    """Yields each item in order with the bytes to store, or None when its image is bad (then counted)."""

    def load(item: Item) -> bytes | BadImage:
        try:
            return _load(item, max_side)
        except BadImage as error:
            return error

    iterator = iter(items)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(itertools.islice(iterator, CHUNK)):
            for item, data in zip(chunk, pool.map(load, chunk)):
                if isinstance(data, BadImage):
                    skips.add(item.where, data.reason, split=split, name=item.name)
                    data = None
                yield item, data


def _load(item: Item, max_side: int | None) -> bytes:
    """File bytes to store; decoded whole, so that a broken picture is found now and not in training."""
    data = item.image
    if isinstance(data, Path):
        try:
            data = data.read_bytes()
        except FileNotFoundError:
            raise BadImage("image file is missing") from None
        except OSError as error:
            raise BadImage(f"image file cannot be read: {error.strerror}") from None
        except ValueError:  # of a zero byte, or of half a surrogate pair
            raise BadImage("no file can have this name") from None
    pixels = decode_image(data)
    if max_side is None:
        return data
    image = Image.fromarray(pixels)
    scale = min(1.0, max_side / min(image.size))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextlib.contextmanager
def _partial_sibling(out: Path) -> Iterator[Path]:
    """A work folder beside `out`, removed unless it was renamed; also removes those of dead processes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f"{out.name}.partial-*"):
        if not _is_running(leftover.name.rpartition("-")[2]):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except Exception as error:
        if _is_disk_full(error):
            raise UserError(f"the disk of {out} is full: free some space or choose another --out") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _is_disk_full(error: Exception) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error)  # array_record reports a failed write as text
