"""Conceptual Captions, or any web data, as img2dataset downloads it: tar files in webdataset layout.

P. Sharma et al., "Conceptual Captions", ACL 2018; S. Changpinyo et al., "Conceptual 12M", CVPR 2021.
"""

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips
from smke_jax.errors import UserError

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


def cc(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """All samples of all *.tar under the folder, in the order of their names, as one split."""
    tars = sorted(source.rglob("*.tar"))
    if not tars:
        raise UserError(f"{source} holds no .tar file: download with img2dataset --output_format=webdataset")
    return {options.split: _Samples(tars, options.split, skips)}


class _Samples:
    """Reads the tars one after the other, because millions of images do not fit in memory."""

    def __init__(self, tars: list[Path], split: str, skips: Skips):
        self.tars, self.split, self.skips = tars, split, skips

    def __length_hint__(self) -> int:
        """What img2dataset's NNNNN_stats.json report, when all are there."""
        try:
            stats = [json.loads(tar.with_name(f"{tar.stem}_stats.json").read_bytes()) for tar in self.tars]
            return sum(entry["successes"] for entry in stats)
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def __iter__(self) -> Iterator[Item]:
        for tar in self.tars:
            for key, members in itertools.groupby(self._members(tar), key=lambda member: member[0]):
                item = self._item(tar, key, {suffix: data for _, suffix, data in members})
                if item is not None:
                    yield item

    def _members(self, path: Path) -> Iterator[tuple[str, str, bytes]]:
        """Yields (key, suffix, bytes) of each file that can be read whole."""
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        key, _, suffix = Path(member.name).name.partition(".")
                        yield key, suffix.lower(), tar.extractfile(member).read()
        except (tarfile.TarError, OSError, EOFError):
            self.skips.add(path.name, "tar file is cut short or damaged", split=self.split)

    def _item(self, tar: Path, key: str, files: dict[str, bytes]) -> Item | None:
        where = f"{tar.name}:{key}"
        try:
            about = json.loads(files.get("json", b"{}"))
            status, caption = about.get("status", "success"), about.get("caption") or ""
        except (ValueError, AttributeError):
            status, caption = "success", ""  # the picture and its text may be whole all the same
        suffix = next((suffix for suffix in IMAGE_MEMBERS if suffix in files), None)
        if status != "success" or suffix is None:
            reason = "sample has no image" if status == "success" else f"download status: {status}"
            self.skips.add(where, reason, split=self.split, name=key)
            return None
        if "txt" in files:
            caption = files["txt"].decode("utf-8", "replace")
        return Item(f"{key}.{suffix}", [caption], files[suffix], where)
