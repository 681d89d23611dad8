"""How labelled images lie on disk: a folder for each class, ImageNet's folders, CIFAR's binary files.

A layout is a function (folder) -> Found.  To add one, write such a function and name it in LAYOUTS.
"""

import collections
import csv
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data import datasets
from smke_jax.data.labelled.cifar import cifar
from smke_jax.data.labelled.source import LabelledSource, Rows, counted, held_back
from smke_jax.data.prepare.items import IMAGE_SUFFIXES, files_below
from smke_jax.data.prepare.splits import split_of_folder
from smke_jax.data.scenes import SPLITS
from smke_jax.data.scenes.world import BACKGROUNDS
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

FLAT = ("val", "validation")  # folders that may hold ImageNet's photos without folders of classes
SYNSET = re.compile(r"n\d{8}")


class Found(NamedTuple):
    """classes: C names; splits: {'train', 'dev' or 'test': () -> Rows}, of which those that are asked for are made."""

    classes: Sequence[str]
    splits: Mapping[str, Callable[[], Rows]]


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
    if share and "dev" not in splits and "train" in splits and split in ("train", "dev"):
        kept, back = held_back(splits["train"](), found.classes, share)
        splits |= {"train": lambda: kept, "dev": lambda: back}
    if split not in splits:
        hint = "" if split != "dev" else "; held_back=0.2 makes one of a fifth of train"
        raise UserError(f"{data} has no split {split!r}: it has {', '.join(splits)}{hint}")
    name = layout if layout not in ("folders", "imagenet") else Path(data).resolve().name
    return LabelledSource(name, split, found.classes, splits[split](), in_memory=in_memory)


def folders(root: Path) -> Found:
    """A folder for each class, in folders of splits (train, val, test, …) or, where there are none, all of it 'train'.

    The classes are the folders of train, by name; without train, those of all splits.
    """
    return _of_folders(root, lambda names: names)


def imagenet(root: Path) -> Found:
    """ImageNet as it is unpacked: train/nXXXXXXXX/, and val/ in the same folders or flat with its table of answers.

    The classes are the synsets in the order of their numbers, as everywhere: the folders of train.  Without train they
    are those of LOC_synset_mapping.txt, or else those of the photos.  They are called as LOC_synset_mapping.txt says,
    see `_synset_names`, and by their synsets where there is none.  LOC_val_solution.csv has the classes of a flat val/.
    """
    places = [root, *(root / x for x in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"))]
    data = next((p for p in places if any((p / name).is_dir() for name in ("train", *FLAT))), root)
    words = _synset_names(_above(root, data, "LOC_synset_mapping.txt"))

    def called(synsets: Sequence[str]) -> list[str]:
        if wrong := [name for name in synsets if not SYNSET.fullmatch(name)]:
            raise UserError(f"{data} has the folder {wrong[0]!r}, which is no synset: use layout='folders'")
        return [words.get(name, name) for name in synsets]

    flat = next((p for p in (data / name for name in FLAT) if p.is_dir() and not _folders_in(p)), None)
    if flat is None:
        return _of_folders(data, called, usual=list(words))
    table = _above(root, data, "LOC_val_solution.csv")
    if table is None:
        raise UserError(f"{flat} is flat and LOC_val_solution.csv is missing: put it beside, or sort val into synsets")
    answers = _answers(table)
    usual = list(words) or sorted(set(answers.values()) - {""})
    synsets, places = _places(data, usual, without=flat)

    def dev() -> Rows:
        number = {name: i for i, name in enumerate(synsets)}
        photos = _photos_in(flat)
        if lost := [p.name for p in photos if answers.get(p.stem) not in number]:
            raise UserError(
                f"{counted(len(lost), 'photo')} of {flat} without a known class in {table.name}; the first is {lost[0]}"
            )
        return _file_rows(photos, np.array([number[answers[p.stem]] for p in photos], np.int32), data)

    return Found(called(synsets), {**_rows_of(places, synsets), "dev": dev})


def _answers(table: Path) -> dict[str, str]:
    """{name of a photo without its suffix: its synset, '' where the table gives none}."""
    rows = list(csv.reader(_text(table).splitlines()))[1:]
    return {row[0]: (row[1].split() or [""])[0] if len(row) > 1 else "" for row in rows if row}


def scenes(root: Path) -> Found:
    """The built-in drawn scenes, by their background; besides 'train' there is 'gallery'."""
    if root != Path(""):
        raise UserError("data is for files: leave it out with layout='scenes'")
    splits = {}
    for name in SPLITS:
        split = datasets.scenes().split(name)
        names = [f"{name}/{i}" for i in range(len(split))]
        labels = split.attributes["background"].argmax(1).astype(np.int32)
        rows = Rows(names, labels, split.images.__getitem__, names)
        splits[name] = lambda rows=rows: rows
    return Found(BACKGROUNDS, splits)


LAYOUTS: dict[str, Callable[[Path], Found]] = {
    "folders": folders,
    "imagenet": imagenet,
    "cifar10": lambda root: _read(*cifar(root, 10)),
    "cifar100": lambda root: _read(*cifar(root, 100)),
    "scenes": scenes,
}


def _read(classes: Sequence[str], splits: Mapping[str, Rows]) -> Found:
    return Found(classes, {name: lambda rows=rows: rows for name, rows in splits.items()})


def _of_folders(root: Path, called: Callable[[list[str]], Sequence[str]], usual: Sequence[str] = ()) -> Found:
    classes, places = _places(root, usual)
    return Found(called(classes), _rows_of(places, classes))


def _rows_of(places: Mapping[str, Path], classes: list[str]) -> dict[str, Callable[[], Rows]]:
    return {split: functools.partial(_class_rows, split, place, classes) for split, place in places.items()}


def _places(root: Path, usual: Sequence[str], without: Path | None = None) -> tuple[list[str], dict[str, Path]]:
    """(classes, {split: its folder}); `usual` are the classes where there is no train, `without` is no such folder."""
    places: dict[str, Path] = {}
    # A class may be called 'train': a folder of a split holds folders.
    named = {name: split_of_folder(name) for name in _folders_in(root) if root / name != without}
    named = {name: split for name, split in named.items() if split and _folders_in(root / name)}
    for name, split in named.items():
        if split in places:
            raise UserError(f"{root} has two folders of {split}, {places[split].name} and {name}: leave one of them")
        places[split] = root / name
    if places or without:
        stray = [name for name in _folders_in(root) if name not in named and root / name != without]
        if stray and "train" in places:
            log.warning(
                "%s beside %s: left out (%s)", counted(len(stray), "folder"), places["train"], ", ".join(stray[:5])
            )
    else:
        places = {"train": root}
    if "train" in places:
        classes = _folders_in(places["train"])
    else:
        classes = list(usual) or sorted({name for place in places.values() for name in _folders_in(place)})
    if len(classes) < 2:
        place = places.get("train", root)
        raise UserError(
            f"{place} has {counted(len(classes), 'folder')} of a class: put the photos of each class in a folder"
        )
    for place in places.values():
        if strange := [name for name in _folders_in(place) if name not in classes]:
            where = "train does not have" if "train" in places else "is none of the classes"
            raise UserError(f"{place} has the class {strange[0]!r}, which {where}: both need the same classes")
    return classes, places


def _class_rows(split: str, place: Path, classes: list[str]) -> Rows:
    number = {name: i for i, name in enumerate(classes)}
    photos, labels = [], []
    for name in _folders_in(place):
        own = _photos_in(place / name)
        if not own:
            raise UserError(f"{place / name} holds no photo: remove the folder, or put the photos of the class there")
        photos += own
        labels += [number[name]] * len(own)
    if loose := sum(p.suffix.lower() in IMAGE_SUFFIXES for p in place.iterdir() if p.is_file()):
        log.warning("%s of %s outside the folders of the classes: left out", counted(loose, "photo"), place)
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


def _synset_names(path: Path | None) -> dict[str, str]:
    """{'n01440764': 'tench'} in the order of the synsets, each name once.

    It is the first of the words that a synset has.  Where synsets share it ('crane', 'maillot') it is all of their
    words, and where they share these too, with the synset behind them.
    """
    if path is None:
        return {}
    lines = [line.strip().partition(" ") for line in _text(path).splitlines() if line.strip()]
    words = {synset: line.strip() or synset for synset, _, line in sorted(lines)}
    names = {synset: line.partition(",")[0].strip() or synset for synset, line in words.items()}
    for longer in (words, {synset: f"{line} ({synset})" for synset, line in words.items()}):
        count = collections.Counter(names.values())
        names = {synset: name if count[name] == 1 else longer[synset] for synset, name in names.items()}
    assert len(set(names.values())) == len(names), "every synset has a name of its own"
    return names


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8'}): get it again"
        ) from None
