"""What an index answers: the photos that are most like a query, and photos that are nearly the same."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from smke_jax.errors import UserError
from smke_jax.search.cutoff import answering, fits
from smke_jax.search.dates import date_of
from smke_jax.search.scores import alike, best, scores_of
from smke_jax.search.store import Index

NEARLY_THE_SAME = 0.95  # cosine; of 600 different photos of Flickr8k the two most alike have 0.92 in the README's model


class Hit(NamedTuple):
    """A photo that was found.

    number: of the photo in the index
    path: of the file
    score: cosine with the query; None where there is no query
    fit: standard deviations above what texts usually score with this photo; None where the query is no text alone
    taken: 'YYYY-MM-DD HH:MM:SS' by the photo's EXIF, or when the file was changed
    """

    number: int
    path: Path
    score: float | None
    fit: float | None
    taken: str


class Answer(NamedTuple):
    """What `find` or `newest` found.

    hits: best or newest first
    searched: how many photos were compared
    fitting: how many of them pass the cut-off
    closest: where there are no hits, the photo with the highest score
    missing: photos left out because their files are gone
    damaged: photos left out because their entries in the index are damaged
    """

    hits: list[Hit]
    searched: int
    fitting: int
    closest: Hit | None
    missing: int
    damaged: int


class Embeds(Protocol):
    """What is needed of `smke_jax.embedder.Embedder`."""

    def encode_images(self, images): ...  # of one image (D,)

    def encode_texts(self, texts): ...


def searchable(directory: Path) -> Index:
    """The index in `directory`; UserError where there is none, where it is empty or where its photos are not there."""
    index = Index(directory)
    if not index.live.any():
        raise UserError(f"{directory} holds no photos yet: run `smke index` first")
    if not os.path.isdir(index.about.photos):
        raise UserError(f"{index.about.photos} is not there: connect its disk, or give `smke index` the new place")
    return index


def query_vector(
    embedder: Embeds, texts: Sequence[str] = (), images: Sequence[Path] = (), minus: Sequence[str] = ()
) -> np.ndarray:
    """The sum of the embeddings of texts and images less those of `minus`, L2-normalised, fp32 (D,)."""
    parts = []
    if texts:
        parts.append(_normalised(embedder.encode_texts(list(texts))))
    # One by one: what a model says of a photo that it cannot read is then about that photo alone.
    parts += [_normalised(embedder.encode_images(image)[None]) for image in images]
    if minus:
        parts.append(-_normalised(embedder.encode_texts(list(minus))))
    if not parts:
        raise UserError('nothing to search for: give a text in quotes, --image=FILE or --minus="…"')
    total = np.concatenate(parts).sum(axis=0)
    length = np.linalg.norm(total)
    if not length > 1e-3:
        raise UserError("the parts of the query take each other away: leave one of them out")
    return (total / length).astype(np.float32)


def chosen(
    index: Index, *, since: int | None = None, before: int | None = None, folder: str | None = None
) -> np.ndarray:
    """bool (N,): the photos that are there, taken at `since` or later, before `before`, and that lie below `folder`.

    since, before: as `dates.seconds_of` gives them
    folder: below the folder of photos, or a whole path; UserError where none of the photos lies there
    """
    mask = index.live.copy()
    if since is not None:
        mask &= index.records["taken"] >= since
    if before is not None:
        mask &= index.records["taken"] < before
    if folder is not None:
        inside = os.path.normpath(os.path.join(index.about.photos, folder))
        prefix = os.path.relpath(inside, index.about.photos)
        below = [
            i for i in np.flatnonzero(index.live).tolist() if prefix == "." or index.name(i).startswith(prefix + os.sep)
        ]
        if not below:
            raise UserError(f"--folder={folder}: no photo of the index lies there; it is of {index.about.photos}")
        mask &= np.isin(np.arange(len(mask)), below)
    return mask


def find(
    index: Index, vector: np.ndarray, mask: np.ndarray, *, top: int, min_score: float | None, is_text: bool
) -> Answer:
    """The `top` photos of `mask` that score highest with `vector` (D,), which is L2-normalised.

    Without `min_score`, a text has only those that `cutoff.answering` lets through; anything else has all of them.
    """
    numbers = np.flatnonzero(mask)
    scores = scores_of(index.rows, vector[None])[numbers, 0]
    usual = [index.records[name][numbers] for name in ("typical", "spread")]
    fit = fits(scores, *usual) if is_text else np.full(len(scores), np.nan)
    if min_score is not None:
        passes = scores >= min_score
    else:
        passes = answering(fit) if is_text else np.ones(len(scores), bool)
    order = _in_order(np.where(passes, scores, -np.inf), int(passes.sum()))
    places, missing, damaged = _first_there(index, numbers, order, top)
    hits = [_hit(index, int(numbers[place]), scores[place], fit[place]) for place in places]
    closest = None
    if not hits and len(numbers):
        place = int(np.argmax(scores))
        closest = _hit(index, int(numbers[place]), scores[place], fit[place])
    return Answer(hits, len(numbers), int(passes.sum()), closest, missing, damaged)


def newest(index: Index, mask: np.ndarray, *, top: int) -> Answer:
    """The `top` photos of `mask` that were taken last."""
    numbers = np.flatnonzero(mask)
    order = np.argsort(-index.records["taken"][numbers], kind="stable")
    places, missing, damaged = _first_there(index, numbers, order.tolist(), top)
    hits = [_hit(index, int(numbers[place]), None, np.nan) for place in places]
    return Answer(hits, len(numbers), len(numbers), None, missing, damaged)


def left_out(answer: Answer) -> list[str]:
    """Lines about the photos that were left out of an answer, with the remedy."""
    notes = []
    if answer.missing:
        notes.append(f"left out because their files are gone: {answer.missing}; run `smke index` again")
    if answer.damaged:
        notes.append(f"left out because the index is damaged there: {answer.damaged}; run `smke index` again")
    return notes


def shown(path: str | Path) -> str:
    """On one line, without control characters and halves of characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


def groups_alike(index: Index, mask: np.ndarray, least: float) -> list[list[Hit]]:
    """Photos that score `least` or more with another one of their group: the largest group first, `score` the highest.

    A photo whose file is gone is left out.  Memory grows with the number of photos, not with that of pairs.
    """
    numbers = np.flatnonzero(mask)
    numbers = numbers[[os.path.exists(index.path(number)) for number in numbers.tolist()]]
    head = np.arange(len(numbers))  # of a photo, another one of its group or itself
    highest = np.zeros(len(numbers), np.float32)

    def first(place: int) -> int:
        while head[place] != place:
            head[place] = head[head[place]]
            place = head[place]
        return int(place)

    for left, right, scores in alike(index.rows, numbers, least):
        np.maximum.at(highest, left, scores)
        np.maximum.at(highest, right, scores)
        for i, j in zip(left.tolist(), right.tolist(), strict=True):
            a, b = first(i), first(j)
            head[max(a, b)] = min(a, b)
    groups: dict[int, list[Hit]] = {}
    for place in np.flatnonzero(highest).tolist():
        groups.setdefault(first(place), []).append(_hit(index, int(numbers[place]), highest[place], np.nan))
    return sorted(groups.values(), key=len, reverse=True)


def _hit(index: Index, number: int, score: float | None, fit: float) -> Hit:
    taken = date_of(int(index.records["taken"][number]))
    score, fit = None if score is None else float(score), None if np.isnan(fit) else float(fit)
    return Hit(number, index.path(number), score, fit, taken)


def _first_there(index: Index, numbers: np.ndarray, order: Iterable[int], top: int) -> tuple[list[int], int, int]:
    """The first `top` places of `order` in `numbers` whose photos can be shown; how many are missing and damaged."""
    places, missing, damaged = [], 0, 0
    for place in order:
        if len(places) == top:
            break
        number = int(numbers[place])
        if not index.is_sound(number):
            damaged += 1
        elif not os.path.exists(index.path(number)):
            missing += 1
        else:
            places.append(place)
    return places, missing, damaged


def _in_order(scores: np.ndarray, count: int) -> Iterator[int]:
    """The positions of the `count` highest scores, best first; no more of them are sorted than are taken."""
    done, k = 0, 64
    while done < count:
        places = best(scores, min(k, count))
        yield from places[done:].tolist()
        done, k = len(places), 8 * k


def _normalised(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
