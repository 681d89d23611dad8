"""Conceptual Captions, or any web data, as img2dataset downloads it: tar files in webdataset layout.

A sample is all files of one key, which is the whole path up to the first dot of its last part (webdataset's own rule).
P. Sharma et al., "Conceptual Captions", ACL 2018; S. Changpinyo et al., "Conceptual 12M", CVPR 2021.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from smke_jax.data.prepare.items import CAPTION_SUFFIXES, IMAGE_SUFFIXES, Item, Options, Skips, decode_text, files_below
from smke_jax.data.prepare.splits import KNOWN, split_of, split_of_folder
from smke_jax.data.prepare.tar_members import Member, TarMembers
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

ENDING = r"\.(tar|tar\.gz|tgz)$"
KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # of hidden files, such as macOS puts into archives, there is none
FIRST_CHOICE = ("jpg", "jpeg", "png", "webp")  # where a sample has several pictures
CAPTIONS = tuple(suffix[1:] for suffix in CAPTION_SUFFIXES)
MOST_TEXT, MOST_IMAGE = 16 << 20, 1 << 30  # bytes; what is larger is no caption, no photo


class _Sample:
    """What one key has: its pictures by suffix, and the content of its texts and its json."""

    def __init__(self, key: str):
        self.key, self.images, self.captions = key, {}, []
        self.about: dict = {}
        self.cut = self.has_text = False

    def image(self) -> tuple[str, Member] | None:
        chosen = [suffix for suffix in FIRST_CHOICE if suffix in self.images] or sorted(self.images)
        return (chosen[0], self.images[chosen[0]]) if chosen else None


class _Found(NamedTuple):
    """A sample and where its picture lies, or where its first file lies when it has none."""

    start: int
    sample: _Sample


def cc(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """All samples of all *.tar under the folder, in the order of their names.

    A tar is of the split that its name or a folder says, as cc3m-validation-0000.tar and val/00000.tar do.  Where none
    says one, all are of `options.split`.  Where some do, the others are left out and named.
    """
    tars = [path for path in files_below(source) if re.search(ENDING, path.name.lower())]
    if not tars:
        raise UserError(f"{source} holds no .tar file: download with img2dataset --output_format=webdataset")
    places = {path: path.relative_to(source) for path in tars}
    said = {path: _split_of(place) for path, place in places.items()}
    splits: dict[str, list[Path]] = {}
    for path in tars:
        if said[path] is None and any(said.values()):
            reason = f"neither the tar's name nor its folder says one of {KNOWN}, which others do: rename it"
            skips.add(places[path].as_posix(), reason)
            continue
        splits.setdefault(said[path] or options.split, []).append(path)
    return {split: _Samples(paths, split, skips) for split, paths in splits.items()}


def _split_of(place: Path) -> str | None:
    """The split that the name of a tar says, or else the innermost of its folders that says one."""
    said = [split_of(place.name), *(split_of_folder(name) for name in reversed(place.parts[:-1]))]
    return next(filter(None, said), None)


class _Samples:
    """Reads the tars one after the other, because millions of images do not fit in memory."""

    def __init__(self, tars: list[Path], split: str, skips: Skips):
        self.tars, self.split, self.skips = tars, split, skips

    def __length_hint__(self) -> int:
        """What img2dataset's NNNNN_stats.json report, when all are there."""
        stated = [_stated(tar) for tar in self.tars]
        return 0 if None in stated else sum(stated)

    def __iter__(self) -> Iterator[Item]:
        for path in self.tars:
            try:
                with TarMembers(path) as tar:
                    yield from self._items(path, tar)
            except OSError as error:
                self.skips.add_lost(path.name, f"tar file cannot be read: {error.strerror}", _stated(path), self.split)

    def _items(self, path: Path, tar: TarMembers) -> Iterator[Item]:
        """The samples of one tar in the order of their pictures.

        The headers and the texts are read first, and the pictures in a second pass: the files of a sample need not lie
        beside each other.
        """
        samples = self._samples(path, tar)
        found = 0
        for _, sample in samples:
            where = f"{path.name}:{sample.key}"
            image, status = sample.image(), sample.about.get("status", "success")
            found += image is not None and status == "success"
            if status != "success" or image is None:
                reason = "sample has no image" if status == "success" else f"download status: {str(status)[:100]}"
                self.skips.add(where, reason, split=self.split, name=sample.key)
                continue
            suffix, member = image
            name = f"{sample.key}.{suffix}"
            data = tar.read(member) if member.size <= MOST_IMAGE else b""
            if not data:
                reason = "image is cut with its tar file" if data is None else "empty file"
                reason = "image is larger than 1 GiB" if member.size > MOST_IMAGE else reason
                self.skips.add(where, reason, split=self.split, name=name)
                continue
            captions = sample.captions if sample.has_text else _captions_of(sample.about)
            if not captions and sample.cut:
                self.skips.add(where, "caption is cut with its tar file", split=self.split, name=name)
                continue
            yield Item(name, captions, data, where)
        stated = _stated(path)
        missing = None if stated is None else max(0, stated - found)
        for reason in tar.damage:
            self.skips.add_lost(path.name, reason, missing, self.split)
            missing = 0  # the same samples are counted once
        if missing and not tar.damage:
            self.skips.add_lost(path.name, "tar file has fewer samples than its _stats.json says", missing, self.split)

    def _samples(self, path: Path, tar: TarMembers) -> list[_Found]:
        samples: dict[tuple[int, str], _Sample] = {}
        starts: dict[tuple[int, str], int] = {}
        for member in tar:
            match = KEY.fullmatch(member.name)
            if match is None:
                continue
            key, suffix = match[1].removeprefix("./"), match[2].lower()
            inner, _, kind = suffix.rpartition(".")
            is_image, is_text = f".{kind}" in IMAGE_SUFFIXES, kind in (*CAPTIONS, "json")
            if not is_image and not is_text:
                continue
            identity = member.part, f"{key}.{inner}" if inner else key
            sample = samples.setdefault(identity, _Sample(identity[1]))
            starts.setdefault(identity, member.start)
            if is_image:
                if kind in sample.images:
                    self.skips.add(
                        f"{path.name}:{sample.key}", "a later file of the archive has the same name",
                        split=self.split, name=f"{sample.key}.{kind}",
                    )  # fmt: skip
                if not sample.images:
                    starts[identity] = member.start
                sample.images[kind] = member
            else:
                self._add_text(sample, kind, tar, member)
        # a.seg.png beside a.jpg is an extra of that sample; a.v2.jpg without any a.jpg is a picture of its own.
        plain = {(part, key) for (part, key), sample in samples.items() if key == _plain(key) and sample.images}
        chosen = [
            _Found(starts[part, key], sample)
            for (part, key), sample in samples.items()
            if key == _plain(key) or (part, _plain(key)) not in plain
        ]
        return sorted(chosen, key=lambda found: found.start)

    def _add_text(self, sample: _Sample, kind: str, tar: TarMembers, member: Member) -> None:
        data = tar.read(member) if member.size <= MOST_TEXT else b""
        if data is None:
            sample.cut = True
        elif kind == "json":
            try:
                about = parse_json(data)
            except ValueError:
                return  # the picture and its text may be whole all the same
            sample.about = about if isinstance(about, dict) else {}
        else:
            sample.has_text = True
            sample.captions.append(decode_text(data))


def _plain(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _captions_of(about: dict) -> list:
    """The captions that the json of a sample states."""
    value = next((about[name] for name in ("caption", "captions", "text") if about.get(name)), [])
    return value if isinstance(value, list) else [value]


def _stated(tar: Path) -> int | None:
    """How many samples img2dataset says that it put into the tar; None where it does not say."""
    try:
        count = parse_json(tar.with_name(f"{re.sub(ENDING, '', tar.name)}_stats.json").read_bytes())["successes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if type(count) is int and count >= 0 else None
