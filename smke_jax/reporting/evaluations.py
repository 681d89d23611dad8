"""What the evaluators of a run have written below evals/STEP: figures, and examples of the newest ones."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.evaluators.ranks import RECALL_AT
from smke_jax.evaluators.recalls import DIRECTIONS
from smke_jax.json_text import parse_json
from smke_jax.reporting.html import photo
from smke_jax.reporting.masked_words import drawn_words
from smke_jax.reporting.reconstructions import drawn_reconstruction
from smke_jax.reporting.word_patches import drawn

EXAMPLES = ".examples.json"  # of the newest evaluation, beside the folders of the steps
KINDS = ("text_to_image", "image_to_text", "predictions", "mistakes")  # of examples
WORDS, REBUILT, HIDDEN = "words", "reconstructions", "masked_words"  # and of those with patches or hidden words
RECALLS = tuple((direction, f"r{k}") for direction in DIRECTIONS for k in RECALL_AT)


class Evaluation(NamedTuple):
    """The newest figures of one evaluator.

    name:   of the evaluator, in the config
    step:   of the checkpoint that was evaluated
    record: everything that it wrote
    arrays: the file where its arrays lie, if it wrote any
    """

    name: str
    step: int
    record: Mapping[str, Any]
    arrays: Path

    @property
    def has_recalls(self) -> bool:
        """Whether it ranked images and texts."""
        return all(direction in self.record for direction in DIRECTIONS)

    def numbers(self) -> dict[str, float]:
        """{'a/b': number} of the numbers in its record."""
        return dict(_numbers(self.record))


def read_evaluations(folder: Path, problems: list[str]) -> Iterator[Evaluation]:
    """What is in the folder `evals` of a run, newest first; what cannot be read becomes a line of `problems`."""
    for step in sorted((int(x.name) for x in folder.glob("*") if x.name.isdecimal()), reverse=True):
        for path in sorted((folder / str(step)).glob("*.json")):
            try:
                yield _sound(Evaluation(path.stem, step, _read(path), path.with_suffix(".npz")))
            except (OSError, KeyError, TypeError, ValueError):
                problems.append(f"{path} is damaged: its figures are left out")


def newest_evaluations(folder: Path, problems: list[str]) -> dict[str, Evaluation]:
    """{evaluator: the last of its figures that can be read}."""
    found: dict[str, Evaluation] = {}
    for evaluation in read_evaluations(folder, problems):
        found.setdefault(evaluation.name, evaluation)
    return dict(sorted(found.items()))


def write_examples(folder: Path, name: str, step: int, examples: Mapping[str, Sequence]) -> Path:
    """Keeps the examples of the evaluator `name` in the folder `evals` of a run, in place of those of earlier steps.

    examples: see `Figures.examples`
    """
    shown = {
        "text_to_image": [[text, [[photo(x), ok] for x, ok in found]] for text, found in examples.get(KINDS[0], ())],
        "image_to_text": [[photo(x), [list(pair) for pair in found]] for x, found in examples.get(KINDS[1], ())],
    }
    shown |= {
        kind: [[photo(x), own, [list(pair) for pair in found]] for x, own, found in examples.get(kind, ())]
        for kind in KINDS[2:]
    }
    shown[WORDS] = [drawn(example) for example in examples.get(WORDS, ())]
    shown[REBUILT] = [drawn_reconstruction(example) for example in examples.get(REBUILT, ())]
    shown[HIDDEN] = [drawn_words(example) for example in examples.get(HIDDEN, ())]
    text = json.dumps({"step": step, **shown}, ensure_ascii=True)
    return atomic.write_text(folder / f"{name}{EXAMPLES}", text + "\n")


def read_examples(folder: Path, problems: list[str]) -> dict[str, dict]:
    """{evaluator: {'step', and each of KINDS}} of what `write_examples` wrote, images as data URIs.

    A kind that an earlier version did not know is empty.
    """
    found = {}
    for path in sorted(folder.glob(f"*{EXAMPLES}")):
        try:
            said = _read(path)
            shown = {kind: said.get(kind, []) for kind in (*KINDS[2:], WORDS, REBUILT, HIDDEN)}
            shown |= {x: said[x] for x in ("step", *KINDS[:2])}
            found[path.name.removesuffix(EXAMPLES)] = shown
        except (OSError, KeyError, TypeError, ValueError):
            problems.append(f"{path} is damaged: its examples are left out")
    return found


def _read(path: Path) -> Mapping[str, Any]:
    record = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise TypeError("no object")
    return record


def _sound(evaluation: Evaluation) -> Evaluation:
    """The same; raises KeyError, TypeError or ValueError where it says nothing, or recalls that are none."""
    record = evaluation.record
    if not evaluation.numbers():
        raise ValueError("no numbers")
    if any(direction in record for direction in DIRECTIONS):
        bounds = record["ci95"] and [record["ci95"][direction][key] for direction, key in RECALLS]
        values = [record[direction][key] for direction, key in RECALLS]
        np.asarray(values + [x for low, high in bounds or () for x in (low, high)], float)
        str(record["protocol"]), int(record["n_images"]), int(record["n_captions"])
    return evaluation


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)
