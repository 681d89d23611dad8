"""What the local page shows, as plain values: answers to queries, and pictures of the index."""

import collections
import functools
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from smke_jax.data.decode import BadImage
from smke_jax.errors import UserError
from smke_jax.search.dates import seconds_of
from smke_jax.search.query import (
    Answer,
    Hit,
    chosen,
    find,
    left_out,
    newest,
    query_vector,
    searchable,
    shown,
)
from smke_jax.search.store import Index, read_about, state_of
from smke_jax.search.thumbnails import Thumbnails

PAGE = 48  # photos that are sent at once
LONGEST_QUERY = 1000  # characters; models read some dozens of words
SMALL, LARGE = 400, 1600  # pixels of pictures in the grid and of one alone
DAY = 86_400
KEY = re.compile(r"([0-9]{1,15})-([0-9a-f]{8})")


class NotThere(Exception):
    """A picture that the index does not have, or whose file is gone or damaged; says which."""


class ReadsTexts(Protocol):
    """What is needed of `smke_jax.search.words.Words` or `smke_jax.embedder.Embedder`."""

    def encode_texts(self, texts): ...


class Site:
    """Answers for one index, which `smke index` may bring up to date meanwhile.  Threads may share it."""

    def __init__(self, directory: Path, reader: ReadsTexts | None):
        """`reader`: of the model of the index; None for a model without texts.  Raises UserError as `searchable`."""
        self._directory, self._reader, self._thumbnails = directory, reader, Thumbnails()
        self._model, self._opening = threading.Lock(), threading.Lock()
        self._state = state_of(directory)
        self._opened = _Opened(searchable(directory))
        self._digest = self._opened.index.about.digest

    def about(self) -> dict:
        """How many photos there are, where, in which folders, and whether texts can be searched for."""
        opened = self._now()
        return {
            "photos": shown(opened.index.about.photos),
            "count": int(opened.index.live.sum()),
            "folders": opened.folders,
            "reads_texts": self._reader is not None,
        }

    def search(self, fields: Mapping[str, str]) -> dict:
        """PAGE photos that answer a query, and a line that says what they are.

        Args:
          fields: 'q', a text, or 'like', the key of a photo, or neither for the newest photos; 'since' and 'until',
            days as YYYY-MM-DD; 'folder', its id; 'all' with any value, to show what does not pass the cut-off, too;
            'from', how many photos come before the first one.

        Raises:
          UserError: a field that cannot be read; says why.
        """
        opened = self._now()
        text, like, start = _text(fields), fields.get("like", ""), _start(fields.get("from", ""))
        mask = opened.below(fields.get("folder", "")) & chosen(
            opened.index, since=_day(fields.get("since", "")), before=_day(fields.get("until", ""), 1)
        )
        top, alike = start + PAGE + 1, None  # one more, to know whether more follow
        if like:
            alike = opened.number(like)
            if alike is None:
                raise UserError("that photo is no more in the index")
            mask[alike] = False
            vector = opened.index.rows[alike].astype(np.float32)
            answer = find(opened.index, vector, mask, top=top, min_score=None, is_text=False)
        elif text:
            min_score = -1.0 if fields.get("all") else None
            answer = find(opened.index, self._vector(text), mask, top=top, min_score=min_score, is_text=True)
        else:
            answer = newest(opened.index, mask, top=top)
        return {
            "message": _message(answer, text, bool(like), bool(fields.get("all"))),
            "notes": left_out(answer),
            "hits": [opened.as_json(hit) for hit in answer.hits[start : start + PAGE]],
            "more": len(answer.hits) > start + PAGE,
            "others": bool(text) and not like and answer.searched > answer.fitting,
            "like": None if alike is None else {"key": like, "name": opened.name(alike)},
        }

    def picture(self, key: str, side: int) -> bytes:
        """A JPEG of the photo with that key; NotThere where there is none."""
        opened = self._now()
        number = opened.number(key)
        if number is None:
            raise NotThere("the index has no such photo")
        try:
            return self._thumbnails.get(opened.index.path(number), side)
        except BadImage as error:
            raise NotThere(f"the photo cannot be shown: {error.reason}") from None

    def _vector(self, text: str) -> np.ndarray:
        if self._reader is None:
            raise UserError("the model of this index reads no texts: choose a photo to see similar ones")
        with self._model:
            return query_vector(self._reader, [text])

    def _now(self) -> "_Opened":
        """The index as it is now."""
        with self._opening:
            state = state_of(self._directory)
            if state != self._state:
                if read_about(self._directory).digest != self._digest:
                    raise UserError("the index was made anew by another model: start `smke serve` again")
                self._opened, self._state = _Opened(searchable(self._directory)), state
            return self._opened


class _Opened:
    """An index as it was when it was opened.

    folders: those that hold photos and those above them, in the order of their names, with how many lie below each;
      'id' is what `Site.search` takes, since the bytes of a name need not be UTF-8
    """

    def __init__(self, index: Index):
        self.index = index
        direct = collections.Counter(os.path.dirname(index.name(i)) for i in np.flatnonzero(index.live).tolist())
        counts = collections.Counter()
        for folder, count in direct.items():
            while folder:
                counts[folder] += count
                folder = os.path.dirname(folder)
        self.folders = [
            {"id": quote_from_bytes(os.fsencode(folder)), "name": shown(folder), "count": count}
            for folder, count in sorted(counts.items())
        ]
        self._ids = {folder["id"] for folder in self.folders}
        self.below = functools.lru_cache(maxsize=8)(self._below)

    def _below(self, folder: str) -> np.ndarray:
        if folder and folder not in self._ids:
            raise UserError("no photo of the index lies in that folder: choose another")
        return chosen(self.index, folder=os.fsdecode(unquote_to_bytes(folder)) or None)

    def number(self, key: str) -> int | None:
        """Of the photo with that key: a photo that was changed or is no more in the index has none."""
        found = KEY.fullmatch(key)
        number = int(found[1]) if found else -1
        is_there = 0 <= number < len(self.index.live) and self.index.live[number]
        return number if is_there and self.key(number) == key and self.index.is_sound(number) else None

    def key(self, number: int) -> str:
        # Numbers alone may be given again to other photos.
        return f"{number}-{int(self.index.records['crc'][number]):08x}"

    def name(self, number: int) -> str:
        return shown(PurePath(self.index.name(number)).name)

    def as_json(self, hit: Hit) -> dict:
        return {
            "key": self.key(hit.number),
            "name": self.name(hit.number),
            "path": shown(hit.path),
            "score": None if hit.score is None else round(hit.score, 3),
            "taken": hit.taken,
        }


def _message(answer: Answer, text: str, is_like: bool, shows_all: bool) -> str:
    photos = "1 photo" if answer.fitting == 1 else f"{answer.fitting} photos"
    if not answer.searched:
        return "No photo lies there: choose other dates or another folder"
    if is_like:
        return f"{photos}, the most similar first"
    if not text:
        return f"{photos}, the newest first"
    if shows_all:
        return f"{photos}, the closest to “{text}” first"
    if answer.hits:
        return f"{photos} of {answer.searched} answer “{text}”"
    return f"No photo of {answer.searched} answers “{text}”"


def _text(fields: Mapping[str, str]) -> str:
    text = fields.get("q", "").strip()
    if len(text) > LONGEST_QUERY:
        raise UserError(f"the text has {len(text):,} characters: {LONGEST_QUERY:,} are the most; one sentence is best")
    return text


def _day(text: str, later: int = 0) -> int | None:
    """The first second of a day, or of the one that many days later."""
    try:
        return seconds_of(text) + DAY * later if text else None
    except ValueError:
        raise UserError(f"{ascii(text)} is no date: give YYYY-MM-DD") from None


def _start(text: str) -> int:
    if not re.fullmatch("[0-9]{0,9}", text):
        raise UserError("'from' is no number of photos")
    return int(text or 0)
