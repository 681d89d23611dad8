"""How labelled images lie on disk: a folder for each class, ImageNet's folders, CIFAR's binary files.

A layout is a function (folder) -> Found.  To add one, write such a function and name it in LAYOUTS.
"""

import csv
import functools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data import datasets
from smke_jax.data.labelled.cifar import cifar
from smke_jax.data.labelled.source import LabelledSource, Rows, held_back
from smke_jax.data.prepare.items import IMAGE_SUFFIXES, files_below
from smke_jax.data.prepare.splits import split_of_folder
from smke_jax.data.scenes.world import BACKGROUNDS
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

SYNSET = re.compile(r"n\d{8}")


class Found(NamedTuple):
    """classes: C names; splits: {'train', 'dev' or 'test': Rows}."""

    classes: Sequence[str]
    splits: dict[str, Rows]


def open_labelled(layout: str, data: str, split: str, *, share: float = 0.0, in_memory: bool = False) -> LabelledSource:
    """A split of the labelled images in the folder `data`.

    layout: of LAYOUTS
    share:  of each class of 'train' that is held back as 'dev', where the data has no dev split of its own
    Raises UserError for a folder that is not laid out so, and for a split that it does not have.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}: known are {', '.join(sorted(LAYOUTS))}")
    if not data and layout != "scenes":
        raise UserError("data is empty: give the folder with the labelled images")
    if not 0 <= share < 1:
        raise UserError(f"held_back is {share}: give a share from 0 to below 1")
    if data and not Path(data).is_dir():
        raise UserError(f"no folder at {data}: give the one with the labelled images")
    found = LAYOUTS[layout](Path(data))
    splits = dict(found.splits)
    if share and "dev" not in splits and "train" in splits:
        splits["train"], splits["dev"] = held_back(splits["train"], found.classes, share)
    if split not in splits:
        hint = "" if split != "dev" else "; held_back=0.2 makes one of a fifth of train"
        raise UserError(f"{data} has no split {split!r}: it has {', '.join(splits)}{hint}")
    name = layout if layout not in ("folders", "imagenet") else Path(data).resolve().name
    return LabelledSource(name, split, found.classes, splits[split], in_memory=in_memory)


def folders(root: Path) -> Found:
    """A folder for each class, in folders of splits (train, val, test, …) or, where there are none, all of it 'train'.

    The classes are the folders of train, by name.
    """
    return _of_folders(root, lambda names: names)


def imagenet(root: Path) -> Found:
    """ImageNet as it is unpacked: train/nXXXXXXXX/, and val/ in the same folders or flat with its table of answers.

    The classes are the synsets in the order of their numbers, as everywhere.  They are called as
    LOC_synset_mapping.txt says, and by their synsets where there is none.  LOC_val_solution.csv has the classes of a
    flat val/.
    """
    places = [root, *(root / x for x in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"))]
    data = next((place for place in places if (place / "train").is_dir()), root)
    words = _synset_names(_above(root, data, "LOC_synset_mapping.txt"))

    def called(synsets: Sequence[str]) -> list[str]:
        if wrong := [name for name in synsets if not SYNSET.fullmatch(name)]:
            raise UserError(f"{data} has the folder {wrong[0]!r}, which is no synset: use layout='folders'")
        return [words.get(name, name) for name in synsets]

    flat = next((p for p in (data / "val", data / "validation") if p.is_dir() and not _folders_in(p)), None)
    found = _of_folders(data, called, without=flat)
    if flat is None:
        return found
    table = _above(root, data, "LOC_val_solution.csv")
    if table is None:
        raise UserError(f"{flat} is flat and LOC_val_solution.csv is missing: put it beside, or sort val into synsets")
    synsets = {name: i for i, name in enumerate(_folders_in(data / "train"))}
    answers = {}
    with table.open(encoding="utf-8", newline="") as file:
        for line in list(csv.reader(file))[1:]:
            answers[line[0]] = line[1].split()[0] if len(line) > 1 and line[1].split() else ""
    photos = _photos_in(flat)
    if lost := [p.name for p in photos if answers.get(p.stem) not in synsets]:
        raise UserError(f"{len(lost)} photos of {flat} have no class of train in {table.name}; the first is {lost[0]}")
    labels = np.array([synsets[answers[p.stem]] for p in photos], np.int32)
    return found._replace(splits={**found.splits, "dev": _file_rows(photos, labels, data)})


def scenes(root: Path) -> Found:
    """The built-in drawn scenes, by their background; besides 'train' there is 'gallery'."""
    if root != Path(""):
        raise UserError("data is for files: leave it out with layout='scenes'")
    splits = {}
    for name, split in vars(datasets.scenes()).items():
        names = [f"{name}/{i}" for i in range(len(split))]
        labels = split.attributes["background"].argmax(1).astype(np.int32)
        splits[name] = Rows(names, labels, split.images.__getitem__, names)
    return Found(BACKGROUNDS, splits)


LAYOUTS: dict[str, Callable[[Path], Found]] = {
    "folders": folders,
    "imagenet": imagenet,
    "cifar10": lambda root: Found(*cifar(root, 10)),
    "cifar100": lambda root: Found(*cifar(root, 100)),
    "scenes": scenes,
}


def _of_folders(root: Path, called: Callable[[list[str]], Sequence[str]], without: Path | None = None) -> Found:
    places: dict[str, Path] = {}
    for name in _folders_in(root):
        split = split_of_folder(name)
        if split and split in places:
            raise UserError(f"{root} has two folders of {split}, {places[split].name} and {name}: leave one of them")
        if split and root / name != without:
            places[split] = root / name
    places = places or {"train": root}
    if "train" not in places:
        raise UserError(f"{root} has no folder train beside {', '.join(p.name for p in places.values())}")
    classes = _folders_in(places["train"])
    if len(classes) < 2:
        raise UserError(f"{places['train']} has {len(classes)} folders: put the photos of each class in a folder")
    return Found(called(classes), {split: _class_rows(split, place, classes) for split, place in places.items()})


def _class_rows(split: str, place: Path, classes: list[str]) -> Rows:
    number = {name: i for i, name in enumerate(classes)}
    if strange := [name for name in _folders_in(place) if name not in number]:
        raise UserError(f"{place} has the class {strange[0]!r}, which train does not have: both need the same classes")
    photos, labels = [], []
    for name in _folders_in(place):
        own = _photos_in(place / name)
        if not own:
            raise UserError(f"{place / name} holds no photo: remove the folder, or put the photos of the class there")
        photos += own
        labels += [number[name]] * len(own)
    if loose := sum(p.suffix.lower() in IMAGE_SUFFIXES for p in place.iterdir() if p.is_file()):
        log.warning("%d photos of %s lie in no folder of a class and are left out", loose, place)
    return _file_rows(photos, np.array(labels, np.int32), place.parent if split_of_folder(place.name) else place)


def _file_rows(photos: list[Path], labels: np.ndarray, root: Path) -> Rows:
    names = [p.relative_to(root).as_posix() for p in photos]
    return Rows(names, labels, lambda i: photos[i].read_bytes(), _Sizes(photos))


class _Sizes(Sequence):
    """The size of each file, looked up when a digest is made."""

    def __init__(self, photos: Sequence[Path]):
        self._photos = photos

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> str:
        return str(self._photos[index].stat().st_size)


def _folders_in(place: Path) -> list[str]:
    return sorted(x.name for x in place.iterdir() if x.is_dir() and not x.name.startswith("."))


def _photos_in(place: Path) -> list[Path]:
    return [path for path in files_below(place) if path.suffix.lower() in IMAGE_SUFFIXES]


def _above(root: Path, data: Path, name: str) -> Path | None:
    return next((place / name for place in (root, data, *data.parents[:3]) if (place / name).is_file()), None)


@functools.cache
def _synset_names(path: Path | None) -> dict[str, str]:
    """{'n01440764': 'tench'}, the first of the words that a synset has."""
    if path is None:
        return {}
    lines = (line.strip().partition(" ") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {synset: words.partition(",")[0].strip() or synset for synset, _, words in lines}
