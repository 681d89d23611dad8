"""Assets on disk: representations of whole splits, made once and read row by row.

Every array is a file `.npy` with a record beside it, a `.json` that says of what data, weights and pixels it was made.
An array whose record is not that of the run is refused.  A file is there as a whole or not at all, so that what was
made before an interruption is kept.
"""

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset, Encode
from smke_jax.json_text import parse_json
from smke_jax.networks.base import Specs
from smke_jax.parallel.process import failing_together
from smke_jax.tasks.base import TEXT_NUMBER, Column, Split, Task

log = logging.getLogger("smke_jax")

TEXT = "text"  # the array of tokens
SHORTEST = 1e-6  # a row of zeros stays one


class StoredAsset:
    """An asset on disk, made where it is not there yet.

    encode:    with the parameters of the frozen networks
    directory: of the asset
    widths:    {representation: its channels}
    made_with: {what: digest or setting} of all that the arrays depend on besides the split
    before:    {what: setting} for records that are older than a setting and do not say it
    numbers:   the array of a batch that says which rows it gets: 'id' of images, 'text_id' of captions
    seed, batch_size: of the run; they decide which random view a row gets
    Raises UserError for arrays that are damaged or made otherwise, and where there is no room.
    """

    def __init__(
        self, name: str, asset: Asset, encode: Encode, task: Task, directory: Path, *, widths: Mapping[str, int],
        made_with: Mapping[str, str], before: Mapping[str, str], numbers: str, seed: int, batch_size: int,
    ):  # fmt: skip
        self.asset, self._seed, self._batch_size = asset, seed, batch_size
        self._name, self._encode, self._directory, self._made_with = name, encode, directory, dict(made_with)
        self._before, self._numbers = before, numbers
        views = range(asset.views) if asset.views else (None,)
        self._owners = task.split(task.train).facts["caption_image"] if numbers == TEXT_NUMBER else None
        count = task.facts.get("num_images", task.length()) if self._owners is None else len(self._owners)
        self._check_room(count, widths)
        self._trained = [self._arrays(self._split(task, number), number, count) for number in views]
        self._evaluated = {split: self._arrays(task.split(split), split, None) for split in asset.evaluated}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The whole arrays of the split that is trained on: of its first view where there are several."""
        return self._trained[0]

    def whole(self) -> dict[str, np.ndarray]:
        """The whole arrays, and 'id' (N,) int32, the number of the image of every row."""
        count = len(next(iter(self.arrays.values())))
        owners = np.arange(count) if self._owners is None else self._owners
        return {**self.arrays, "id": np.asarray(owners, np.int32)}

    def rows(self, batch: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        """The rows of this process's share `batch` of the batch of `step`, in fp32."""
        ids = batch[self._numbers]
        views = np.zeros(len(ids), np.int64)
        if self.asset.views:
            drawn = np.random.default_rng((self._seed, step)).integers(self.asset.views, size=self._batch_size)
            views = drawn[jax.process_index() * len(ids) :][: len(ids)]
        found = {}
        for what, array in self.arrays.items():
            found[what] = np.empty((len(ids), *array.shape[1:]), np.float32)
            for view in np.unique(views):
                chosen = views == view
                found[what][chosen] = self._trained[view][what][ids[chosen]]
        return found

    def columns(self, split: str) -> dict[str, Column]:
        """What is kept of an evaluated split, as columns of it."""
        return {what: _column(array) for what, array in self._evaluated.get(split, {}).items()}

    def _split(self, task: Task, number: int | None) -> Split:
        return task.split(task.train) if number is None else task.augmented(number)

    def _check_room(self, count: int, widths: Mapping[str, int]) -> None:
        """Says how much is kept, and refuses what does not fit on the disk."""
        what, views = "captions" if self._numbers == TEXT_NUMBER else "images", max(self.asset.views, 1)
        size = sum(widths.values()) * count * views * np.dtype(self.asset.dtype).itemsize
        folder = next(parent for parent in (self._directory, *self._directory.parents) if parent.exists())
        there = sum(path.stat().st_size for path in self._directory.glob("*.npy"))
        free = shutil.disk_usage(folder).free + there
        log.info("the asset %s keeps %s %s × %d views, %.1f MB in %s",
                 self._name, f"{count:,}", what, views, size / 1e6, self._directory)  # fmt: skip
        if size > free:
            raise UserError(
                f"the asset {self._name!r} takes {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: give "
                "another folder, or fewer augmentations"
            )

    def _arrays(self, split: Split, kind: int | str | None, count: int | None) -> dict[str, np.ndarray]:
        """What the asset provides of `split`, memory-mapped; made in one go where it is not there.

        kind: in the names of the files: the number of a random view, the name of an evaluated split, or None
        """
        suffix = "" if kind is None else f".view{kind}" if isinstance(kind, int) else f".{kind}"
        paths = {what: self._directory / _file_name(what, suffix) for what in self.asset.provides}
        about = _about(self.asset, split, self._made_with)
        # Process 0 decides for all: elsewhere a shared folder may show an older state.
        there = multihost_utils.broadcast_one_to_all(np.array([path.exists() for path in paths.values()]))
        missing = tuple(what for what, found in zip(paths, there, strict=True) if not found)
        if missing:
            log.info("the asset %s: %s of %s%s, once", self._name, ", ".join(missing), split.name, suffix)
            made = self._encode(missing, split)
            if jax.process_index() == 0:
                self._directory.mkdir(parents=True, exist_ok=True)
                for what in missing:
                    rows = made[what]
                    if self.asset.normalised:
                        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST)
                    _write(paths[what], rows.astype(self.asset.dtype), about)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"asset {self._name}{suffix}")
        with failing_together():
            for path in paths.values():
                _check_record(path, about, self._before)
            return {what: _open(path, count, self._numbers) for what, path in paths.items()}


def asset_folder(name: str, asset: Asset, workdir: Path) -> Path:
    """Where the asset `name` of the run in `workdir` lies."""
    return (Path(asset.folder) if asset.folder else workdir / "assets") / name


def kept_columns(
    directory: Path, asset: Asset, name: str, split: Split, *, made_with: Mapping[str, str], before: Mapping[str, str]
) -> dict[str, Column]:
    """What training has kept in `directory` of the evaluated split `name`, as columns of `split`.

    Arguments as of `StoredAsset`.  An array that was made otherwise or is damaged is left out: it is then made again.
    """
    found, about = {}, _about(asset, split, made_with)
    for what in asset.provides:
        path = directory / _file_name(what, f".{name}")
        if not path.exists():
            continue
        try:
            _check_record(path, about, before)
            found[what] = _column(_open(path))
        except UserError as error:
            log.warning("%s is made again: %s", what, error)
    return found


def _about(asset: Asset, split: Split, made_with: Mapping[str, str]) -> dict[str, str]:
    """The record of an array of `split`."""
    rows = {"rows": "divided by their length"} if asset.normalised else {}
    views = str(split.facts.get("views", ""))
    return {**made_with, **rows, "data": split.digest, "dtype": asset.dtype, "views": views}


def _file_name(what: str, suffix: str) -> str:
    return f"{what.replace('/', '-')}{suffix}.npy"


def _column(array: np.ndarray) -> Column:
    return Column(len(array), lambda rows: np.asarray(array[rows], np.float32))


def words_read(task: Task, whole: Specs, needs: Collection[str]) -> dict[str, str]:
    """What 'text' (max_length,) depends on, where passes that read `needs` read it: {what: digest or setting}.

    whole: {array: shape and type of a batch} of the task
    """
    if task.tokenizer is None or TEXT not in needs:
        return {}
    return {"tokenizer": task.tokenizer.digest, "max_length": str(whole[TEXT].shape[1])}


def _write(path: Path, array: np.ndarray, about: Mapping[str, str]) -> None:
    atomic.write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    with atomic.replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def _check_record(path: Path, about: Mapping[str, str], before: Mapping[str, str]) -> None:
    record = path.with_suffix(".json")
    try:
        found = dict(parse_json(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{record} is missing or damaged: delete {path.name}, and it is computed again") from None
    found = {what: before[what] for what in about if what in before} | found
    for what in sorted({*about, *found}):
        if found.get(what) != about.get(what):
            there, here = (str(x.get(what, "none"))[:60] for x in (found, about))
            raise UserError(f"{path} was made with another {what} ({there} there, {here} here): give another folder")


def _open(path: Path, count: int | None = None, numbers: str = "") -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and it is computed again") from None
    if count is not None and len(array) != count:
        what = "captions" if numbers == TEXT_NUMBER else "images"
        raise UserError(f"{path} has {len(array)} rows for {count} {what}: delete it, and it is computed again")
    return array
