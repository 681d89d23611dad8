"""`smke search`: the work behind smke_jax/flags/search.py, which says what it does."""

import argparse
import concurrent.futures
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smke_jax.__main__ import quick_imports, run_program
from smke_jax.errors import UserError
from smke_jax.flags.search import parser
from smke_jax.search import words_files
from smke_jax.search.query import (
    NEARLY_THE_SAME,
    Answer,
    Hit,
    chosen,
    find,
    groups_alike,
    left_out,
    query_vector,
    searchable,
    shown,
)
from smke_jax.search.store import Index
from smke_jax.search.words_files import WORDS

if TYPE_CHECKING:
    from smke_jax.embedder import Embedder
    from smke_jax.search.words import Words


def main(argv: list[str]) -> int:
    """Parses the command line and prints the photos; returns the exit status."""
    arguments = parser().parse_args(argv)
    index = searchable(arguments.index)
    mask = chosen(index, since=arguments.since, folder=arguments.folder)
    return _similar(arguments, index, mask) if arguments.similar else _search(arguments, index, mask)


def _search(arguments: argparse.Namespace, index: Index, mask: np.ndarray) -> int:
    model = model_of(index, arguments.model, texts_alone=not arguments.image)
    vector = query_vector(model, arguments.texts, arguments.image, arguments.minus)
    is_text = len(arguments.texts) == 1 and not arguments.image and not arguments.minus
    answer = find(index, vector, mask, top=arguments.top, min_score=arguments.min_score, is_text=is_text)
    hits = sorted(answer.hits, key=lambda hit: hit.taken, reverse=True) if arguments.sort == "date" else answer.hits
    title = _title(arguments)
    if arguments.json:
        print(json.dumps({"query": title, "searched": answer.searched, "hits": [_as_json(hit) for hit in hits]}))
    elif arguments.paths:
        _print_paths(hit.path for hit in hits)
    else:
        _print_lines(hits)
    notes = _notes(answer, title, is_text or arguments.min_score is not None)
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    _write_html(arguments.html, title, notes, [(f"{len(hits)} photos", hits)])
    return 0 if hits else 1


def _similar(arguments: argparse.Namespace, index: Index, mask: np.ndarray) -> int:
    if arguments.texts or arguments.image or arguments.minus:
        raise UserError("--similar compares photos with each other: leave texts, --image and --minus out")
    least = NEARLY_THE_SAME if arguments.min_score is None else arguments.min_score
    if least <= 0:
        raise UserError(f"--min_score={least:g}: give a cosine above 0, such as {NEARLY_THE_SAME}")
    found = groups_alike(index, mask, least)
    groups = found[: arguments.top]
    if arguments.json:
        print(json.dumps({"groups": [[_as_json(hit) for hit in group] for group in groups]}))
    for number, group in enumerate([] if arguments.json else groups):
        print("\n" if number else "", end="")
        if arguments.paths:
            _print_paths(hit.path for hit in group)
        else:
            _print_lines(group)
    total = f"{len(found)} groups of photos that are nearly the same (cosine {least:g} or more)"
    notes = [f"{total}; {len(groups)} are shown (--top)" if len(groups) < len(found) else total]
    print(notes[0], file=sys.stderr)
    _write_html(arguments.html, "Nearly the same", notes, [(f"{len(group)} photos", group) for group in groups])
    return 0 if groups else 1


def model_of(index: Index, given: str | None, *, texts_alone: bool) -> "Words | Embedder":
    """What embeds queries: the model that made the index, or for `texts_alone` the half of it that the index holds.

    Args:
      given: where the model is now, in place of where it was.

    Raises:
      UserError: there is no such model, or another one.
    """
    return (texts_alone and not given and _words(index)) or _model(index, given)


def _words(index: Index) -> "Words | None":
    """The half of the model that reads texts, which the index holds."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        kept = pool.submit(words_files.read, index.directory)
        with quick_imports():  # of JAX, which take longer than to read the files meanwhile
            from smke_jax.search.words import opened
        words = opened(kept.result(), index.about.digest)
    if words is None and (index.directory / WORDS).exists():
        print(f"{index.directory / WORDS} is damaged or of another JAX: opening the model", file=sys.stderr)
    return words


def _model(index: Index, given: str | None) -> "Embedder":
    """The model that made the index."""
    import jax  # a text alone goes without the model: the imports take longer than the query

    import smke_jax.embedder

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the first query waits for its compilation
    where = given or index.about.model
    try:
        model = smke_jax.embedder.load(where, step=index.about.step)
    except UserError as error:
        raise UserError(f"the model of {index.directory}: {error}; --model=… says where it is now") from None
    if model.digest != index.about.digest:
        raise UserError(f"{index.directory} was made by another model than {where}: give the right one by --model")
    return model


def _notes(answer: Answer, title: str, has_cutoff: bool) -> list[str]:
    notes = []
    if not answer.hits:
        near = answer.closest
        why = f"; the closest of {answer.searched}, {shown(near.path)}, scores {near.score:.3f}" if near else ""
        notes.append(f"no photo answers {title}{why} (--min_score=-1 shows all)")
    elif has_cutoff and answer.fitting > len(answer.hits):
        notes.append(f"{len(answer.hits)} of {answer.fitting} photos that pass are shown (--top)")
    return notes + left_out(answer)


def _title(arguments: argparse.Namespace) -> str:
    plus = [f'"{text}"' for text in arguments.texts] + [shown(path) for path in arguments.image]
    return " + ".join(plus) + "".join(f' − "{text}"' for text in arguments.minus)


def _as_json(hit: Hit) -> dict:
    return {"path": str(hit.path), "score": round(hit.score, 4), "fit": hit.fit, "taken": hit.taken}


def _print_lines(hits: Iterable[Hit]) -> None:
    print("".join(f"{hit.score:6.3f}  {hit.taken[:10]}  {shown(hit.path)}\n" for hit in hits), end="")


def _print_paths(paths: Iterable[Path]) -> None:
    """The bytes of each path as they are, for other programs."""
    sys.stdout.flush()
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def _write_html(path: Path | None, title: str, notes: list[str], groups: list[tuple[str, list[Hit]]]) -> None:
    if path is not None:
        # Imported here: what draws takes longer to import than a query takes.
        from smke_jax.search.page import write_page

        print(f"wrote {write_page(path, title, notes, groups)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
